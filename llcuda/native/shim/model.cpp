// Loading and tokenizing, guarded.

#include "common.hpp"

using shim::guarded;

llama_model * llcuda_model_load(const char * path, llama_model_params params) {
    return guarded<llama_model *>(nullptr, [&] { return llama_model_load_from_file(path, params); });
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

llama_adapter_lora * llcuda_adapter_load(llama_model * model, const char * path) {
    return guarded<llama_adapter_lora *>(nullptr, [&] { return llama_adapter_lora_init(model, path); });
}
