// The memory that a model and a context would take of each device.
//
// llama.cpp simulates every allocation of a model that is loaded with `no_alloc`, except recurrent states, one row
// of logits for each sequence and some 50 bytes for each KV cell, which it allocates for a moment.

#include "common.hpp"

#include <memory>
#include <vector>

#include "../src/llama-ext.h"

using shim::guarded;

namespace {

using Context = std::unique_ptr<llama_context, void (*)(llama_context *)>;

int simulate(llama_model * model, llama_context_params params, llcuda_device_memory * found, int32_t capacity) {
    const Context context(llama_init_from_model(model, params), llama_free);
    if (!context) {
        return LLCUDA_EXCEPTION;
    }
    std::vector<ggml_backend_dev_t> devices;
    for (int32_t i = 0; i < llama_model_n_devices(model); i++) {
        devices.push_back(llama_model_get_device(model, i));
    }
    devices.push_back(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    const auto count = static_cast<int32_t>(devices.size());
    if (count > capacity) {
        return LLCUDA_UNSUPPORTED;
    }
    for (int32_t i = 0; i < count; i++) {
        found[i] = {ggml_backend_dev_name(devices[i]), ggml_backend_dev_type(devices[i]), 0, 0, 0, 0, 0};
        ggml_backend_dev_memory(devices[i], &found[i].free, &found[i].total);
    }
    for (const auto & [type, bytes] : llama_get_memory_breakdown(context.get())) {
        int32_t i = 0;
        // Pinned memory belongs to a GPU by name and lies in the CPU's, as what no device here has.
        const auto * device = ggml_backend_buft_is_host(type) ? nullptr : ggml_backend_buft_get_device(type);
        while (i < count - 1 && devices[i] != device) {
            i++;
        }
        found[i].model   += bytes.model;
        found[i].context += bytes.context;
        found[i].compute += bytes.compute;
    }
    return count;
}

}  // namespace

int llcuda_memory_needed(llama_model * model, llama_context_params params, llcuda_device_memory * devices,
                         int32_t capacity) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        int count = LLCUDA_INVALID_FILE;
        shim::survives([&] { count = simulate(model, params, devices, capacity); });
        return count;
    });
}
