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
    // The backend, made at first use. Under `computing`.
    ggml_backend_t backend();
    // Wait for what was computed; a backend that was never used has nothing to wait for.
    void synchronize();
    // A buffer for tensors that lie in memory of somebody else: of it only the kind counts.
    ggml_backend_buffer_t anchor();
    // Forget a backend that threw; it may point to what it has freed.
    void abandon();

    // A new buffer, if need be in place of those that are cached; null where there is no room.
    ggml_backend_buffer_t allocate(size_t size);
    // A cached buffer of this size; null without one.
    ggml_backend_buffer_t from_cache(size_t size);
    // Cache a buffer for the next tensor of this size; false when the cache is full.
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

    // Freed buffers by their size; a cudaMalloc and a cudaFree take longer than many a product.
    std::mutex caching_;
    std::multimap<size_t, ggml_backend_buffer_t> cache_;
    size_t cache_size_ = 0;
};

// Throws where there is no such device.
Device & device_at(int index);

void free_buffer(ggml_backend_buffer_t buffer);

}  // namespace shim
