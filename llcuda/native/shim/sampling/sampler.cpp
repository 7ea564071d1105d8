// Samplers: chains over one row of logits, steps written in Python, grammars.

#include "sampling/sampling.hpp"

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

static int choose(llama_sampler * chain, std::vector<llama_token_data> & candidates, bool ranked, int32_t n,
                  int32_t * token) {
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, ranked};
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

// Add the extras that are not among the candidates; in the order of ids, as llama.cpp's own candidates are.
template <typename Logit>
static void add_extras(const llcuda_sampling & sampling, std::vector<llama_token_data> & candidates, Logit && logit) {
    const auto before = [](const llama_token_data & a, const llama_token_data & b) { return a.id < b.id; };
    std::sort(candidates.begin(), candidates.end(), before);
    for (int32_t i = 0; i < sampling.n_extras; i++) {
        const llama_token_data extra = {sampling.extras[i], logit(i), 0.0f};
        const auto place = std::lower_bound(candidates.begin(), candidates.end(), extra, before);
        if (place == candidates.end() || place->id != extra.id) {
            candidates.insert(place, extra);
        }
    }
}

// Candidates of the row; returns whether the best come first.
static bool gather(const llcuda_sampling & sampling, const shim::Row & row, int32_t n,
                   std::vector<llama_token_data> & candidates) {
    if (row.best) {
        candidates.resize(row.n_best);
        for (int32_t i = 0; i < row.n_best; i++) {
            candidates[i] = {row.best[i].id, row.best[i].logit, 0.0f};
        }
        if (!sampling.ranked) {
            add_extras(sampling, candidates, [&](int32_t i) { return row.best[sampling.superset + i].logit; });
        }
        return sampling.ranked;
    }
    const float * logits = row.logits;
    thread_local std::vector<float> masked;
    if (sampling.mask) {
        masked.resize(n);
        for (int32_t i = 0; i < n; i++) {
            masked[i] = sampling.mask[i >> 5] >> (i & 31) & 1 ? logits[i] : -INFINITY;
        }
        logits = masked.data();
    }
    if (sampling.superset > 0 && sampling.superset < n / 4) {
        shim::best_candidates(logits, n, sampling.superset, candidates);
        if (sampling.n_extras) {
            add_extras(sampling, candidates, [&](int32_t i) { return logits[sampling.extras[i]]; });
        }
        return false;
    }
    candidates.resize(n);
    for (int32_t i = 0; i < n; i++) {
        candidates[i] = {i, std::isnan(logits[i]) ? -INFINITY : logits[i], 0.0f};  // no sort would end in order with NaN
    }
    return false;
}

int shim::why_none_is_left(const float * logits, int32_t n) {
    const bool nan = std::any_of(logits, logits + n, [](float logit) { return std::isnan(logit); });
    return nan ? LLCUDA_NOT_A_NUMBER : LLCUDA_NO_CANDIDATES;
}

int shim::take_forced(const llcuda_sampling & sampling, int32_t * token) {
    *token = sampling.forced;
    if (sampling.draw) {
        llcuda_draw_accept(sampling.draw, *token);
    }
    step_failed = false;
    llama_sampler_accept(sampling.chain, *token);
    return step_failed ? LLCUDA_CALLBACK_FAILED : LLCUDA_OK;
}

int shim::sample_row(const llcuda_sampling & sampling, const Row & row, int32_t n, int32_t * token) {
    if (row.best && sampling.draw) {
        if (row.n_best == 0) {
            return LLCUDA_NO_CANDIDATES;
        }
        *token = row.best[0].id;
        llcuda_draw_accept(sampling.draw, *token);
        return LLCUDA_OK;
    }
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
    const bool ranked = gather(sampling, row, n, candidates);
    const int status = candidates.empty() ? static_cast<int>(LLCUDA_NO_CANDIDATES)
                                          : choose(sampling.chain, candidates, ranked, n, token);
    if (status != LLCUDA_OK) {
        forget_choice(sampling.chain);
        return status == LLCUDA_NO_CANDIDATES && row.logits ? why_none_is_left(row.logits, n) : status;
    }
    if (sampling.draw) {
        llcuda_draw_accept(sampling.draw, *token);
    }
    step_failed = false;
    llama_sampler_accept(sampling.chain, *token);
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

int llcuda_sample(llcuda_context * context, const llcuda_sampling * sampling, int32_t index, int32_t * token) {
    thread_local std::vector<const float *> row(1);
    return shim::with_rows(context, &index, row, [&]() -> int {
        if (!row[0]) {
            return LLCUDA_NO_OUTPUT;
        }
        const int status = shim::sample_row(*sampling, {row[0], nullptr, 0}, context->n_vocab, token);
        context->timings.sampled_tokens += status == LLCUDA_OK;
        return status;
    });
}

int llcuda_sample_logits(llama_sampler * chain, const float * logits, int32_t n, int32_t * token) {
    llcuda_sampling sampling = {};
    sampling.chain = chain;
    return guarded<int>(LLCUDA_EXCEPTION, [&] { return shim::sample_row(sampling, {logits, nullptr, 0}, n, token); });
}
