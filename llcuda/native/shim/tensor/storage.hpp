// Memory of tensors on a device, counted.
#pragma once

#include <atomic>

#include "tensor/device.hpp"

struct llcuda_storage {
    llcuda_storage(shim::Device & device, char * data, size_t size) : device(device), data(data), size(size) {}

    shim::Device &   device;
    char *           data;
    size_t           size;
    ggml_backend_buffer_t buffer = nullptr;  // if the memory is ours
    size_t           room = 0;               // bytes of the buffer, if the device may cache it
    std::atomic<int> references{1};
    void *           owner = nullptr;        // if the memory is not ours: the argument of `let_go`
    void (*let_go)(void * owner) = nullptr;

    // A tensor of bytes over a part of the memory. Throws if the part is not inside.
    ggml_tensor bytes(size_t offset, size_t count);
};
