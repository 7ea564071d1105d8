// Samplers: a chain over one row of logits, steps written in Python, grammars.

#include "context.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <vector>

using shim::guarded;

namespace {

thread_local bool step_failed = false;

// --- a step written in Python ---

void step_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    if (step_failed) {
        return;
    }
    int64_t selected = candidates->selected;
    size_t  kept     = candidates->size;
    // A step that samples in turn sets the flag for its own chain.
    const bool failed = llcuda_on_step_apply(sampler->ctx, candidates->data, candidates->size, &selected, &kept) != 0;
    step_failed = failed;
    candidates->size     = kept;
    candidates->selected = selected;
    candidates->sorted   = false;
}

const char * step_name(const llama_sampler *) { return "python"; }
void step_accept(llama_sampler * sampler, llama_token token) {
    const bool before = step_failed;
    step_failed = (llcuda_on_step_accept(sampler->ctx, token) != 0) || before;
}
void step_reset(llama_sampler * sampler) { step_failed |= llcuda_on_step_reset(sampler->ctx) != 0; }
void step_free(llama_sampler * sampler) { llcuda_on_step_free(sampler->ctx); }
llama_sampler * step_clone(const llama_sampler * sampler) {
    void * handle = llcuda_on_step_clone(sampler->ctx);
    if (!handle) {
        throw std::runtime_error("a Python step cannot be copied");
    }
    return llcuda_python_step(handle);
}

llama_sampler_i python_step = {
    step_name, step_accept, step_apply, step_reset, step_clone, step_free,
    nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

// adaptive-p keeps what it chose for the accept that follows; where none follows, its clone would read beyond
// the end of an array.
static void forget_choice(llama_sampler * chain) {
    for (int32_t i = 0; i < llama_sampler_chain_n(chain); i++) {
        llama_sampler * step = llama_sampler_chain_get(chain, i);
        if (!strcmp(llama_sampler_name(step), "adaptive-p")) {
            llama_sampler_accept(step, INT32_MAX);
        }
    }
}

static int choose(llama_sampler * chain, std::vector<llama_token_data> & candidates, int32_t n, int32_t * token) {
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
    step_failed = false;
    llama_sampler_apply(chain, &array);
    if (step_failed) {
        return LLCUDA_CALLBACK_FAILED;
    }
    if (array.selected < 0 || array.selected >= static_cast<int64_t>(array.size)) {
        return LLCUDA_NO_CANDIDATES;
    }
    const auto & chosen = array.data[array.selected];
    // Everything masked away: a distribution over -inf chooses anything.
    if (!(chosen.logit > -INFINITY) || chosen.id < 0 || chosen.id >= n) {
        return LLCUDA_NO_CANDIDATES;
    }
    *token = chosen.id;
    return LLCUDA_OK;
}

int shim::run_chain(llama_sampler * chain, const float * logits, int32_t n, int32_t superset, int32_t * token) {
    // A step in Python may sample in turn: each depth has candidates of its own.
    thread_local std::deque<std::vector<llama_token_data>> buffers;
    thread_local size_t depth = 0;
    struct Depth {
        Depth() { depth++; }
        ~Depth() { depth--; }
    } entered;
    if (buffers.size() < depth) {
        buffers.emplace_back();
    }
    auto & candidates = buffers[depth - 1];
    if (superset > 0 && superset < n / 4) {
        shim::best_candidates(logits, n, superset, candidates);
        if (candidates.empty()) {
            return LLCUDA_NO_CANDIDATES;
        }
    } else {
        candidates.resize(n);
        for (int32_t i = 0; i < n; i++) {
            candidates[i] = {i, logits[i], 0.0f};
        }
    }
    const int status = choose(chain, candidates, n, token);
    if (status != LLCUDA_OK) {
        forget_choice(chain);
        return status;
    }
    step_failed = false;
    llama_sampler_accept(chain, *token);
    return step_failed ? LLCUDA_CALLBACK_FAILED : LLCUDA_OK;
}

llama_sampler * llcuda_grammar(const llama_vocab * vocab, const char * grammar, const char * root,
                               const char ** patterns, size_t n_patterns, const int32_t * tokens, size_t n_tokens) {
    return guarded<llama_sampler *>(nullptr, [&] {
        return n_patterns + n_tokens == 0
            ? llama_sampler_init_grammar(vocab, grammar, root)
            : shim::lazy_grammar_new(vocab, grammar, root, patterns, n_patterns, tokens, n_tokens);
    });
}

llama_sampler * llcuda_python_step(void * handle) { return llama_sampler_init(&python_step, handle); }

llama_sampler * llcuda_sampler_clone(llama_sampler * chain) {
    return guarded<llama_sampler *>(nullptr, [&] { return llama_sampler_clone(chain); });
}

int llcuda_sampler_accept(llama_sampler * chain, int32_t token) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        step_failed = false;
        llama_sampler_accept(chain, token);
        return step_failed ? LLCUDA_CALLBACK_FAILED : LLCUDA_OK;
    });
}

int llcuda_sampler_reset(llama_sampler * chain) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        step_failed = false;
        llama_sampler_reset(chain);
        return step_failed ? LLCUDA_CALLBACK_FAILED : LLCUDA_OK;
    });
}

int llcuda_sample(llcuda_context * context, llama_sampler * chain, int32_t index, int32_t superset, int32_t * token) {
    thread_local std::vector<const float *> row(1);
    return shim::with_rows(context, &index, row, [&]() -> int {
        if (!row[0]) {
            return LLCUDA_NO_OUTPUT;
        }
        const int status = shim::run_chain(chain, row[0], context->n_vocab, superset, token);
        context->timings.sampled_tokens += status == LLCUDA_OK;
        return status;
    });
}

int llcuda_sample_logits(llama_sampler * chain, const float * logits, int32_t n, int32_t * token) {
    return guarded<int>(LLCUDA_EXCEPTION, [&] { return shim::run_chain(chain, logits, n, 0, token); });
}
