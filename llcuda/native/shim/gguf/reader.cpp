// The header of a mapped GGUF file. Pairs are only located, not read. ggml's own parser reads the
// tensors: it gets the header without the pairs, so that it does not copy them.
//
// Everything that touches the mapping runs inside `survives`: the file may have become shorter.

#include "common.hpp"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gguf/walk.hpp"

using shim::guarded;
using shim::Walk;

namespace {

constexpr uint32_t MAGIC = 0x46554747;          // "GGUF"
constexpr uint32_t OLDEST_VERSION = 2;          // lengths had 4 bytes before
constexpr uint64_t MOST_TENSORS = 1 << 18;      // ggml takes 400 bytes for each, Python twice that
constexpr uint64_t MOST_PAIRS = 1 << 16;
constexpr size_t   STEP_BYTES = 1 << 16;        // of a tensor, copied at once

using Gguf = std::unique_ptr<gguf_context, void (*)(gguf_context *)>;

struct Index : llcuda_gguf_index {
    std::vector<llcuda_gguf_pair>   pair_list;
    std::vector<llcuda_gguf_tensor> tensor_list;
};

int refuse(const std::string & why) {
    shim::add_error(why);
    return LLCUDA_INVALID_FILE;
}

std::string counted(size_t i, const char * what) { return std::string(what) + " " + std::to_string(i); }

size_t serve(void * header, void * output, uint64_t offset, size_t size) {
    const auto & bytes = *static_cast<const std::string *>(header);
    const size_t there = offset < bytes.size() ? std::min<size_t>(size, bytes.size() - offset) : 0;
    memcpy(output, bytes.data() + std::min<size_t>(offset, bytes.size()), there);
    return there;
}

// Let ggml read the tensors. header: the file's, without pairs but the alignment's; end: where the
// tensors' descriptions end in the file.
int read_tensors(Index * index, std::string header, uint64_t end, uint64_t file_size) {
    constexpr size_t ANY = SIZE_MAX / 2;  // it only counts down
    const Gguf file(gguf_init_from_callback(serve, &header, header.size(), ANY, {true, nullptr}), gguf_free);
    if (!file) {
        return LLCUDA_INVALID_FILE;
    }
    index->alignment   = gguf_get_alignment(file.get());
    index->data_offset = index->n_tensors ? GGML_PAD(end, index->alignment) : end;
    for (int64_t i = 0; i < index->n_tensors; i++) {
        llcuda_gguf_tensor & tensor = index->tensor_list[i];
        strncpy(tensor.name, gguf_get_tensor_name(file.get(), i), sizeof(tensor.name) - 1);
        std::copy_n(gguf_get_tensor_ne(file.get(), i), GGML_MAX_DIMS, tensor.ne);
        tensor.type   = gguf_get_tensor_type(file.get(), i);
        tensor.offset = gguf_get_tensor_offset(file.get(), i);
        tensor.size   = gguf_get_tensor_size(file.get(), i);
        int64_t span = sizeof(double);  // bytes of any array of its shape, were no size 0
        for (int64_t size : tensor.ne) {
            if (__builtin_mul_overflow(span, std::max<int64_t>(size, 1), &span)) {
                return refuse("tensor '" + std::string(tensor.name) + "' has sizes that no array can have");
            }
        }
        const uint64_t room = file_size < index->data_offset ? 0 : file_size - index->data_offset;
        if (tensor.offset > room || tensor.size > room - tensor.offset) {
            return refuse("the file ends within tensor '" + std::string(tensor.name) + "': it is truncated");
        }
    }
    return LLCUDA_OK;
}

// What a walk that came to nothing was in the midst of.
int stopped(const Walk & walk, const std::string & within) {
    if (walk.beyond) {
        shim::add_error("the file ends within " + within + ": it is truncated, or damaged there");
        return LLCUDA_TRUNCATED;
    }
    return refuse(within + " has a value of a type that is none");
}

// alignment: gets the pair that the tensors' offsets depend on.
int read_pairs(Walk & walk, const char * data, uint64_t n, Index * index, std::string & alignment) {
    for (uint64_t i = 0; i < n; i++) {
        const char * start = walk.at;
        const auto key   = walk.text();
        const auto value = walk.value();
        if (!walk.ok) {
            return stopped(walk, counted(i, "pair"));
        }
        if (key.empty()) {
            return refuse(counted(i, "pair") + " has an empty key");
        }
        if (key == GGUF_KEY_GENERAL_ALIGNMENT) {
            if (value.type != GGUF_TYPE_UINT32 || value.array) {
                return refuse(GGUF_KEY_GENERAL_ALIGNMENT " is no uint32");
            }
            alignment.append(start, walk.at - start);
        }
        index->pair_list.push_back({static_cast<uint64_t>(key.data() - data), key.size(),
                                    static_cast<uint64_t>(value.start - data),
                                    static_cast<uint64_t>(walk.at - value.start), value.count, value.type, value.array});
    }
    return LLCUDA_OK;
}

// Takes from the tensors' descriptions what ggml does not keep, and refuses what would cost it memory.
int pass_tensors(Walk & walk, uint64_t n, Index * index) {
    for (uint64_t i = 0; i < n; i++) {
        const auto name       = walk.text();
        const auto dimensions = walk.read<uint32_t>();
        if (name.size() >= GGML_MAX_NAME || dimensions > GGML_MAX_DIMS) {
            return refuse(counted(i, "tensor") + " has a name of " + std::to_string(name.size()) + " bytes and "
                          + std::to_string(dimensions) + " dimensions; there may be "
                          + std::to_string(GGML_MAX_NAME - 1) + " and " + std::to_string(GGML_MAX_DIMS));
        }
        walk.take(sizeof(uint64_t) * dimensions);
        const auto type = walk.read<uint32_t>();
        walk.take(sizeof(uint64_t));
        if (!walk.ok) {
            return stopped(walk, counted(i, "tensor"));
        }
        if (type >= GGML_TYPE_COUNT) {
            return refuse(shim::unknown_type(name, type));
        }
        index->tensor_list.push_back({});
        index->tensor_list.back().n_dims = dimensions;
    }
    return LLCUDA_OK;
}

// size: the bytes that are there of file_size.
int read_index(const char * data, size_t size, uint64_t file_size, Index * index) {
    Walk walk{data, data + size};
    const auto magic     = walk.read<uint32_t>();
    index->version       = walk.read<uint32_t>();
    const auto n_tensors = walk.read<uint64_t>();
    const auto n_pairs   = walk.read<uint64_t>();
    if (!walk.ok) {
        return stopped(walk, "its first 24 bytes");
    }
    if (magic != MAGIC) {
        return refuse("the file does not begin with GGUF");
    }
    if (index->version < OLDEST_VERSION || index->version > GGUF_VERSION) {
        return refuse("GGUF version " + std::to_string(index->version) + ": only 2 and 3 can be read, "
                      "of this machine's byte order");
    }
    if (n_tensors > MOST_TENSORS || n_pairs > MOST_PAIRS) {
        return refuse(std::to_string(n_tensors) + " tensors and " + std::to_string(n_pairs)
                      + " keys: more than any model has");
    }
    std::string alignment;
    if (const int status = read_pairs(walk, data, n_pairs, index, alignment)) {
        return status;
    }
    const char * tensors = walk.at;
    if (const int status = pass_tensors(walk, n_tensors, index)) {
        return status;
    }
    index->n_pairs   = static_cast<int64_t>(n_pairs);
    index->n_tensors = static_cast<int64_t>(n_tensors);
    index->pairs     = index->pair_list.data();
    index->tensors   = index->tensor_list.data();
    const uint64_t counts[] = {n_tensors, alignment.empty() ? 0u : 1u};
    std::string header(data, sizeof(MAGIC) + sizeof(index->version));
    header.append(reinterpret_cast<const char *>(counts), sizeof(counts));
    header += alignment;
    header.append(tensors, walk.at - tensors);
    return read_tensors(index, header, walk.at - data, file_size);
}

// Run `call` with a status; where the mapping has no file behind it any more, that is the status.
template <typename Call> int guarded_read(Call && call) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        int status = LLCUDA_INVALID_FILE;
        shim::survives([&] { status = call(); });
        return status;
    });
}

