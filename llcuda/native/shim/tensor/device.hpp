// Devices for tensors: their backends, the graphs that they compute, the memory that they cache.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

#include "common.hpp"
#include "ggml-alloc.h"

extern "C" {
#include "tensor/tensor.h"
}

namespace shim {

// A device and what computes on it; one graph at a time.
struct Device {
    explicit Device(ggml_backend_dev_t device);
    // The backend, created at first use. Call it under `computing`.
    ggml_backend_t backend();
    // Wait until the backend has computed everything.
    void synchronize();
    // A buffer for tensors in memory that is not ours; only its type counts.
    ggml_backend_buffer_t anchor();
    // Forget a backend that threw; it may point to freed memory.
    void abandon();

    // A new buffer, if need be after the cache was freed; null without memory.
    ggml_backend_buffer_t allocate(size_t size);
    // A cached buffer of this size; null without one.
    ggml_backend_buffer_t from_cache(size_t size);
    // Cache a buffer for the next tensor of this size; false if the cache is full.
    bool into_cache(size_t size, ggml_backend_buffer_t buffer);
    // Bytes of cached buffers and of intermediate results.
    size_t cached();
    // Free them.
    void release();

    const ggml_backend_dev_t dev;
    const ggml_backend_buffer_type_t buft;
    const bool is_cpu;
    std::recursive_mutex computing;
    ggml_gallocr_t intermediates = nullptr;  // under `computing`

  private:
    ggml_backend_t backend_ = nullptr;
    ggml_backend_buffer_t anchor_ = nullptr;

    // Freed buffers by their size: cudaMalloc and cudaFree take longer than small operations.
    std::mutex caching_;
    std::multimap<size_t, ggml_backend_buffer_t> cache_;
    size_t cache_size_ = 0;
};

// Throws if there is no such device.
Device & device_at(int index);

void free_buffer(ggml_backend_buffer_t buffer);

}  // namespace shim
