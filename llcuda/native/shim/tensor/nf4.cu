// Weights of 4 bits to floats in GPU memory. Compiled into the CUDA backend.

#include "nf4.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "ggml.h"

namespace {

constexpr int THREADS = 256, PER_THREAD = 4;  // stores of 16 bytes

struct Code {
    float values[16];
};

// The backend is compiled with -use_fast_math, whose products lose subnormal numbers.
__device__ float product(float a, float b) {
    float result;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}

template <typename T> __device__ T rounded(float value) {
    if constexpr (std::is_same_v<T, half>) {
        return __float2half_rn(value);
    } else if constexpr (std::is_same_v<T, nv_bfloat16>) {
        return __float2bfloat16_rn(value);
    } else {
        return value;
    }
}

// A word of `packed` makes the 16 bytes of one store; a thread's words are THREADS apart, so that a warp's accesses
// are contiguous, and loaded before the first is used. Entries of the table lie in banks of their own.
template <typename T>
__global__ void expand(const uint8_t * packed, const float * absmax, Code code, int64_t n, int shift, T * values) {
    constexpr int VALUES = 16 / sizeof(T);
    using Word = std::conditional_t<VALUES == 8, uint32_t, uint16_t>;
    struct alignas(16) Store {
        T values[VALUES];
    };

    __shared__ float table[16];
    if (threadIdx.x < 16) {
        table[threadIdx.x] = code.values[threadIdx.x];
    }
    __syncthreads();

    const int64_t words = n / VALUES;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * THREADS * PER_THREAD + threadIdx.x;
    Word  word[PER_THREAD];
    float scale[PER_THREAD];
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        const int64_t i = first + j * THREADS;
        if (i < words) {
            word[j] = reinterpret_cast<const Word *>(packed)[i];
            scale[j] = absmax[(i * VALUES) >> shift];
        }
    }
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        const int64_t i = first + j * THREADS;
        if (i < words) {
            Store store;
#pragma unroll
            for (int k = 0; k < VALUES; k++) {
                const int bits = k / 2 * 8 + (k % 2 ? 0 : 4);
                store.values[k] = rounded<T>(product(table[word[j] >> bits & 15], scale[j]));
            }
            reinterpret_cast<Store *>(values)[i] = store;
        }
    }

    const int64_t last = words * VALUES + threadIdx.x;  // what fills no store
    if (blockIdx.x == 0 && last < n) {
        const int bits = last % 2 ? 0 : 4;
        values[last] = rounded<T>(product(table[packed[last / 2] >> bits & 15], absmax[last >> shift]));
    }
}

template <typename T>
cudaError_t begin(const uint8_t * packed, const float * absmax, const Code & code, int64_t n, int shift, void * values,
                  cudaStream_t stream) {
    constexpr int64_t a_block = THREADS * PER_THREAD * 16 / sizeof(T);
    expand<T><<<(n + a_block - 1) / a_block, THREADS, 0, stream>>>(packed, absmax, code, n, shift,
                                                                   static_cast<T *>(values));
    return cudaGetLastError();
}

}  // namespace

int llcuda_nf4_expand(const uint8_t * packed, const float * absmax, const float * code, int64_t n, int32_t block_size,
                      int type, void * values, void * stream) {
    Code by_value;
    for (int i = 0; i < 16; i++) {
        by_value.values[i] = code[i];
    }
    int shift = 0;
    while ((1 << shift) < block_size) {
        shift++;
    }
    cudaPointerAttributes attributes;
    cudaError_t error = cudaPointerGetAttributes(&attributes, values);
    if (error == cudaSuccess) {
        error = cudaSetDevice(attributes.device);
    }
    const auto on = static_cast<cudaStream_t>(stream);
    if (error == cudaSuccess) {
        switch (type) {
            case GGML_TYPE_F32:  error = begin<float>(packed, absmax, by_value, n, shift, values, on); break;
            case GGML_TYPE_F16:  error = begin<half>(packed, absmax, by_value, n, shift, values, on); break;
            case GGML_TYPE_BF16: error = begin<nv_bfloat16>(packed, absmax, by_value, n, shift, values, on); break;
            default:             error = cudaErrorInvalidValue;
        }
    }
    if (error != cudaSuccess) {
        cudaGetLastError();
    }
    return error;
}
