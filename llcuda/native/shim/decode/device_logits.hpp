// Logits that stay on the device that computed them.
#pragma once

#include <vector>

#include "ggml-backend.h"
#include "llama.h"
#include "sampling/select.h"

namespace shim {

class DeviceLogits {
  public:
    // Let a context with `params` keep the logits: a sampler that does nothing for each sequence makes llama.cpp copy no
    // row.
    explicit DeviceLogits(llama_context_params & params);
    ~DeviceLogits();
    DeviceLogits(const DeviceLogits &) = delete;

    // Note that a decode computes so many outputs; rows that were read before are forgotten.
    void computed(llama_context * context, int32_t n_outputs);

    // The logits of an output of the last decode, which must be complete, copied to the host; null if a later micro-batch
    // of that decode has overwritten them.
    const float * row(int32_t output);

    // Whether the device can run tasks; known after the first decode.
    bool reduces();

    // Begin a task for each of `rows`, whose index is an output of the last decode, and wait for the decode.
    void begin(std::vector<llcuda_row> & rows, const std::vector<llcuda_adjustment> & adjustments,
               const std::vector<uint32_t> & masks);
    // Wait for the tasks.
    void end();
    const llcuda_candidate * candidates(size_t row) const { return candidates_ + row * LLCUDA_MOST_CANDIDATES; }
    int32_t count(size_t row) const { return counts_[row]; }

  private:
    static void keep(llama_sampler * sampler, ggml_context *, ggml_cgraph *, llama_sampler_data * data);
    int32_t first_output() const;

    static llama_sampler_i keeper;
    std::vector<llama_sampler *>          chains_;
    std::vector<llama_sampler_seq_config> configs_;
    llama_context * context_ = nullptr;
    ggml_tensor *   logits_  = nullptr;  // of the graph in use
    int32_t         n_outputs_ = 0, max_rows_ = 0;
    std::vector<std::vector<float>> fetched_;

    llcuda_selector *        selector_   = nullptr;
    const llcuda_candidate * candidates_ = nullptr;
    const int32_t *          counts_     = nullptr;
};

}  // namespace shim
