// The KV cache and its state; arguments are checked first, as llama.cpp would assert on them.

#include "decode/context.hpp"

#include <algorithm>

namespace {

template <typename Call> int64_t on_memory(llcuda_context * context, Call && call) {
    return shim::entered<int64_t>(context, [&]() -> int64_t {
        return context->memory ? call() : int64_t{LLCUDA_UNSUPPORTED};
    });
}

bool known(const llcuda_context * context, int32_t seq) { return seq >= 0 && seq < context->n_seq_max; }

// Note that a sequence has no cells in common with others; seq: -1 = no sequence has.
void unshare(llcuda_context * context, int32_t seq) {
    for (int32_t other = 0; other < context->n_seq_max; other++) {
        if (seq < 0) {
            context->shared[other].assign(context->n_seq_max, false);
        } else {
            context->shared[seq][other] = context->shared[other][seq] = false;
        }
    }
}

// Note that `target` has cells of `source`, which may have cells of others.
void share(llcuda_context * context, int32_t source, int32_t target) {
    unshare(context, target);
    for (int32_t other = 0; other < context->n_seq_max; other++) {
        if (other == source || context->shared[source][other]) {
            context->shared[target][other] = context->shared[other][target] = true;
        }
    }
}

// Give a sequence cells of its own, as positions belong to cells, not to sequences. A state leaves out what a sliding
// window hides, and there must be room for a copy.
int detach(llcuda_context * context, int32_t seq) {
    const auto & shared = context->shared[seq];
    if (std::find(shared.begin(), shared.end(), true) == shared.end()) {
        return LLCUDA_OK;
    }
    int64_t cells = 0;
    for (int32_t other = 0; other < context->n_seq_max; other++) {
        const int64_t first = llama_memory_seq_pos_min(context->memory, other);
        cells += llama_memory_seq_pos_max(context->memory, other) - first + (first >= 0);
    }
    if (context->window > 0 || cells > llama_n_ctx(context->raw)) {
        return LLCUDA_UNSUPPORTED;
    }
    std::vector<uint8_t> state(llama_state_seq_get_size_ext(context->raw, seq, 0));
    const size_t size = llama_state_seq_get_data_ext(context->raw, state.data(), state.size(), seq, 0);
    if (!size || !llama_state_seq_set_data_ext(context->raw, state.data(), size, seq, 0)) {
        return LLCUDA_EXCEPTION;
    }
    unshare(context, seq);
    return LLCUDA_OK;
}

}  // namespace

int llcuda_memory_clear(llcuda_context * context, bool data) {
    return on_memory(context, [&]() -> int64_t {
        llama_memory_clear(context->memory, data);
        unshare(context, -1);
        return LLCUDA_OK;
    });
}

