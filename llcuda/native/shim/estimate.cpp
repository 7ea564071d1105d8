// What a model and a context would take on each device, without taking it.
//
// llama.cpp simulates every allocation of a model that is loaded with `no_alloc`. Recurrent states, one
// row of logits for each sequence and some 50 bytes for each KV cell are made all the same, for a moment.

#include "common.hpp"

#include <cstring>
#include <memory>
#include <vector>

#include "../src/llama-ext.h"
#include "gguf.h"

using shim::guarded;

namespace {

using Context = std::unique_ptr<llama_context, void (*)(llama_context *)>;
using Gguf = std::unique_ptr<gguf_context, void (*)(gguf_context *)>;

// The key's value where it has the type that llama.cpp reads it as; else 0.
int64_t whole_number(const gguf_context * file, const std::string & key) {
    const int64_t id = gguf_find_key(file, key.c_str());
    return id >= 0 && gguf_get_kv_type(file, id) == GGUF_TYPE_UINT32 ? gguf_get_val_u32(file, id) : 0;
}

int read_facts(const char * path, llcuda_gguf_facts * facts) {
    const Gguf file(gguf_init_from_file(path, {true, nullptr}), gguf_free);
    if (!file) {
        return LLCUDA_INVALID_FILE;
    }
    std::string architecture;
    int64_t id = gguf_find_key(file.get(), "general.architecture");
    if (id >= 0 && gguf_get_kv_type(file.get(), id) == GGUF_TYPE_STRING) {
        architecture = gguf_get_val_str(file.get(), id);
    }
    strncpy(facts->architecture, architecture.c_str(), sizeof(facts->architecture) - 1);
    id = gguf_find_key(file.get(), "tokenizer.ggml.tokens");
    if (id >= 0 && gguf_get_kv_type(file.get(), id) == GGUF_TYPE_ARRAY) {
        facts->tokens = static_cast<int64_t>(gguf_get_arr_n(file.get(), id));
    }
    facts->layers         = whole_number(file.get(), architecture + ".block_count");
    facts->train_ctx_size = whole_number(file.get(), architecture + ".context_length");
    return LLCUDA_OK;
}

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

int llcuda_read_facts(const char * path, llcuda_gguf_facts * facts) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        *facts = {};
        return read_facts(path, facts);
    });
}

int llcuda_memory_needed(llama_model * model, llama_context_params params, llcuda_device_memory * devices,
                         int32_t capacity) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        int count = LLCUDA_INVALID_FILE;
        shim::survives([&] { count = simulate(model, params, devices, capacity); });
        return count;
    });
}
