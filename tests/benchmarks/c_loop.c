// The plain loop in C over llama.h: what the Python loop is measured against.

#include <stdint.h>
#include <time.h>

#include "llama.h"

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Nanoseconds for n_tokens of sample, is_eog, piece and decode after the prompt; -1 on failure.
int64_t c_loop(struct llama_context * ctx, struct llama_sampler * chain, int32_t * prompt, int32_t n_prompt,
               int32_t n_tokens) {
    const struct llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
    char piece[64];
    llama_memory_clear(llama_get_memory(ctx), false);
    if (llama_decode(ctx, llama_batch_get_one(prompt, n_prompt))) {
        return -1;
    }
    llama_synchronize(ctx);
    const int64_t begin = now_ns();
    for (int32_t i = 0; i < n_tokens; i++) {
        llama_token token = llama_sampler_sample(chain, ctx, -1);
        llama_vocab_is_eog(vocab, token);
        llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
        if (llama_decode(ctx, llama_batch_get_one(&token, 1))) {
            return -1;
        }
    }
    return now_ns() - begin;
}