int llcuda_memory_remove(llcuda_context * context, int32_t seq, int32_t begin, int32_t end) {
    return on_memory(context, [&]() -> int64_t {
        if (seq != -1 && !known(context, seq)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        // llama.cpp would silently go on without the cells that have left the window. It reuses them without
        // swa_full or our patch swa-cells, and leaves them out of the state of a sequence.
        if (context->window > 0 && begin > 0 && seq >= 0) {
            const int32_t first = llama_memory_seq_pos_min(context->memory, seq);
            const int32_t last  = llama_memory_seq_pos_max(context->memory, seq);
            const bool to_the_end = begin <= last && (end < 0 || end > last);
            if (to_the_end && first > std::max(0, begin - context->window + 1)) {
                return LLCUDA_UNSUPPORTED;
            }
        }
        if (!llama_memory_seq_rm(context->memory, seq, begin, end)) {
            return LLCUDA_UNSUPPORTED;
        }
        if (seq < 0 || llama_memory_seq_pos_max(context->memory, seq) < 0) {
            unshare(context, seq);
        }
        return LLCUDA_OK;
    });
}

int llcuda_memory_copy(llcuda_context * context, int32_t source, int32_t target, int32_t begin, int32_t end) {
    return on_memory(context, [&]() -> int64_t {
        if (!known(context, source) || !known(context, target)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        if (source == target) {
            return LLCUDA_OK;
        }
        const int32_t last = llama_memory_seq_pos_max(context->memory, source);
        const bool partial = begin > 0 || (end >= 0 && end <= last);
        if (partial && !context->unified) {
            return LLCUDA_UNSUPPORTED;
        }
        // A copy onto cells that the target holds already would mix two texts.
        llama_memory_seq_rm(context->memory, target, -1, -1);
        llama_memory_seq_cp(context->memory, source, target, partial ? begin : -1, partial ? end : -1);
        if (context->unified) {
            share(context, source, target);
        }
        return LLCUDA_OK;
    });
}

int llcuda_memory_keep(llcuda_context * context, int32_t seq) {
    return on_memory(context, [&]() -> int64_t {
        if (!known(context, seq)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        llama_memory_seq_keep(context->memory, seq);
        unshare(context, -1);
        return LLCUDA_OK;
    });
}

int llcuda_memory_shift(llcuda_context * context, int32_t seq, int32_t begin, int32_t end, int32_t delta) {
    return on_memory(context, [&]() -> int64_t {
        if (!known(context, seq)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        if (!llama_memory_can_shift(context->memory)) {
            return LLCUDA_UNSUPPORTED;
        }
        const int64_t first = llama_memory_seq_pos_min(context->memory, seq);
        const int64_t last  = llama_memory_seq_pos_max(context->memory, seq);
        if (last < 0) {
            return LLCUDA_OK;
        }
        // A negative position would silently drop the cell.
        const int64_t moved = begin > first ? begin : first;
        if (moved + delta < 0 || last + delta >= INT32_MAX) {
            return LLCUDA_BAD_POSITION;
        }
        const int status = delta ? detach(context, seq) : LLCUDA_OK;
        if (status != LLCUDA_OK) {
            return status;
        }
        llama_memory_seq_add(context->memory, seq, begin, end, delta);
        return LLCUDA_OK;
    });
}

int llcuda_memory_divide(llcuda_context * context, int32_t seq, int32_t begin, int32_t end, int32_t divisor) {
    return on_memory(context, [&]() -> int64_t {
        if (!known(context, seq)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        if (divisor < 1 || !llama_memory_can_shift(context->memory)) {
            return divisor < 1 ? LLCUDA_BAD_POSITION : LLCUDA_UNSUPPORTED;
        }
        const int status = divisor > 1 ? detach(context, seq) : LLCUDA_OK;
        if (status != LLCUDA_OK) {
            return status;
        }
        llama_memory_seq_div(context->memory, seq, begin, end, divisor);
        return LLCUDA_OK;
    });
}

int llcuda_memory_range(llcuda_context * context, int32_t seq, int32_t * first, int32_t * last) {
    return on_memory(context, [&]() -> int64_t {
        if (!known(context, seq)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        *first = llama_memory_seq_pos_min(context->memory, seq);
        *last  = llama_memory_seq_pos_max(context->memory, seq);
        return LLCUDA_OK;
    });
}

int64_t llcuda_state_size(llcuda_context * context, int32_t seq, uint32_t flags) {
    return on_memory(context, [&]() -> int64_t {
        if (seq >= context->n_seq_max) {
            return LLCUDA_BAD_SEQUENCE;
        }
        return seq < 0 ? llama_state_get_size(context->raw) : llama_state_seq_get_size_ext(context->raw, seq, flags);
    });
}

int64_t llcuda_state_save(llcuda_context * context, int32_t seq, uint32_t flags, uint8_t * data, size_t size) {
    return on_memory(context, [&]() -> int64_t {
        const size_t written = seq < 0 ? llama_state_get_data(context->raw, data, size)
                                       : llama_state_seq_get_data_ext(context->raw, data, size, seq, flags);
        return written ? static_cast<int64_t>(written) : int64_t{LLCUDA_EXCEPTION};
    });
}

int64_t llcuda_state_load(llcuda_context * context, int32_t seq, uint32_t flags, const uint8_t * data, size_t size) {
    return on_memory(context, [&]() -> int64_t {
        if (seq >= context->n_seq_max) {
            return LLCUDA_BAD_SEQUENCE;
        }
        shim::forget_outputs(context);
        if (seq >= 0) {
            unshare(context, seq);
        } else if (context->unified) {  // as they were in the context that was saved: any two
            for (int32_t source = 0; source + 1 < context->n_seq_max; source++) {
                share(context, source, source + 1);
            }
        }
        const size_t read = seq < 0 ? llama_state_set_data(context->raw, data, size)
                                    : llama_state_seq_set_data_ext(context->raw, data, size, seq, flags);
        return read ? static_cast<int64_t>(read) : int64_t{LLCUDA_EXCEPTION};
    });
}
