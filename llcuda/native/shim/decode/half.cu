// BF16 weights as F16, for GPUs whose Tensor Cores have no BF16. Compiled into the CUDA backend.

#include "half.h"

#include <algorithm>

#include "ggml-cuda/common.cuh"

namespace {

constexpr int BLOCK_SIZE = 256;
constexpr int64_t MOST_BLOCKS = 4096;
constexpr uint32_t WITHOUT_SIGN = 0x7fff;
constexpr uint32_t BF16_INFINITY = 0x7f80;
constexpr uint32_t BEYOND_F16 = 0x4780;  // 65,536, the first BF16 number after F16's largest, 65,504

__global__ void find_beyond(const uint16_t * numbers, int64_t n, int * found) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += gridDim.x * BLOCK_SIZE) {
        const uint32_t size = numbers[i] & WITHOUT_SIGN;
        if (size >= BEYOND_F16 && size < BF16_INFINITY) {
            *found = 1;
        }
    }
}

__global__ void convert(uint16_t * numbers, int64_t n) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += gridDim.x * BLOCK_SIZE) {
        const float number = __uint_as_float(static_cast<uint32_t>(numbers[i]) << 16);
        numbers[i] = __half_as_ushort(__float2half_rn(number));
    }
}

int device_of(const void * data) {
    cudaPointerAttributes attributes;
    CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
    return attributes.device;
}

}  // namespace

bool llcuda_multiplies_bf16(const void * data) {
    return ggml_cuda_info().devices[device_of(data)].cc >= GGML_CUDA_CC_AMPERE;
}

bool llcuda_bf16_to_f16(void * data, int64_t n) {
    ggml_cuda_set_device(device_of(data));
    auto * numbers = static_cast<uint16_t *>(data);
    const auto blocks = static_cast<int>(std::min(MOST_BLOCKS, (n + BLOCK_SIZE - 1) / BLOCK_SIZE));
    int * found = nullptr;
    int beyond = 0;
    CUDA_CHECK(cudaMalloc(&found, sizeof(int)));
    CUDA_CHECK(cudaMemset(found, 0, sizeof(int)));
    find_beyond<<<blocks, BLOCK_SIZE, 0, cudaStreamPerThread>>>(numbers, n, found);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaMemcpyAsync(&beyond, found, sizeof(int), cudaMemcpyDeviceToHost, cudaStreamPerThread));
    CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));
    CUDA_CHECK(cudaFree(found));
    if (beyond) {
        return false;
    }
    convert<<<blocks, BLOCK_SIZE, 0, cudaStreamPerThread>>>(numbers, n);
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));
    return true;
}
