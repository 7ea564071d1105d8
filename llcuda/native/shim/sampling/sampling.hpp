// What the files of this folder share: a row of logits, and the ways to choose from it.
#pragma once

#include <vector>

#include "decode/context.hpp"

namespace shim {

// A row to sample: its logits, or the best of them and the extras, as a device chose them.
struct Row {
    const float *            logits = nullptr;
    const llcuda_candidate * best   = nullptr;
    int32_t                  n_best = 0;
};

// Choose a token from a row of n logits; the chain accepts it. NaN is left out.
int sample_row(const llcuda_sampling & sampling, const Row & row, int32_t n, int32_t * token);

// Why nothing was left to choose from n logits: LLCUDA_NOT_A_NUMBER where some are NaN, or LLCUDA_NO_CANDIDATES.
int why_none_is_left(const float * logits, int32_t n);

// Give a row the token that its sampling forces; the chain accepts it.
int take_forced(const llcuda_sampling & sampling, int32_t * token);

// The part of a device's task that a draw decides; its random number is used up.
void fill_draw(llcuda_draw * draw, llcuda_row & task, std::vector<llcuda_adjustment> & adjustments);

// The `count` > 0 highest of n logits, of equal ones the first, NaN left out, in the order of their ids.
void best_candidates(const float * logits, int32_t n, int32_t count, std::vector<llama_token_data> & out);

// A grammar that begins at a pattern or token; null when it does not parse.
llama_sampler * lazy_grammar_new(const llama_vocab * vocab, const char * grammar, const char * root,
                                 const char ** patterns, size_t n_patterns, const int32_t * tokens, size_t n_tokens);

}  // namespace shim
