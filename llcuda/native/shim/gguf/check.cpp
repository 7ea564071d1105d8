// A check of a GGUF file before llama.cpp loads it: its kernels assert on some tensor types, in threads
// where nothing can catch that.
//
// If the structure of the file is damaged this check stops: ggml's reader and llama.cpp's loader report it. Numbers of
// types are an exception, because ggml's reader takes them for types before it checks them.

#include "common.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gguf/walk.hpp"

using shim::guarded;

namespace {

struct Mapping {
    explicit Mapping(const char * path) {
        const int file = open(path, O_RDONLY | O_CLOEXEC);
        struct stat about;
        if (file >= 0 && fstat(file, &about) == 0 && about.st_size > 0) {
            void * start = mmap(nullptr, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
            if (start != MAP_FAILED) {
                data = static_cast<const char *>(start);
                size = about.st_size;
            }
        }
        if (file >= 0) {
            close(file);
        }
    }
    ~Mapping() {
        if (data) {
            munmap(const_cast<char *>(data), size);
        }
    }
    const char * data = nullptr;
    size_t size = 0;
};

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The types of weights that a matrix product takes; conversion never writes the others.
bool is_weight_type(uint32_t type) {
    switch (type) {
        case GGML_TYPE_I8: case GGML_TYPE_I16: case GGML_TYPE_I32: case GGML_TYPE_I64: case GGML_TYPE_F64:
        case GGML_TYPE_Q8_1: case GGML_TYPE_Q8_K:
            return false;
        default:
            return true;
    }
}

// Whether llama.cpp's kernels want this tensor in F32. The list is that of its converter (conversion/base.py).
bool wants_f32(std::string_view name, bool one_row) {
    if (!ends_with(name, ".weight") && !ends_with(name, ".lora_a") && !ends_with(name, ".lora_b")) {
        return true;
    }
    for (const auto * end : {"_norm.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d.weight",
                             "ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight", "shortconv.conv.weight",
                             "time_mix_first.weight", "time_mix_lerp_fused.weight"}) {
        if (ends_with(name, end)) {
            return true;
        }
    }
    // A matrix may happen to have one row.
    return one_row && name.find("output") == name.npos && name.find("cls") == name.npos
        && name.find("gate_inp") == name.npos && name.find("lora_") == name.npos;
}

bool check_tensor(std::string_view name, const uint64_t * shape, uint32_t type, int64_t * positions) {
    if (name == "position_embd.weight") {
        *positions = static_cast<int64_t>(shape[1]);
    }
    if (type >= GGML_TYPE_COUNT) {
        shim::add_error(shim::unknown_type(name, type));
        return false;
    }
    if (name.find("tid2eid") != name.npos) {
        return true;
    }
    const bool one_row = shape[1] == 1 && shape[2] == 1 && shape[3] == 1;
    const bool f32 = wants_f32(name, one_row);
    if (f32 ? type == GGML_TYPE_F32 : is_weight_type(type)) {
        return true;
    }
    shim::add_error("tensor '" + std::string(name.substr(0, GGML_MAX_NAME)) + "' has type "
                    + ggml_type_name(static_cast<ggml_type>(type)) + (f32 ? ", but must be f32" : ", which is none of weights"));
    return false;
}

}  // namespace

int llcuda_gguf_check(const char * path, int64_t * positions) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        *positions = 0;
        Mapping file(path);
        shim::Walk reader{file.data, file.data + file.size};
        const bool magic = reader.read<uint32_t>() == 0x46554747;  // "GGUF"
        const auto version = reader.read<uint32_t>();
        const auto tensors = reader.read<uint64_t>();
        const auto pairs   = reader.read<uint64_t>();
        if (!reader.ok || !magic || version < 2 || version > GGUF_VERSION) {
            return LLCUDA_OK;
        }
        for (uint64_t i = 0; reader.ok && i < pairs; i++) {
            reader.text();
            reader.value();
        }
        if (!reader.ok && !reader.beyond) {
            shim::add_error("a value of the metadata has a type that GGUF does not have");
            return LLCUDA_INVALID_FILE;
        }
        for (uint64_t i = 0; reader.ok && i < tensors; i++) {
            const auto name = reader.text();
            const auto dimensions = reader.read<uint32_t>();
            uint64_t shape[GGML_MAX_DIMS] = {1, 1, 1, 1};
            if (dimensions > GGML_MAX_DIMS) {
                return LLCUDA_OK;
            }
            for (uint32_t d = 0; d < dimensions; d++) {
                shape[d] = reader.read<uint64_t>();
            }
            const auto type = reader.read<uint32_t>();
            reader.read<uint64_t>();  // offset
            if (reader.ok && !check_tensor(name, shape, type, positions)) {
                return LLCUDA_INVALID_FILE;
            }
        }
        return LLCUDA_OK;
    });
}
