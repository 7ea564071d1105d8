// Devices for tensors, and the memory that they cache.

#include "tensor/device.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "tensor/gemm.h"

using shim::Device;
using shim::device_at;
using shim::guarded;

namespace {

constexpr size_t MAX_CACHE = size_t(256) << 20;  // bytes of freed tensors that a GPU caches

// Devices are never freed: tensors may outlive everything else.
const std::vector<Device *> & gpus() {
    static const auto & list = *[] {
        auto * devices = new std::vector<Device *>;
        auto * cuda = ggml_backend_reg_by_name("CUDA");
        for (size_t i = 0; cuda && i < ggml_backend_reg_dev_count(cuda); i++) {
            devices->push_back(new Device(ggml_backend_reg_dev_get(cuda, i)));
        }
        return devices;
    }();
    return list;
}

}  // namespace

namespace shim {

Device::Device(ggml_backend_dev_t device)
    : dev(device), buft(ggml_backend_dev_buffer_type(device)),
      is_cpu(ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {}

ggml_backend_t Device::backend() {
    if (!backend_) {
        backend_ = ggml_backend_dev_init(dev, nullptr);
        if (!backend_) {
            throw std::runtime_error(std::string("cannot use ") + ggml_backend_dev_name(dev));
        }
    }
    return backend_;
}

void Device::synchronize() {
    std::lock_guard<std::recursive_mutex> lock(computing);
    if (backend_) {
        ggml_backend_synchronize(backend_);
    }
}

ggml_backend_buffer_t Device::anchor() {
    std::lock_guard<std::recursive_mutex> lock(computing);
    if (!anchor_) {
        anchor_ = ggml_backend_buft_alloc_buffer(buft, 256);
        if (!anchor_) {
            throw std::runtime_error("failed to allocate a buffer of size 256");
        }
    }
    return anchor_;
}

ggml_backend_buffer_t Device::allocate(size_t size) {
    auto * buffer = ggml_backend_buft_alloc_buffer(buft, size);
    if (!buffer && cached()) {
        release();
        buffer = ggml_backend_buft_alloc_buffer(buft, size);
    }
    return buffer;
}

ggml_backend_buffer_t Device::from_cache(size_t size) {
    std::lock_guard<std::mutex> lock(caching_);
    const auto match = cache_.find(size);
    if (match == cache_.end()) {
        return nullptr;
    }
    auto * buffer = match->second;
    cache_.erase(match);
    cache_size_ -= size;
    return buffer;
}

bool Device::into_cache(size_t size, ggml_backend_buffer_t buffer) {
    std::lock_guard<std::mutex> lock(caching_);
    if (cache_size_ + size > MAX_CACHE) {
        return false;
    }
    cache_.emplace(size, buffer);
    cache_size_ += size;
    return true;
}

size_t Device::cached() {
    std::lock_guard<std::recursive_mutex> lock(computing);
    std::lock_guard<std::mutex> cache_lock(caching_);
    return cache_size_ + (intermediates ? ggml_gallocr_get_buffer_size(intermediates, 0) : 0);
}

void Device::release() {
    std::lock_guard<std::recursive_mutex> lock(computing);
    synchronize();
    if (intermediates) {
        ggml_gallocr_free(intermediates);
        intermediates = nullptr;
    }
    std::multimap<size_t, ggml_backend_buffer_t> freed;
    {
        std::lock_guard<std::mutex> cache_lock(caching_);
        freed.swap(cache_);
        cache_size_ = 0;
    }
    for (const auto & [size, buffer] : freed) {
        free_buffer(buffer);
    }
}

void Device::abandon() {
    intermediates = nullptr;
    if (is_cpu) {
        backend_ = nullptr;
    }
}

Device & device_at(int index) {
    if (index == LLCUDA_CPU) {
        static Device * const cpu = new Device(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
        return *cpu;
    }
    if (index < 0 || static_cast<size_t>(index) >= gpus().size()) {
        throw std::runtime_error("there is no GPU " + std::to_string(index));
    }
    return *gpus()[index];
}

void free_buffer(ggml_backend_buffer_t buffer) {
    guarded<bool>(false, [&] { ggml_backend_buffer_free(buffer); return true; });
}

}  // namespace shim

int llcuda_gpu_count(void) {
    return guarded<int>(0, [] { return static_cast<int>(gpus().size()); });
}

ggml_backend_dev_t llcuda_device_handle(int device) {
    return guarded<ggml_backend_dev_t>(nullptr, [&] { return device_at(device).dev; });
}

int llcuda_gpu_properties(int device, llcuda_gpu * gpu) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        device_at(device);
        static auto * const ask = shim::cuda_function<decltype(&llcuda_cuda_device)>("llcuda_cuda_device");
        if (!ask) {
            return LLCUDA_UNSUPPORTED;
        }
        int capability;
        ask(device, &capability, &gpu->multiprocessors, &gpu->warp_size, &gpu->shared_memory, &gpu->shared_memory_most);
        gpu->capability_major = capability / 10;
        gpu->capability_minor = capability % 10;
        return LLCUDA_OK;
    });
}

size_t llcuda_device_kept(int device) {
    return guarded<size_t>(0, [&] { return device_at(device).cached(); });
}

int llcuda_device_release(int device) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        device_at(device).release();
        return LLCUDA_OK;
    });
}

int llcuda_device_synchronize(int device) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        device_at(device).synchronize();
        return LLCUDA_OK;
    });
}

int llcuda_device_stream(int index, uintptr_t * stream) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        Device & device = device_at(index);
        *stream = 0;
        static auto * const ask = shim::cuda_function<decltype(&llcuda_backend_stream)>("llcuda_backend_stream");
        if (!device.is_cpu && ask) {
            std::lock_guard<std::recursive_mutex> lock(device.computing);
            *stream = reinterpret_cast<uintptr_t>(ask(device.backend()));
        }
        return LLCUDA_OK;
    });
}
