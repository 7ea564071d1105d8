// Quantization of model files, and the sizes of their tensors.

#include "common.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <regex>

#include "ggml.h"
#include "gguf.h"
#include "gguf/watched.hpp"

using shim::guarded;

namespace {

using File = std::unique_ptr<gguf_context, void (*)(gguf_context *)>;

File open_header(const char * path) { return {gguf_init_from_file(path, {true, nullptr}), gguf_free}; }

// Whether all that the header announces is there: a full disk may cut the end off without an error.
bool is_whole(const char * path) {
    const File file = open_header(path);
    if (!file) {
        return false;
    }
    size_t end = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++) {
        end = std::max(end, gguf_get_tensor_offset(file.get(), i) + gguf_get_tensor_size(file.get(), i));
    }
    return std::filesystem::file_size(path) >= gguf_get_data_offset(file.get()) + end;
}

struct Stopped {};  // not a std::exception, which llama.cpp would catch as a failure of its own

}  // namespace

int llcuda_quantize(const char * source, const char * target, llama_model_quantize_params params,
                    llama_progress_callback report, void * data) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        shim::LogWatch watch([&](const std::string & line) {
            int done, all;  // llama.cpp has no callback here, but says "[ 12/ 340] token_embd.weight ..."
            if (report && sscanf(line.c_str(), "[%d/%d]", &done, &all) == 2) {
                shim::FaultsOff python;
                if (!report(static_cast<float>(done) / static_cast<float>(all), data)) {
                    throw Stopped();
                }
            }
        });
        const auto files = shim::watch_model(source);
        bool written = false;
        try {
            const bool survived = shim::survives([&] { written = llama_model_quantize(source, target, &params) == 0; });
            if (shim::report_change(files)) {
                return LLCUDA_FILE_CHANGED;
            }
            if (!survived || !written) {
                return LLCUDA_EXCEPTION;
            }
        } catch (const Stopped &) {
            return LLCUDA_ABORTED;
        }
        if (!is_whole(target)) {
            shim::add_error("the end of the file could not be written");
            return LLCUDA_EXCEPTION;
        }
        return LLCUDA_OK;
    });
}

const char * llcuda_quantize_plan(const char * source, llama_model_quantize_params params) {
    thread_local std::string plan;
    return guarded<const char *>(nullptr, [&]() -> const char * {
        plan.clear();
        shim::LogWatch watch([&](const std::string & line) {
            plan += line[0] == '[' ? line + "\n" : "";
        });
        params.dry_run = true;
        bool done = false;
        return shim::survives([&] { done = llama_model_quantize(source, "", &params) == 0; }) && done ? plan.c_str() : nullptr;
    });
}

int64_t llcuda_row_size(int type, int64_t columns) {
    return static_cast<int64_t>(ggml_row_size(static_cast<ggml_type>(type), columns));
}

int llcuda_search(const char * pattern, const char ** texts, int64_t n, bool * found) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        const std::regex expression(pattern);
        std::transform(texts, texts + n, found, [&](auto * text) { return std::regex_search(text, expression); });
        return LLCUDA_OK;
    });
}

int64_t llcuda_tensor_size(const char * path, const char * name) {
    return guarded<int64_t>(LLCUDA_EXCEPTION, [&]() -> int64_t {
        const File file = open_header(path);
        if (!file) {
            return LLCUDA_INVALID_FILE;
        }
        const int64_t i = gguf_find_tensor(file.get(), name);
        return i < 0 ? 0 : static_cast<int64_t>(gguf_get_tensor_size(file.get(), i));
    });
}
