// The results of the last decode: which rows there are, and their logits and embeddings.

#include "decode/context.hpp"

#include <algorithm>

using shim::now_ns;

void shim::wait(llcuda_context * context) {
    if (!context->pending) {
        return;
    }
    const int64_t begin = now_ns();
    llama_synchronize(context->raw);
    const int64_t elapsed = now_ns() - begin;
    (context->event.decode ? context->timings.decode_ns : context->timings.prefill_ns) += elapsed;
    context->event.ns += elapsed;
    context->pending = false;
}

int32_t shim::output_of(const llcuda_context * context, int32_t index) {
    const auto & outputs = context->outputs;
    if (index < 0) {
        const int64_t i = static_cast<int64_t>(outputs.size()) + index;
        return i < 0 ? -1 : static_cast<int32_t>(i);
    }
    const auto found = std::lower_bound(outputs.begin(), outputs.end(), index);
    return found == outputs.end() || *found != index ? -1 : static_cast<int32_t>(found - outputs.begin());
}

// The batch index that llama.cpp knows for an output.
static int32_t batch_index(const llcuda_context * context, int32_t output) {
    return context->outputs[output] - context->first_row;
}

const float * shim::logits_of(llcuda_context * context, int32_t output) {
    return context->device ? context->device->row(output)
                           : llama_get_logits_ith(context->raw, batch_index(context, output));
}

template <typename Read> static int read_output(llcuda_context * context, float ** row, Read && read) {
    return shim::entered<int>(context, [&]() -> int {
        shim::wait(context);
        *row = const_cast<float *>(read());
        return *row ? LLCUDA_OK : LLCUDA_NO_OUTPUT;
    });
}

int llcuda_output_indices(llcuda_context * context, int32_t * indices, int32_t capacity) {
    return shim::entered<int>(context, [&]() -> int {
        const auto count = static_cast<int32_t>(context->outputs.size());
        std::copy_n(context->outputs.begin(), std::min(count, capacity), indices);
        return count;
    });
}

int llcuda_logits(llcuda_context * context, int32_t index, float ** row) {
    return read_output(context, row, [&]() -> const float * {
        const int32_t output = shim::output_of(context, index);
        return output < 0 ? nullptr : shim::logits_of(context, output);
    });
}

int llcuda_embeddings(llcuda_context * context, int32_t index, float ** row) {
    return read_output(context, row, [&]() -> const float * {
        const int32_t output = shim::output_of(context, index);
        return output < 0 ? nullptr : llama_get_embeddings_ith(context->raw, batch_index(context, output));
    });
}

int llcuda_embeddings_seq(llcuda_context * context, int32_t seq, float ** row) {
    if (seq < 0 || seq >= context->n_seq_max) {
        return LLCUDA_BAD_SEQUENCE;
    }
    return read_output(context, row, [&]() -> const float * { return llama_get_embeddings_seq(context->raw, seq); });
}

int shim::with_rows(llcuda_context * context, const int32_t * indices, std::vector<const float *> & rows,
                    const std::function<int()> & call) {
    return shim::entered<int>(context, [&]() -> int {
        shim::wait(context);
        for (size_t i = 0; i < rows.size(); i++) {
            const int32_t output = shim::output_of(context, indices[i]);
            rows[i] = output < 0 ? nullptr : shim::logits_of(context, output);
        }
        const int64_t begin = now_ns();
        const int status = call();
        context->timings.sample_ns += now_ns() - begin;
        return status;
    });
}

bool llcuda_context_reduces(llcuda_context * context) {
    bool reduces = false;
    shim::entered<int>(context, [&]() -> int {
        reduces = context->device && context->device->reduces();
        return LLCUDA_OK;
    });
    return reduces;
}
