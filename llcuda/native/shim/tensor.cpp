// Devices for tensors, and the memory that tensors lie in.

#include "tensor.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "gemm.h"

using shim::Device;
using shim::device_at;
using shim::guarded;

namespace {

constexpr size_t KEPT_MOST = size_t(256) << 20;  // bytes of freed tensors, and of intermediate results, a GPU
constexpr size_t STEP_SMALL = 512, STEP_LARGE = size_t(2) << 20;  // cudaMalloc's own

// Devices stay until the process ends: tensors may outlive all else.
const std::vector<Device *> & gpus() {
    static const auto & found = *[] {
        auto * devices = new std::vector<Device *>;
        auto * cuda = ggml_backend_reg_by_name("CUDA");
        for (size_t i = 0; cuda && i < ggml_backend_reg_dev_count(cuda); i++) {
            devices->push_back(new Device(ggml_backend_reg_dev_get(cuda, i)));
        }
        return devices;
    }();
    return found;
}

size_t rounded(size_t size) {
    const size_t step = size < STEP_LARGE / 2 ? STEP_SMALL : STEP_LARGE;
    return (size + step - 1) / step * step;
}

ggml_backend_buffer_t from_pool(Device & device, size_t room) {
    std::lock_guard<std::mutex> lock(device.pooling);
    const auto found = device.pool.find(room);
    if (found == device.pool.end()) {
        return nullptr;
    }
    auto * buffer = found->second;
    device.pool.erase(found);
    device.pooled -= room;
    return buffer;
}

bool into_pool(Device & device, size_t room, ggml_backend_buffer_t buffer) {
    std::lock_guard<std::mutex> lock(device.pooling);
    if (room == 0 || device.pooled + room > KEPT_MOST) {
        return false;
    }
    device.pool.emplace(room, buffer);
    device.pooled += room;
    return true;
}

// With a second try when all that is kept has been freed.
ggml_backend_buffer_t allocate(Device & device, size_t size) {
    auto * buffer = ggml_backend_buft_alloc_buffer(device.buft, size);
    if (!buffer && device.kept()) {
        device.release();
        buffer = ggml_backend_buft_alloc_buffer(device.buft, size);
    }
    return buffer;
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

size_t Device::kept() {
    std::lock_guard<std::recursive_mutex> lock(computing);
    std::lock_guard<std::mutex> pool_lock(pooling);
    return pooled + (intermediates ? ggml_gallocr_get_buffer_size(intermediates, 0) : 0);
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
        std::lock_guard<std::mutex> pool_lock(pooling);
        freed.swap(pool);
        pooled = 0;
    }
    for (const auto & [room, buffer] : freed) {
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

ggml_tensor llcuda_storage::bytes(size_t offset, size_t count) {
    if (offset > size || count > size - offset) {
        throw std::runtime_error("outside the tensor's memory");
    }
    ggml_tensor tensor = {};
    tensor.type = GGML_TYPE_I8;
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        tensor.ne[i] = i == 0 ? static_cast<int64_t>(count) : 1;
        tensor.nb[i] = i == 0 ? 1 : count;
    }
    tensor.buffer = buffer ? buffer : device.anchor();
    tensor.data = data + offset;
    return tensor;
}

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
    return guarded<size_t>(0, [&] { return device_at(device).kept(); });
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

llcuda_storage * llcuda_storage_new(int index, int type, const int64_t * ne) {
    return guarded<llcuda_storage *>(nullptr, [&]() -> llcuda_storage * {
        Device & device = device_at(index);
        ggml_tensor tensor = {};
        tensor.type = static_cast<ggml_type>(type);
        size_t stride = ggml_type_size(tensor.type);
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            tensor.ne[i] = ne[i];
            tensor.nb[i] = stride;
            stride = i == 0 ? ggml_row_size(tensor.type, ne[0]) : stride * ne[i];
        }
        // The zeros behind quantised rows are written outside of the stream, so such memory is always fresh.
        const bool pools = !device.is_cpu && !ggml_is_quantized(tensor.type);
        const size_t size = ggml_backend_buft_get_alloc_size(device.buft, &tensor);
        const size_t room = pools ? rounded(size) : size;
        auto * buffer = pools ? from_pool(device, room) : nullptr;
        if (!buffer) {
            buffer = allocate(device, room);
        }
        if (!buffer) {
            shim::add_error("failed to allocate a buffer of size " + std::to_string(size));
            return nullptr;
        }
        auto * base = static_cast<char *>(ggml_backend_buffer_get_base(buffer));
        if (!pools && ggml_backend_tensor_alloc(buffer, &tensor, base) != GGML_STATUS_SUCCESS) {
            shim::free_buffer(buffer);
            return nullptr;
        }
        auto * storage = new llcuda_storage(device, base, size);
        storage->buffer = buffer;
        storage->room = pools ? room : 0;
        return storage;
    });
}

void llcuda_storage_release(llcuda_storage * storage) {
    if (--storage->references > 0) {
        return;
    }
    if (storage->let_go) {
        guarded<bool>(false, [&] { storage->device.synchronize(); return true; });  // its owner may write there at once
        storage->let_go(storage->owner);
    } else if (storage->device.is_cpu) {
        shim::free_buffer(storage->buffer);
    } else if (!into_pool(storage->device, storage->room, storage->buffer) && shim::gpus_answer()) {
        shim::free_buffer(storage->buffer);
    }
    delete storage;
}

void * llcuda_storage_data(llcuda_storage * storage) { return storage->data; }

int llcuda_storage_write(llcuda_storage * storage, size_t offset, const void * data, size_t size) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        ggml_tensor tensor = storage->bytes(offset, size);
        storage->device.synchronize();  // copies have a stream of their own
        ggml_backend_tensor_set(&tensor, data, 0, size);
        return LLCUDA_OK;
    });
}

int llcuda_storage_read(llcuda_storage * storage, size_t offset, void * data, size_t size) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        const ggml_tensor tensor = storage->bytes(offset, size);
        storage->device.synchronize();
        ggml_backend_tensor_get(&tensor, data, 0, size);
        return LLCUDA_OK;
    });
}

int llcuda_storage_clear(llcuda_storage * storage, size_t offset, size_t size) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        ggml_tensor tensor = storage->bytes(offset, size);
        storage->device.synchronize();
        ggml_backend_tensor_memset(&tensor, 0, 0, size);
        return LLCUDA_OK;
    });
}

int llcuda_storage_copy(llcuda_storage * target, size_t at, llcuda_storage * source, size_t from, size_t size) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        ggml_tensor there = target->bytes(at, size);
        const ggml_tensor here = source->bytes(from, size);
        source->device.synchronize();
        target->device.synchronize();
        ggml_backend_tensor_copy(&here, &there);
        return LLCUDA_OK;
    });
}
