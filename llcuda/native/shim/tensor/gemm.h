// What the CUDA backend offers the shim for tensors. An error of CUDA is an assertion of ggml.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// C = A B for row-major matrices: m x k, k x n, m x n, of one type. A transposed operand lies as its transpose does.
// leading: elements from one line to the next. stride: elements between the matrices of a batch, 0 = the same one.
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

// On the stream of `backend`, a ggml_backend_t of CUDA. Sums are float32, F32 is multiplied as F32.
void llcuda_gemm(void * backend, const struct llcuda_product * product);

void * llcuda_backend_stream(void * backend);

// Of ggml's CUDA device `device`: compute capability x 10, multiprocessors, threads of a warp, and the shared memory of
// a block, as it is and at most.
void llcuda_cuda_device(int device, int * capability, int * multiprocessors, int * warp_size, size_t * shared_memory,
                        size_t * shared_memory_most);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