// Go through a tensor in whole blocks, copied to where any type may lie.
template <typename See> int for_blocks(const char * data, uint64_t size, ggml_type type, See && see) {
    alignas(64) static thread_local char block[STEP_BYTES];
    const uint64_t step = STEP_BYTES / ggml_type_size(type) * ggml_type_size(type);
    for (uint64_t at = 0; at < size; at += step) {
        const uint64_t n = std::min(step, size - at);
        memcpy(block, data + at, n);
        if (!see(block, n, static_cast<int64_t>(n / ggml_type_size(type) * ggml_blck_size(type)))) {
            return LLCUDA_INVALID_FILE;
        }
    }
    return LLCUDA_OK;
}

}  // namespace

int llcuda_gguf_read(const char * data, size_t size, uint64_t file_size, struct llcuda_gguf_index ** index) {
    auto made = std::make_unique<Index>();
    const int status = guarded_read([&] { return read_index(data, size, file_size, made.get()); });
    *index = status ? nullptr : made.release();
    return status;
}

void llcuda_gguf_free(struct llcuda_gguf_index * index) { delete static_cast<Index *>(index); }

int llcuda_gguf_copy(const char * data, size_t size, char * copy) {
    return guarded_read([&]() -> int {
        memcpy(copy, data, size);
        return LLCUDA_OK;
    });
}

int llcuda_gguf_texts(const char * data, size_t size, int64_t n, int64_t * starts) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        Walk walk{data, data + size};
        for (int64_t i = 0; i < n; i++) {
            starts[i] = static_cast<int64_t>(walk.text().data() - data);
        }
        return walk.ok ? LLCUDA_OK : LLCUDA_INVALID_FILE;
    });
}

int llcuda_gguf_floats(const char * data, uint64_t size, int type, float * values) {
    return guarded_read([&]() -> int {
        const auto to_float = ggml_get_type_traits(static_cast<ggml_type>(type))->to_float;
        if (!to_float && type != GGML_TYPE_F32) {
            return LLCUDA_UNSUPPORTED;
        }
        return for_blocks(data, size, static_cast<ggml_type>(type), [&](const char * block, uint64_t bytes, int64_t n) {
            if (to_float) {
                to_float(block, values, n);
            } else {
                memcpy(values, block, bytes);
            }
            values += n;
            return true;
        });
    });
}

int llcuda_gguf_validate(const char * data, uint64_t size, int type) {
    return guarded_read([&]() -> int {
        return for_blocks(data, size, static_cast<ggml_type>(type), [&](const char * block, uint64_t bytes, int64_t) {
            return ggml_validate_row_data(static_cast<ggml_type>(type), block, bytes);
        });
    });
}
