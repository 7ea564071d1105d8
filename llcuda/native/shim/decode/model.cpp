// Loading and tokenizing, guarded.

#include "common.hpp"

#include <cstring>
#include <vector>

using shim::guarded;

namespace {

struct Progress {
    llama_progress_callback report;
    void * data;
};

bool on_progress(float fraction, void * data) {
    shim::FaultsOff python;
    const auto * progress = static_cast<Progress *>(data);
    return progress->report(fraction, progress->data);
}

}  // namespace

llama_model * llcuda_model_load(const char * path, llama_model_params params) {
    return guarded<llama_model *>(nullptr, [&] {
        Progress progress = {params.progress_callback, params.progress_callback_user_data};
        if (progress.report) {
            params.progress_callback = on_progress;
            params.progress_callback_user_data = &progress;
        }
        llama_model * model = nullptr;
        shim::survives([&] { model = llama_model_load_from_file(path, params); });
        return model;
    });
}

void llcuda_model_free(llama_model * model) {
    if (shim::gpus_answer()) {
        guarded<int>(0, [&] { llama_model_free(model); return 0; });
    }
}

int32_t llcuda_tokenize(const llama_vocab * vocab, const char * text, int32_t length,
                        int32_t * tokens, int32_t capacity, bool add_special, bool parse_special) {
    return guarded<int32_t>(INT32_MIN, [&] {
        return llama_tokenize(vocab, text, length, tokens, capacity, add_special, parse_special);
    });
}

int32_t llcuda_detokenize(const llama_vocab * vocab, const int32_t * tokens, int32_t n_tokens,
                          char * text, int32_t capacity, bool remove_special, bool unparse_special) {
    return guarded<int32_t>(INT32_MIN, [&] {
        return llama_detokenize(vocab, tokens, n_tokens, text, capacity, remove_special, unparse_special);
    });
}

int32_t llcuda_token_to_piece(const llama_vocab * vocab, int32_t token, char * text, int32_t capacity, bool special) {
    return guarded<int32_t>(INT32_MIN, [&] {
        return llama_token_to_piece(vocab, token, text, capacity, 0, special);
    });
}

int64_t llcuda_pieces(const llama_vocab * vocab, char * text, int64_t capacity, int64_t * begins, int8_t * names) {
    return guarded<int64_t>(INT64_MIN, [&] {
        const int32_t n = llama_vocab_n_tokens(vocab);
        std::vector<char> piece(256);
        int64_t end = 0;
        for (int32_t token = 0; token < n; token++) {
            names[token] = llama_vocab_is_control(vocab, token) || llama_vocab_is_eog(vocab, token);
            int32_t length;
            while ((length = llama_token_to_piece(vocab, token, piece.data(), piece.size(), 0, names[token])) < 0) {
                piece.resize(-length);
            }
            begins[token] = end;
            if (end + length <= capacity) {
                std::memcpy(text + end, piece.data(), length);
            }
            end += length;
        }
        begins[n] = end;
        return end;
    });
}

llama_adapter_lora * llcuda_adapter_load(llama_model * model, const char * path) {
    return guarded<llama_adapter_lora *>(nullptr, [&] {
        llama_adapter_lora * adapter = nullptr;
        shim::survives([&] { adapter = llama_adapter_lora_init(model, path); });
        return adapter;
    });
}
