// BF16 copies of a model's quantized matrices, which the patched CUDA backend (build/patches/bf16-copies.toml) computes
// with where a step has many rows.

#include "copies.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../src/llama-model.h"
#include "ggml-cpp.h"

using shim::guarded;

namespace {

// Null in a build without the patch or without a GPU.
struct Backend {
    bool (*uses_copy)(const ggml_tensor * matrix);
    void (*set_copy)(const ggml_tensor * matrix, ggml_tensor * copy);

    Backend() {
        uses_copy = shim::cuda_function<decltype(uses_copy)>("llcuda_uses_copy");
        set_copy = shim::cuda_function<decltype(set_copy)>("llcuda_set_copy");
    }
};

const Backend & backend() {
    static const Backend found;
    return found;
}

// The copies of a model on one device.
struct Copies {
    std::vector<const ggml_tensor *> matrices;
    ggml_context_ptr tensors;
    ggml_backend_buffer_ptr buffer;

    Copies() = default;
    Copies(Copies &&) = default;
    ~Copies() {
        for (const auto * matrix : matrices) {
            backend().set_copy(matrix, nullptr);
        }
    }
};

std::mutex mutex;
// Never destroyed: a model that the process leaves to its exit keeps what it has on the GPU.
auto & copies_of = *new std::multimap<const llama_model *, Copies>;

using Matrices = std::map<ggml_backend_buffer_type_t, std::vector<const ggml_tensor *>>;

// The matrices that would have copies, by where they lie.
Matrices copied(const llama_model * model) {
    Matrices found;
    if (backend().uses_copy) {
        for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
            if (!tensor->buffer) {
                continue;
            }
            ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
            ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
            if (device && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU && backend().uses_copy(tensor)) {
                found[type].push_back(tensor);
            }
        }
    }
    return found;
}

Copies copy(ggml_backend_buffer_type_t type, const std::vector<const ggml_tensor *> & matrices) {
    Copies copies;
    copies.tensors.reset(ggml_init({matrices.size() * ggml_tensor_overhead(), nullptr, true}));
    std::vector<ggml_tensor *> tensors;
    for (const auto * matrix : matrices) {
        tensors.push_back(ggml_new_tensor_2d(copies.tensors.get(), GGML_TYPE_BF16, matrix->ne[0], matrix->ne[1]));
    }
    copies.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(copies.tensors.get(), type));
    if (!copies.buffer) {
        throw std::runtime_error("failed to allocate the BF16 copies");
    }
    ggml_backend_buffer_set_usage(copies.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (size_t i = 0; i < matrices.size(); i++) {
        backend().set_copy(matrices[i], tensors[i]);
        copies.matrices.push_back(matrices[i]);
    }
    return copies;
}

}  // namespace

namespace shim {

size_t copies_size(const llama_model * model, ggml_backend_dev_t device) {
    size_t size = 0;
    for (const auto & [type, matrices] : copied(model)) {
        for (const auto * matrix : matrices) {
            size += ggml_backend_buft_get_device(type) == device ? ggml_nelements(matrix) * sizeof(ggml_bf16_t) : 0;
        }
    }
    return size;
}

void free_copies(const llama_model * model) {
    const std::lock_guard<std::mutex> lock(mutex);
    copies_of.erase(model);
}

}  // namespace shim

int64_t llcuda_copies_needed(const llama_model * model, const char * device) {
    return guarded<int64_t>(LLCUDA_EXCEPTION, [&]() -> int64_t {
        ggml_backend_dev_t dev = ggml_backend_dev_by_name(device);
        return dev ? shim::copies_size(model, dev) : 0;
    });
}

int llcuda_make_copies(const llama_model * model) {
    return guarded<int>(LLCUDA_EXCEPTION, [&] {
        std::vector<Copies> made;
        for (const auto & [type, matrices] : copied(model)) {
            made.push_back(copy(type, matrices));
        }
        const std::lock_guard<std::mutex> lock(mutex);
        for (auto & copies : made) {
            copies_of.emplace(model, std::move(copies));
        }
        return 0;
    });
}
