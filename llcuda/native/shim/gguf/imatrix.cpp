// An importance matrix: for each matrix of weights, the sums by column of the squares of its other operand.
//
// It is collected while a context decodes, by llama.cpp's callback on nodes of the graph. Its file is a GGUF with two
// F32 tensors for each matrix, which llama.cpp's tools read and write too.

#include "decode/context.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>

#include "ggml.h"
#include "gguf.h"

using shim::guarded;

struct llcuda_imatrix {
    struct Entry {
        std::vector<float> sums, counts;  // counts: rows that were added; of experts one for each
    };
    std::map<std::string, Entry> entries;
    bool              output = false;  // also the output matrix
    std::string       failure;
    std::vector<char> rows, ids;       // of a node, copied from its device
};

namespace {

constexpr int64_t COLUMNS = 1024;  // at once
constexpr int64_t WORTH_THREADS = 1 << 21;  // numbers

// Add the squares of n columns of some rows. First a sum of these rows alone: less is lost to rounding.
SHIM_CLONES void add_block(float * sums, const char * rows, size_t stride, int64_t n_rows, int64_t n) {
    float squares[COLUMNS] = {};
    for (int64_t row = 0; row < n_rows; row++) {
        const float * x = reinterpret_cast<const float *>(rows + row * stride);
        for (int64_t i = 0; i < n; i++) {
            squares[i] += x[i] * x[i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        sums[i] += squares[i];
    }
}

void add_squares(float * sums, const char * rows, size_t stride, int64_t n_rows, int64_t columns) {
    #pragma omp parallel for if(n_rows * columns > WORTH_THREADS)
    for (int64_t begin = 0; begin < columns; begin += COLUMNS) {
        add_block(sums + begin, rows + begin * sizeof(float), stride, n_rows, std::min(COLUMNS, columns - begin));
    }
}

// A copy for another device is called "DEVICE#NAME#NUMBER".
std::string plain_name(const char * name) {
    const char * begin = strchr(name, '#');
    if (!begin) {
        return name;
    }
    const char * end = strchr(++begin, '#');
    return end ? std::string(begin, end) : std::string(begin);
}

bool is_wanted(const llcuda_imatrix & matrix, const ggml_tensor * node) {
    if ((node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID) || node->src[1]->type != GGML_TYPE_F32
        || node->src[1]->nb[0] != sizeof(float)) {
        return false;
    }
    const std::string name = plain_name(node->src[0]->name);
    return node->op == GGML_OP_MUL_MAT_ID || name.rfind("blk.", 0) == 0 || (matrix.output && name == "output.weight");
}

// The numbers of a tensor: where they are, or copied to `buffer` from a GPU.
const char * on_host(const ggml_tensor * tensor, std::vector<char> & buffer) {
    const auto * owner = tensor->view_src ? tensor->view_src : tensor;
    if (ggml_backend_buffer_is_host(owner->buffer)) {
        return static_cast<const char *>(tensor->data);
    }
    buffer.resize(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, buffer.data(), 0, buffer.size());
    return buffer.data();
}

void collect(llcuda_imatrix & matrix, const ggml_tensor * node) {
    const ggml_tensor * weights = node->src[0], * inputs = node->src[1], * chosen = node->src[2];
    const bool experts = node->op == GGML_OP_MUL_MAT_ID;
    const std::string name = plain_name(weights->name);
    const int64_t columns = inputs->ne[0], matrices = weights->ne[2] * weights->ne[3];
    auto & [sums, counts] = matrix.entries[name];
    if (sums.empty()) {
        sums.resize(columns * matrices);
        counts.resize(experts ? matrices : 1);
    }
    if (sums.size() != static_cast<size_t>(columns * matrices) || counts.size() != static_cast<size_t>(experts ? matrices : 1)) {
        matrix.failure = name + ": it is multiplied in two ways";
        return;
    }
    const char * rows = on_host(inputs, matrix.rows);
    if (experts) {
        // Which experts each token takes; all of them see one row, or each its own.
        const char * ids = on_host(chosen, matrix.ids);
        for (int64_t token = 0; token < chosen->ne[1]; token++) {
            for (int64_t i = 0; i < chosen->ne[0]; i++) {
                int32_t expert;
                memcpy(&expert, ids + token * chosen->nb[1] + i * chosen->nb[0], sizeof(expert));
                if (expert < 0 || expert >= matrices) {
                    matrix.failure = name + ": a token takes an expert that does not exist";
                    return;
                }
                const char * row = rows + token * inputs->nb[2] + (i % inputs->ne[1]) * inputs->nb[1];
                add_squares(&sums[expert * columns], row, 0, 1, columns);
                counts[expert]++;
            }
        }
    } else {
        for (int64_t i3 = 0; i3 < inputs->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < inputs->ne[2]; i2++) {
                const int64_t which = (i3 % weights->ne[3]) * weights->ne[2] + i2 % weights->ne[2];
                add_squares(&sums[which * columns], rows + i3 * inputs->nb[3] + i2 * inputs->nb[2], inputs->nb[1],
                            inputs->ne[1], columns);
            }
        }
        counts[0] += ggml_nrows(inputs) / matrices;
    }
    for (const float sum : sums) {
        if (!std::isfinite(sum)) {
            matrix.failure = name + ": what it is multiplied with is not finite";
            return;
        }
    }
}

using File = std::unique_ptr<gguf_context, void (*)(gguf_context *)>;
using Tensors = std::unique_ptr<ggml_context, void (*)(ggml_context *)>;

int write_file(const char * path, const std::vector<llcuda_imatrix_entry> & entries,
               std::vector<const char *> datasets, uint32_t chunks, uint32_t chunk_size) {
    const Tensors tensors(ggml_init({2 * entries.size() * ggml_tensor_overhead(), nullptr, true}), ggml_free);
    const File file(gguf_init_empty(), gguf_free);
    gguf_set_val_str(file.get(), "general.type", "imatrix");
    gguf_set_arr_str(file.get(), "imatrix.datasets", datasets.data(), datasets.size());
    gguf_set_val_u32(file.get(), "imatrix.chunk_count", chunks);
    gguf_set_val_u32(file.get(), "imatrix.chunk_size", chunk_size);
    auto add = [&](const std::string & name, const float * values, int64_t columns, int64_t rows) {
        if (name.size() >= GGML_MAX_NAME) {
            throw std::runtime_error(name + ": the name is too long for a GGUF file");
        }
        auto * tensor = ggml_new_tensor_2d(tensors.get(), GGML_TYPE_F32, columns, rows);
        ggml_set_name(tensor, name.c_str());
        tensor->data = const_cast<float *>(values);
        gguf_add_tensor(file.get(), tensor);
    };
    for (const auto & entry : entries) {
        add(std::string(entry.name) + ".in_sum2", entry.sums, entry.n_sums / entry.n_counts, entry.n_counts);
        add(std::string(entry.name) + ".counts", entry.counts, 1, entry.n_counts);
    }
    return gguf_write_to_file(file.get(), path, false) ? LLCUDA_OK : LLCUDA_EXCEPTION;
}

}  // namespace

llcuda_imatrix * llcuda_imatrix_new(bool output) {
    return guarded<llcuda_imatrix *>(nullptr, [&] {
        auto matrix = std::make_unique<llcuda_imatrix>();
        matrix->output = output;
        return matrix.release();
    });
}

void llcuda_imatrix_free(llcuda_imatrix * matrix) { delete matrix; }

bool llcuda_imatrix_collect(ggml_tensor * node, bool ask, void * matrix) {
    auto & into = *static_cast<llcuda_imatrix *>(matrix);
    if (ask) {
        return into.failure.empty() && is_wanted(into, node);
    }
    collect(into, node);
    return true;
}

void llcuda_imatrix_collect_into(llama_context_params * params, llcuda_imatrix * matrix) {
    params->cb_eval = llcuda_imatrix_collect;
    params->cb_eval_user_data = matrix;
}

const char * llcuda_imatrix_failure(const llcuda_imatrix * matrix) { return matrix->failure.c_str(); }

int64_t llcuda_imatrix_size(const llcuda_imatrix * matrix) { return static_cast<int64_t>(matrix->entries.size()); }

void llcuda_imatrix_get(const llcuda_imatrix * matrix, int64_t i, llcuda_imatrix_entry * entry) {
    const auto & [name, values] = *std::next(matrix->entries.begin(), i);
    *entry = {name.c_str(), values.sums.data(), values.counts.data(), static_cast<int64_t>(values.sums.size()),
              static_cast<int64_t>(values.counts.size())};
}

int llcuda_imatrix_write(const char * path, const llcuda_imatrix_entry * entries, int64_t n_entries,
                         const char ** datasets, int64_t n_datasets, uint32_t chunks, uint32_t chunk_size) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        return write_file(path, {entries, entries + n_entries}, {datasets, datasets + n_datasets}, chunks, chunk_size);
    });
}
