// What tensors share: devices, and memory that is counted.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>

#include "common.hpp"
#include "ggml-alloc.h"

extern "C" {
#include "tensor.h"
}

namespace shim {

// A device and what computes on it; one graph at a time.
struct Device {
    explicit Device(ggml_backend_dev_t device);
    // The backend, made at first use. Under `computing`.
    ggml_backend_t backend();
    // Wait for what was computed; a backend that was never used has nothing to wait for.
    void synchronize();
    // A buffer for tensors that lie in memory of somebody else: of it only the kind counts.
    ggml_backend_buffer_t anchor();
    // Free what is kept for the next tensors.
    void release();
    size_t kept();
    // Forget a backend that threw; it may point to what it has freed.
    void abandon();

    const ggml_backend_dev_t dev;
    const ggml_backend_buffer_type_t buft;
    const bool is_cpu;
    std::recursive_mutex computing;
    ggml_gallocr_t intermediates = nullptr;  // under `computing`

    // Freed buffers by their size; a cudaMalloc and a cudaFree take longer than many a product.
    std::mutex pooling;
    std::multimap<size_t, ggml_backend_buffer_t> pool;
    size_t pooled = 0;

  private:
    ggml_backend_t backend_ = nullptr;
    ggml_backend_buffer_t anchor_ = nullptr;
};

// Throws where there is no such device.
Device & device_at(int index);

void free_buffer(ggml_backend_buffer_t buffer);

}  // namespace shim

struct llcuda_storage {
    llcuda_storage(shim::Device & device, char * data, size_t size) : device(device), data(data), size(size) {}

    shim::Device &   device;
    char *           data;
    size_t           size;
    ggml_backend_buffer_t buffer = nullptr;  // where the memory is ours
    size_t           room = 0;               // of the buffer, where the pool may take it
    std::atomic<int> references{1};
    void *           owner = nullptr;        // where it is not ours: what `let_go` takes
    void (*let_go)(void * owner) = nullptr;

    // A tensor of bytes over a part of it. Throws where that part is not all inside.
    ggml_tensor bytes(size_t offset, size_t count);
};
