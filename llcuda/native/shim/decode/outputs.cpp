// The results of the last decode: which rows there are, and their logits and embeddings.

#include "decode/context.hpp"

#include <algorithm>
#include <cstring>
#include <new>

using shim::now_ns;
using shim::SharedRow;

namespace {

// Bytes before the values of a shared row: how many hold it. Keeps the values aligned for vectors.
constexpr size_t HEAD = 64;

std::atomic<int> & holders(float * row) {
    return *reinterpret_cast<std::atomic<int> *>(reinterpret_cast<char *>(row) - HEAD);
}

SharedRow share(const float * values, size_t n) {
    auto * memory = static_cast<char *>(::operator new(HEAD + n * sizeof(float)));
    new (memory) std::atomic<int>(1);
    std::memcpy(memory + HEAD, values, n * sizeof(float));
    return SharedRow(reinterpret_cast<float *>(memory + HEAD));
}

}  // namespace

void llcuda_row_release(float * row) {
    if (--holders(row) == 0) {
        ::operator delete(reinterpret_cast<char *>(row) - HEAD);
    }
}

void shim::forget_outputs(llcuda_context * context) {
    context->outputs.clear();
    context->read.logits.clear();
    context->read.embeddings.clear();
    context->read.sequences.clear();
}

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
    const auto & read = context->read.logits;
    if (static_cast<size_t>(output) < read.size() && read[output]) {
        return read[output].get();
    }
    return context->device ? context->device->row(output)
                           : llama_get_logits_ith(context->raw, batch_index(context, output));
}

// Copy the row number i of `rows`, which `read` finds, unless that was done since the last decode, and give it out.
template <typename Read>
static int read_row(llcuda_context * context, std::vector<SharedRow> & rows, int32_t i, size_t size, float ** row,
                    Read && read) {
    if (i < 0) {
        return LLCUDA_NO_OUTPUT;
    }
    shim::wait(context);
    rows.resize(std::max<size_t>(rows.size(), i + 1));
    if (!rows[i]) {
        const float * values = read();
        if (!values) {
            return LLCUDA_NO_OUTPUT;
        }
        rows[i] = share(values, size);
    }
    *row = rows[i].get();
    ++holders(*row);
    return LLCUDA_OK;
}

int llcuda_output_indices(llcuda_context * context, int32_t * indices, int32_t capacity) {
    return shim::entered<int>(context, [&]() -> int {
        const auto count = static_cast<int32_t>(context->outputs.size());
        std::copy_n(context->outputs.begin(), std::min(count, capacity), indices);
        return count;
    });
}

int llcuda_logits(llcuda_context * context, int32_t index, float ** row) {
    return shim::entered<int>(context, [&]() -> int {
        const int32_t output = shim::output_of(context, index);
        return read_row(context, context->read.logits, output, context->n_vocab, row,
                        [&] { return shim::logits_of(context, output); });
    });
}

int llcuda_embeddings(llcuda_context * context, int32_t index, float ** row) {
    return shim::entered<int>(context, [&]() -> int {
        const int32_t output = shim::output_of(context, index);
        const size_t size = llama_model_n_embd_out(llama_get_model(context->raw));
        return read_row(context, context->read.embeddings, output, size, row,
                        [&] { return llama_get_embeddings_ith(context->raw, batch_index(context, output)); });
    });
}

int llcuda_embeddings_seq(llcuda_context * context, int32_t seq, float ** row) {
    if (seq < 0 || seq >= context->n_seq_max) {
        return LLCUDA_BAD_SEQUENCE;
    }
    return shim::entered<int>(context, [&]() -> int {
        const auto * model = llama_get_model(context->raw);
        const bool ranks = llama_pooling_type(context->raw) == LLAMA_POOLING_TYPE_RANK;
        const size_t size = ranks ? llama_model_n_cls_out(model) : llama_model_n_embd_out(model);
        return read_row(context, context->read.sequences, seq, size, row,
                        [&] { return llama_get_embeddings_seq(context->raw, seq); });
    });
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
