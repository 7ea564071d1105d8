// What libllcuda-cuda offers the shim: candidates of many rows of logits in one go, on the device.
// Errors are CUDA's numbers, 0 = fine.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

enum { LLCUDA_MOST_CANDIDATES = 256 };

// One row's task. index: of the row in the logits. draw: choose one token, by `uniform` in [0, 1), from the k best
// (k = 0: from all) after top_p and min_p, at `temperature`; its adjustments are made first, with the penalties.
// Without draw: return the k best, and behind them the tokens that its adjustments name. mask: row of the masks,
// -1 = none. adjust_begin, adjust_end: its part of the adjustments.
struct llcuda_row {
    int32_t index, k, draw, mask;
    float   top_p, min_p, temperature;
    float   repeat, frequency, presence;
    int32_t adjust_begin, adjust_end;
    double  uniform;
};

struct llcuda_adjustment {
    int32_t token, count;
    float   bias, before;  // before: for the device
};

struct llcuda_candidate {
    int32_t id;
    float   logit;
};

struct llcuda_selector;

// Null when the device has no room.
struct llcuda_selector * llcuda_selector_new(const void * logits, int32_t n_vocab, int32_t max_rows);
void llcuda_selector_free(struct llcuda_selector * selector);

// Begin every row's task over `logits` (on the device, n_vocab a row) behind what `backend`, a ggml_backend_t of
// CUDA, computes. masks: n_masks rows of (n_vocab + 31) / 32 words; bit i % 32 of word i / 32: token i is allowed.
// candidates: LLCUDA_MOST_CANDIDATES places a row, best first; counts: how many; they can be read after
// llcuda_select_wait, until the next call.
int llcuda_select(struct llcuda_selector * selector, void * backend, float * logits, int32_t n,
                  const struct llcuda_row * rows, const struct llcuda_adjustment * adjustments,
                  int32_t n_adjustments, const uint32_t * masks, int32_t n_masks,
                  const struct llcuda_candidate ** candidates, const int32_t ** counts);

// Wait for the tasks, or only for what was computed before them.
int llcuda_select_wait(struct llcuda_selector * selector, bool before);

const char * llcuda_cuda_error(int error);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
