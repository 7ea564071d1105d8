#include "decode/device_logits.hpp"

#include <stdexcept>
#include <string>

#include "common.hpp"
#include "llama-context.h"

// Of the patch kept-graphs: the logits of the graph that was computed last, which need not be the one that was built last.
extern "C" __attribute__((weak)) ggml_tensor * llcuda_graph_logits(const llama_context * context);

namespace {

// The functions of select.cu, which is compiled into the CUDA backend.
struct Kernels {
    decltype(&llcuda_selector_new)  make;
    decltype(&llcuda_selector_free) free;
    decltype(&llcuda_select)        select;
    decltype(&llcuda_select_wait)   wait;
    decltype(&llcuda_cuda_error)    error;

    Kernels() {
        auto find = [](auto & function, const char * name) {
            function = shim::cuda_function<std::decay_t<decltype(function)>>(name);
        };
        find(make, "llcuda_selector_new");
        find(free, "llcuda_selector_free");
        find(select, "llcuda_select");
        find(wait, "llcuda_select_wait");
        find(error, "llcuda_cuda_error");
    }
};

const Kernels & kernels() {
    static const Kernels found;
    return found;
}

void check(int error) {
    if (error) {
        throw std::runtime_error(std::string("sampling on the GPU: ") + kernels().error(error));
    }
}

ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
}

}  // namespace

namespace shim {

// What a sampler of llama.cpp returns is copied to the host; this one returns nothing.
llama_sampler_i DeviceLogits::keeper = {
    /* .name              = */ [](const llama_sampler *) { return "keep"; },
    /* .accept            = */ nullptr,
    /* .apply             = */ [](llama_sampler *, llama_token_data_array *) {},
    /* .reset             = */ nullptr,
    /* .clone             = */ nullptr,
    /* .free              = */ nullptr,
    /* .backend_init      = */ [](llama_sampler *, ggml_backend_buffer_type_t, uint32_t) { return true; },
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ DeviceLogits::keep,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

void DeviceLogits::keep(llama_sampler * sampler, ggml_context *, ggml_cgraph *, llama_sampler_data * data) {
    // A row of the logits, padded by one; a probe for the size of the graph has a tensor of its own.
    const ggml_tensor * padded = data->logits->view_src;
    if (padded && padded->src[0]) {
        static_cast<DeviceLogits *>(sampler->ctx)->logits_ = padded->src[0];
    }
    *data = {};
}

DeviceLogits::DeviceLogits(llama_context_params & params) {
    for (uint32_t seq = 0; seq < params.n_seq_max; seq++) {
        auto * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
        llama_sampler_chain_add(chain, llama_sampler_init(&keeper, this));
        chains_.push_back(chain);
        configs_.push_back({static_cast<llama_seq_id>(seq), chain});
    }
    params.samplers = configs_.data();
    params.n_samplers = configs_.size();
    params.n_outputs_max_per_seq = 0;  // as many as there are outputs
    max_rows_ = params.n_seq_max;
}

DeviceLogits::~DeviceLogits() {
    if (selector_) {
        kernels().free(selector_);
    }
    for (auto * chain : chains_) {
        llama_sampler_free(chain);
    }
}

void DeviceLogits::computed(llama_context * context, int32_t n_outputs) {
    context_ = context;
    n_outputs_ = n_outputs;
    if (llcuda_graph_logits) {
        logits_ = llcuda_graph_logits(context);
    }
    fetched_.clear();
}

// The logits hold those outputs only that the last micro-batch computed.
int32_t DeviceLogits::first_output() const {
    return n_outputs_ - static_cast<int32_t>(logits_->ne[1]);
}

const float * DeviceLogits::row(int32_t output) {
    if (!logits_ || output >= n_outputs_ || first_output() < 0 || output < first_output()) {
        return nullptr;
    }
    const size_t offset = (output - first_output()) * logits_->nb[1];
    if (ggml_backend_buffer_is_host(buffer_of(logits_))) {
        return reinterpret_cast<const float *>(static_cast<const char *>(logits_->data) + offset);
    }
    fetched_.resize(n_outputs_);
    auto & row = fetched_[output];
    if (row.empty()) {
        row.resize(logits_->ne[0]);
        ggml_backend_tensor_get(logits_, row.data(), offset, row.size() * sizeof(float));
    }
    return row.data();
}

bool DeviceLogits::reduces() {
    if (selector_ || !logits_ || !buffer_of(logits_) || !kernels().make) {
        return selector_ != nullptr;
    }
    auto * buffer = buffer_of(logits_);
    if (ggml_backend_buffer_is_host(buffer)) {
        return false;  // computed by the CPU: beside a GPU its memory is pinned, and CUDA's by its type
    }
    auto * device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
    if (!device || std::string(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device))) != "CUDA") {
        return false;
    }
    selector_ = kernels().make(logits_->data, static_cast<int32_t>(logits_->ne[0]), max_rows_);
    return selector_ != nullptr;
}

void DeviceLogits::begin(std::vector<llcuda_row> & rows, const std::vector<llcuda_adjustment> & adjustments,
                         const std::vector<uint32_t> & masks) {
    for (auto & row : rows) {
        row.index -= first_output();
        if (row.index < 0) {
            throw std::runtime_error("a later micro-batch has overwritten this row's logits");
        }
    }
    ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(context_->get_sched(), logits_);
    check(kernels().select(selector_, backend, static_cast<float *>(logits_->data), rows.size(), rows.data(),
                           adjustments.data(), adjustments.size(), masks.data(),
                           masks.size() / ((logits_->ne[0] + 31) / 32), &candidates_, &counts_));
    check(kernels().wait(selector_, true));
}

void DeviceLogits::end() { check(kernels().wait(selector_, false)); }

}  // namespace shim
