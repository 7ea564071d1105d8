// llama.cpp's lazy grammars, on a larger stack.
//
// llama.cpp searches the trigger with std::regex in the whole text so far, and libstdc++ recurses for every character:
// some 24,000 characters overflow a stack of 8 MiB and end the process. So tokens are accepted on a stack of their own.

#include "sampling/sampling.hpp"

#include <memory>
#include <stdexcept>

#include <pthread.h>

namespace {

constexpr size_t STACK_BYTES = size_t{512} << 20;  // reserved, not used
constexpr size_t MOST_TEXT   = size_t{1} << 20;    // bytes; measured: 350 bytes of stack a character

struct Lazy {
    llama_sampler *     grammar;
    const llama_vocab * vocab;
    size_t              text;  // bytes accepted since the last reset
};

struct Accept {
    llama_sampler * grammar;
    llama_token     token;
    std::string     error;
};

void * run_accept(void * data) {
    auto * accept = static_cast<Accept *>(data);
    shim::Guard guard;
    try {
        llama_sampler_accept(accept->grammar, accept->token);
    } catch (const std::exception & error) {
        accept->error = *error.what() ? error.what() : "unknown exception";
    }
    return nullptr;
}

Lazy * of(const llama_sampler * sampler) { return static_cast<Lazy *>(sampler->ctx); }

const char * lazy_name(const llama_sampler *) { return "grammar"; }

void lazy_accept(llama_sampler * sampler, llama_token token) {
    Lazy * lazy = of(sampler);
    const int32_t size = llama_token_to_piece(lazy->vocab, token, nullptr, 0, 0, true);
    lazy->text += size < 0 ? -size : size;
    if (lazy->text > MOST_TEXT) {
        throw std::runtime_error("a lazy grammar takes texts of at most 1 MiB");
    }
    Accept accept = {lazy->grammar, token, {}};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_t thread;
    const int failed = pthread_create(&thread, &attributes, run_accept, &accept);
    pthread_attr_destroy(&attributes);
    if (failed) {
        throw std::runtime_error("no thread for the regular expressions of a lazy grammar");
    }
    pthread_join(thread, nullptr);
    if (!accept.error.empty()) {
        throw std::runtime_error(accept.error);
    }
}

void lazy_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    llama_sampler_apply(of(sampler)->grammar, candidates);
}

void lazy_reset(llama_sampler * sampler) {
    of(sampler)->text = 0;
    llama_sampler_reset(of(sampler)->grammar);
}

void lazy_free(llama_sampler * sampler) {
    llama_sampler_free(of(sampler)->grammar);
    delete of(sampler);
}

llama_sampler * lazy_clone(const llama_sampler * sampler);

llama_sampler_i lazy_grammar = {
    lazy_name, lazy_accept, lazy_apply, lazy_reset, lazy_clone, lazy_free,
    nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
};

llama_sampler * lazy_clone(const llama_sampler * sampler) {
    auto copy = std::make_unique<Lazy>(*of(sampler));
    copy->grammar = llama_sampler_clone(copy->grammar);
    return llama_sampler_init(&lazy_grammar, copy.release());
}

}  // namespace

llama_sampler * shim::lazy_grammar_new(const llama_vocab * vocab, const char * grammar, const char * root,
                                       const char ** patterns, size_t n_patterns,
                                       const int32_t * tokens, size_t n_tokens) {
    llama_sampler * made = llama_sampler_init_grammar_lazy_patterns(
        vocab, grammar, root, patterns, n_patterns, tokens, n_tokens);
    return made ? llama_sampler_init(&lazy_grammar, new Lazy{made, vocab, 0}) : nullptr;
}
