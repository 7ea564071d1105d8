// The interface of select.cu, which is compiled into the CUDA backend: candidates of many rows of logits at once, on the
// device. Errors are numbers of CUDA, 0 = none.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

enum { LLCUDA_MOST_CANDIDATES = 256 };

// The task of one row.
// index: that of the row in the logits.
// draw: choose one token, by `uniform` in [0, 1), from the k best (k = 0: from all) after top_p and min_p, at
//     `temperature`; the row's adjustments and the penalties come first. Without draw: return the k best, and behind
//     them the tokens that its adjustments name.
// mask: the row of the masks, -1 = none.
// adjust_begin, adjust_end: the row's part of the adjustments.
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

// Null if the device has too little memory.
struct llcuda_selector * llcuda_selector_new(const void * logits, int32_t n_vocab, int32_t max_rows);
void llcuda_selector_free(struct llcuda_selector * selector);

// Begin the task of every row over `logits`, on the device with n_vocab a row, as the next work of `backend`, a
// ggml_backend_t of CUDA.
// masks: n_masks rows of (n_vocab + 31) / 32 words; bit i % 32 of word i / 32 allows token i.
// candidates: get LLCUDA_MOST_CANDIDATES places a row, best first; counts: get how many of them are filled. Both can be
//     read after llcuda_select_wait, until the next call.
int llcuda_select(struct llcuda_selector * selector, void * backend, float * logits, int32_t n,
                  const struct llcuda_row * rows, const struct llcuda_adjustment * adjustments,
                  int32_t n_adjustments, const uint32_t * masks, int32_t n_masks,
                  const struct llcuda_candidate ** candidates, const int32_t ** counts);

// Wait for the tasks, or with `before` only for the work before them.
int llcuda_select_wait(struct llcuda_selector * selector, bool before);

const char * llcuda_cuda_error(int error);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
