// Loading and tokenizing, guarded.

#include "copies.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "decode/context.hpp"

using shim::guarded;

namespace {

std::mutex watched_mutex;
std::map<const llama_model *, std::shared_ptr<const shim::WatchedFiles>> watched;

// Keep the files that the weights are mapped from; the others may change.
void watch(const llama_model * model, shim::WatchedFiles files) {
    files.erase(std::remove_if(files.begin(), files.end(), [](auto & file) { return !file->mapped(); }), files.end());
    if (!files.empty()) {
        std::lock_guard<std::mutex> lock(watched_mutex);
        watched[model] = std::make_shared<const shim::WatchedFiles>(std::move(files));
    }
}

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
        const bool maps = params.load_mode != LLAMA_LOAD_MODE_NONE && params.load_mode != LLAMA_LOAD_MODE_MLOCK;
        auto files = maps ? shim::watch_model(path) : shim::WatchedFiles();
        llama_model * model = nullptr;
        shim::survives([&] { model = llama_model_load_from_file(path, params); });
        if (model) {
            watch(model, std::move(files));
        }
        return model;
    });
}

std::shared_ptr<const shim::WatchedFiles> shim::files_of(const llama_model * model) {
    std::lock_guard<std::mutex> lock(watched_mutex);
    const auto found = watched.find(model);
    return found == watched.end() ? nullptr : found->second;
}

int llcuda_model_check(const llama_model * model) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        const auto files = shim::files_of(model);
        return files && shim::report_change(*files) ? LLCUDA_FILE_CHANGED : LLCUDA_OK;
    });
}

void llcuda_model_free(llama_model * model) {
    const auto files = shim::files_of(model);  // watched until it is freed
    {
        std::lock_guard<std::mutex> lock(watched_mutex);
        watched.erase(model);  // before another model can have its address
    }
    if (shim::gpus_answer()) {
        guarded<int>(0, [&] {
            shim::free_copies(model);
            llama_model_free(model);
            return 0;
        });
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
