// Products of matrices whose result has the operands' type: ggml's are F32, and sum F16 in F16. Compiled into the
// CUDA backend.

#include "gemm.h"

#include "ggml-backend-impl.h"
#include "ggml-cuda/common.cuh"

namespace {

ggml_backend_cuda_context & context_of(void * backend) {
    return *static_cast<ggml_backend_cuda_context *>(static_cast<ggml_backend_t>(backend)->context);
}

// ggml lets cuBLAS round F32 to TF32; a product of F32 tensors should not.
class FullPrecision {
  public:
    explicit FullPrecision(cublasHandle_t handle) : handle_(handle) {
        CUBLAS_CHECK(cublasGetMathMode(handle, &before_));
        CUBLAS_CHECK(cublasSetMathMode(handle, CUBLAS_DEFAULT_MATH));
    }
    ~FullPrecision() { cublasSetMathMode(handle_, before_); }

  private:
    cublasHandle_t handle_;
    cublasMath_t   before_;
};

}  // namespace

void llcuda_gemm(void * backend, const llcuda_product * product) {
    const llcuda_product & g = *product;
    auto & context = context_of(backend);
    ggml_cuda_set_device(context.device);
    const cudaDataType_t type = g.type == GGML_TYPE_F16 ? CUDA_R_16F : g.type == GGML_TYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const float one = 1, zero = 0;
    cublasHandle_t handle = context.cublas_handle();
    const FullPrecision full(handle);
    // cuBLAS counts by columns: C' = B' A'.
    CUBLAS_CHECK(cublasGemmStridedBatchedEx(
        handle, g.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, g.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
        static_cast<int>(g.n), static_cast<int>(g.m), static_cast<int>(g.k), &one, g.b, type,
        static_cast<int>(g.b_leading), g.b_stride, g.a, type, static_cast<int>(g.a_leading), g.a_stride, &zero, g.c,
        type, static_cast<int>(g.n), g.c_stride, static_cast<int>(g.batch), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void * llcuda_backend_stream(void * backend) { return context_of(backend).stream(); }

void llcuda_cuda_device(int device, int * capability, int * multiprocessors, int * warp_size, size_t * shared_memory,
                        size_t * shared_memory_most) {
    const auto & info = ggml_cuda_info().devices[device];
    *capability = info.cc / 10;  // ggml has 750 for 7.5
    *multiprocessors = info.nsm;
    *warp_size = info.warp_size;
    *shared_memory = info.smpb;
    *shared_memory_most = info.smpbo;
}
