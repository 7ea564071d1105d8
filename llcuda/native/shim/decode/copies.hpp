#pragma once

#include "common.hpp"

namespace shim {

// Bytes of the BF16 copies that a model, maybe loaded with no_alloc, would have on a device.
size_t copies_size(const llama_model * model, ggml_backend_dev_t device);

// Free the copies of a model, which no context computes with any more.
void free_copies(const llama_model * model);

}  // namespace shim
