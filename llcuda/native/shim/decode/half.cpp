// A model's BF16 weights as F16 on GPUs whose Tensor Cores have no BF16: llama.cpp computes BF16 matrices there by F32
// copies that it makes in each step.

#include "decode/half.h"

#include <cstring>

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

}  // namespace

int llcuda_model_bf16_to_f16(const llama_model * model, bool everywhere, llcuda_conversion * done) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        static auto * const multiplies = shim::cuda_function<decltype(&llcuda_multiplies_bf16)>("llcuda_multiplies_bf16");
        static auto * const convert = shim::cuda_function<decltype(&llcuda_bf16_to_f16)>("llcuda_bf16_to_f16");
        *done = {};
        if (!multiplies || !convert) {
            return LLCUDA_OK;
        }
        for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
            if (tensor->type != GGML_TYPE_BF16 || !ggml_is_contiguous(tensor) || !on_cuda(tensor)
                || (!everywhere && multiplies(tensor->data))) {
                continue;
            }
            if (convert(tensor->data, ggml_nelements(tensor))) {
                tensor->type = GGML_TYPE_F16;  // as many bytes a number, so nothing else changes
                done->converted++;
            } else {
                done->kept++;
            }
        }
        return LLCUDA_OK;
    });
}
