// DLPack: tensors to and from other libraries, without a copy.

#include <Python.h>

#include "tensor/storage.hpp"

#include <memory>
#include <vector>

using shim::guarded;

namespace {

template <typename Managed> struct Export {
    ~Export() { llcuda_storage_release(storage); }

    Managed              managed = {};
    std::vector<int64_t> shape, strides;
    llcuda_storage *     storage = nullptr;
};

template <typename Managed> Managed * exported(llcuda_storage * storage, const llcuda_dl_tensor & tensor) {
    storage->references++;
    storage->room = 0;  // others may still write there when they let go: freeing waits for that, a cache would not
    auto * whole = new Export<Managed>;
    whole->storage = storage;
    whole->shape.assign(tensor.shape, tensor.shape + tensor.ndim);
    whole->strides.assign(tensor.strides, tensor.strides + tensor.ndim);
    Managed & managed = whole->managed;
    managed.tensor = tensor;
    managed.tensor.data = storage->data;
    managed.tensor.shape = whole->shape.data();
    managed.tensor.strides = whole->strides.data();
    managed.manager = whole;
    managed.deleter = [](Managed * self) { delete static_cast<Export<Managed> *>(self->manager); };
    return &managed;
}

template <typename Managed> void let_go(void * managed) {
    auto * self = static_cast<Managed *>(managed);
    if (self->deleter) {
        self->deleter(self);
    }
}

template <typename Managed> bool dropped(PyObject * capsule, const char * name) {
    if (!PyCapsule_IsValid(capsule, name)) {
        return false;
    }
    let_go<Managed>(PyCapsule_GetPointer(capsule, name));
    return true;
}

}  // namespace

void * llcuda_dlpack_new(llcuda_storage * storage, const llcuda_dl_tensor * tensor, bool versioned, uint64_t flags) {
    return guarded<void *>(nullptr, [&]() -> void * {
        if (!versioned) {
            return exported<llcuda_dl_managed>(storage, *tensor);
        }
        auto * managed = exported<llcuda_dl_versioned>(storage, *tensor);
        managed->major = 1;
        managed->flags = flags;
        return managed;
    });
}

// The name of a capsule that was taken is another one.
void llcuda_dlpack_drop(void * capsule) {
    auto * object = static_cast<PyObject *>(capsule);
    if (!dropped<llcuda_dl_managed>(object, "dltensor")) {
        dropped<llcuda_dl_versioned>(object, "dltensor_versioned");
    }
}

llcuda_storage * llcuda_storage_take(int device, void * managed, bool versioned, size_t size) {
    return guarded<llcuda_storage *>(nullptr, [&]() -> llcuda_storage * {
        const auto & tensor = versioned ? static_cast<llcuda_dl_versioned *>(managed)->tensor
                                        : static_cast<llcuda_dl_managed *>(managed)->tensor;
        auto * data = static_cast<char *>(tensor.data) + tensor.byte_offset;
        auto * storage = new llcuda_storage(shim::device_at(device), data, size);
        storage->owner = managed;
        storage->let_go = versioned ? let_go<llcuda_dl_versioned> : let_go<llcuda_dl_managed>;
        return storage;
    });
}
