// Recovery of a context after llama.cpp has thrown: it works after a GPU was out of memory, not after a GPU failed.

#include "decode/context.hpp"

#include <algorithm>
#include <utility>

#include "llama-context.h"

namespace {

std::atomic<bool> gpu_failed{false};

// Remove the rows of the batch from the memory; a sequence that cannot forget only these rows is emptied.
void forget_batch(llcuda_context * context) {
    for (size_t seq = 0; seq < context->first.size() && context->memory; seq++) {
        const int32_t first = context->first[seq];
        if (first < 0) {
            continue;
        }
        const bool whole = context->window > 0
            && llama_memory_seq_pos_min(context->memory, seq) > std::max(0, first - context->window + 1);
        if (whole || !llama_memory_seq_rm(context->memory, seq, first, -1)) {
            llama_memory_seq_rm(context->memory, seq, -1, -1);
        }
    }
    shim::forget_outputs(context);
}

}  // namespace

namespace shim {

void forget_cuda_error() {
    static auto * const forget = cuda_function<int (*)()>("cudaGetLastError");
    if (forget) {
        forget();
    }
}

bool gpus_answer() {
    for (size_t i = 0; i < ggml_backend_dev_count() && !gpu_failed; i++) {
        size_t free, total;
        auto * device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU
            && llcuda_memory_now(device, &free, &total) != LLCUDA_OK) {
            gpu_failed = true;
        }
    }
    return !gpu_failed;
}

// An error of CUDA is thrown between two kernels, where all is as it was before the batch. After others, std::bad_alloc
// among them, nobody knows what llama.cpp has done of the batch.
void recover(llcuda_context * context) {
    const bool by_cuda = std::exchange(cuda_failed, false);
    forget_cuda_error();
    auto works = [](auto && call) { return guarded<bool>(false, [&] { call(); return true; }); };
    if (context->computing && !by_cuda) {
        context->lost = true;
    } else if (!works([&] { llama_synchronize(context->raw); })) {
        context->lost = gpu_failed = true;
    } else if (context->unfinished) {
        context->lost = !works([&] { forget_batch(context); });
    }
    context->computing = context->unfinished = context->pending = false;
}

}  // namespace shim
