// The memory of tensors: allocated, adopted, copied, freed.

#include <Python.h>

#include "tensor/storage.hpp"

#include <stdexcept>
#include <string>

using shim::guarded;

namespace {

constexpr size_t STEP_SMALL = 512, STEP_LARGE = size_t(2) << 20;  // as cudaMalloc rounds

size_t rounded(size_t size) {
    const size_t step = size < STEP_LARGE / 2 ? STEP_SMALL : STEP_LARGE;
    return (size + step - 1) / step * step;
}

bool into_cache(llcuda_storage & storage) {
    return storage.room > 0 && storage.device.into_cache(storage.room, storage.buffer);
}

}  // namespace

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

llcuda_storage * llcuda_storage_new(int index, int type, const int64_t * ne) {
    return guarded<llcuda_storage *>(nullptr, [&]() -> llcuda_storage * {
        auto & device = shim::device_at(index);
        ggml_tensor tensor = {};
        tensor.type = static_cast<ggml_type>(type);
        size_t stride = ggml_type_size(tensor.type);
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            tensor.ne[i] = ne[i];
            tensor.nb[i] = stride;
            stride = i == 0 ? ggml_row_size(tensor.type, ne[0]) : stride * ne[i];
        }
        // The zeros behind quantized rows are written outside of the stream, so such memory is never cached.
        const bool caches = !device.is_cpu && !ggml_is_quantized(tensor.type);
        const size_t size = ggml_backend_buft_get_alloc_size(device.buft, &tensor);
        const size_t room = caches ? rounded(size) : size;
        auto * buffer = caches ? device.from_cache(room) : nullptr;
        if (!buffer) {
            buffer = device.allocate(room);
        }
        if (!buffer) {
            shim::add_error("failed to allocate a buffer of size " + std::to_string(size));
            return nullptr;
        }
        auto * base = static_cast<char *>(ggml_backend_buffer_get_base(buffer));
        if (!caches && ggml_backend_tensor_alloc(buffer, &tensor, base) != GGML_STATUS_SUCCESS) {
            shim::free_buffer(buffer);
            return nullptr;
        }
        auto * storage = new llcuda_storage(device, base, size);
        storage->buffer = buffer;
        storage->room = caches ? room : 0;
        return storage;
    });
}

llcuda_storage * llcuda_storage_adopt(int device, void * data, size_t size, void * owner) {
    return guarded<llcuda_storage *>(nullptr, [&]() -> llcuda_storage * {
        auto * storage = new llcuda_storage(shim::device_at(device), static_cast<char *>(data), size);
        const PyGILState_STATE state = PyGILState_Ensure();
        Py_INCREF(static_cast<PyObject *>(owner));
        PyGILState_Release(state);
        storage->owner = owner;
        storage->let_go = [](void * object) {
            if (Py_IsInitialized()) {
                const PyGILState_STATE state = PyGILState_Ensure();
                Py_DECREF(static_cast<PyObject *>(object));
                PyGILState_Release(state);
            }
        };
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
    } else if (!into_cache(*storage) && shim::gpus_answer()) {
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
