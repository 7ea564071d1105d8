// The interface of gemm.cu, which is compiled into the CUDA backend. An error of CUDA is an assertion of ggml.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// C = A B for row-major matrices of m x k, k x n and m x n, all of one type.
// transposed: the operand is stored as its transpose.
// leading: elements from one row to the next. stride: elements from one matrix of a batch to the next, 0 = the same one.
struct llcuda_product {
    int          type;  // GGML_TYPE_F16, _BF16 or _F32
    int64_t      m, n, k, batch;
    const void * a;
    const void * b;
    void *       c;
    int          a_transposed, b_transposed;
    int64_t      a_leading, b_leading;
    int64_t      a_stride, b_stride, c_stride;
};

// Multiply on the stream of `backend`, a ggml_backend_t of CUDA. Sums are float32; F32 is not rounded to TF32.
void llcuda_gemm(void * backend, const struct llcuda_product * product);

void * llcuda_backend_stream(void * backend);

// The facts of ggml's CUDA device `device`: compute capability times 10, multiprocessors, threads of a warp, shared memory
// of a block in bytes, by default and at most.
void llcuda_cuda_device(int device, int * capability, int * multiprocessors, int * warp_size, size_t * shared_memory,
                        size_t * shared_memory_most);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
