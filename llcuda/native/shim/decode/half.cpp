// BF16 weights of models and adapters as F16 on GPUs whose Tensor Cores have no BF16: llama.cpp computes BF16 matrices there by F32
// copies that it makes in each step.

#include "decode/half.h"

#include <cstring>

#include "../src/llama-adapter.h"
#include "../src/llama-model.h"
#include "common.hpp"

using shim::guarded;

namespace {

// Whether a tensor lies in the plain memory of a GPU that CUDA computes on.
bool on_cuda(const ggml_tensor * tensor) {
    if (!tensor->buffer || !tensor->data) {
        return false;
    }
    ggml_backend_buffer_type_t type = ggml_backend_buffer_get_type(tensor->buffer);
    ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    return device && type == ggml_backend_dev_buffer_type(device)
        && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU
        && strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)), "CUDA") == 0;
}

void convert(ggml_tensor * tensor, bool everywhere, llcuda_conversion & done) {
    static auto * const multiplies = shim::cuda_function<decltype(&llcuda_multiplies_bf16)>("llcuda_multiplies_bf16");
    static auto * const to_f16 = shim::cuda_function<decltype(&llcuda_bf16_to_f16)>("llcuda_bf16_to_f16");
    if (!multiplies || !to_f16 || tensor->type != GGML_TYPE_BF16 || !ggml_is_contiguous(tensor) || !on_cuda(tensor)
        || (!everywhere && multiplies(tensor->data))) {
        return;
    }
    if (to_f16(tensor->data, ggml_nelements(tensor))) {
        tensor->type = GGML_TYPE_F16;  // as many bytes a number, so nothing else changes
        done.converted++;
    } else {
        done.kept++;
    }
}

}  // namespace

int llcuda_model_bf16_to_f16(const llama_model * model, bool everywhere, llcuda_conversion * done) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        *done = {};
        for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
            convert(tensor, everywhere, *done);
        }
        return LLCUDA_OK;
    });
}

int llcuda_adapter_bf16_to_f16(llama_adapter_lora * adapter, bool everywhere, llcuda_conversion * done) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        *done = {};
        for (const auto & [name, weight] : adapter->ab_map) {
            convert(weight.a, everywhere, *done);
            convert(weight.b, everywhere, *done);
        }
        return LLCUDA_OK;
    });
}
