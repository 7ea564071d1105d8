// A llama_context with its batch, its results and its times.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common.hpp"
#include "decode/device_logits.hpp"
#include "gguf/watched.hpp"

namespace shim {

// A copy of a row of results in memory of its own, which the context shares with Python.
struct RowRelease {
    void operator()(float * row) const { llcuda_row_release(row); }
};
using SharedRow = std::unique_ptr<float, RowRelease>;

// The rows that were read since the last decode, by output, or by sequence; null where none was.
struct ReadRows {
    std::vector<SharedRow> logits, embeddings, sequences;
};

}  // namespace shim

struct llcuda_context {
    llama_context *   raw    = nullptr;
    llama_memory_t    memory = nullptr;   // null for encoders
    llama_batch_ext * batch  = nullptr;
    int32_t n_vocab = 0, n_batch = 0, n_seq_max = 0, n_outputs_max = 0;
    int32_t end_position = INT32_MAX;  // the first position that no token may have
    int32_t window = 0;       // tokens of the sliding window; 0: every layer sees all
    bool unified    = true;   // one KV buffer: partial copies between sequences work
    std::vector<std::vector<bool>> shared;  // unified: per sequence, those that may have cells in common with it
    bool embeddings = false;  // then every row is an output
    bool whole      = false;  // a prompt cannot be split over several batches

    int32_t              first_row = 0;  // index within the call of the last batch's first row
    std::vector<int32_t> outputs;        // indices within the call that have outputs, ascending
    shim::ReadRows       read;
    std::vector<int32_t> next;           // per sequence, while a batch is filled
    std::vector<int32_t> first;          // per sequence, the first position of the last batch; -1 = not in it
    bool computing = false;  // the last batch was begun and llama.cpp has not returned
    bool unfinished = false;  // the last batch was begun and not completed
    bool lost      = false;  // its state is unknown, or its device failed: it is renewed or freed, and not used
    bool keep_logits = false;  // logits stay on the device
    std::string cuda_graphs = "auto";  // the mode of the GPUs, as graphs.h names it
    bool batch_invariant = false;  // the results of a row do not depend on the rows beside it

    std::atomic<bool> busy{false}, cancelled{false};
    std::atomic<uint64_t> holder{0};  // the thread inside, as pthread_self() names it; 0: none
    std::atomic<uint64_t> owner{0};   // the thread that waits for others to leave
    bool closed = false;  // changed while busy
    bool    polls_signals = false;  // the decoding thread is Python's main thread
    int64_t last_poll_ns  = 0;
    int     polls         = 0;

    bool pending = false;  // work may still run on the device
    std::shared_ptr<const shim::WatchedFiles> files;  // that the weights are mapped from; null without any
    std::unique_ptr<shim::DeviceLogits> device;  // null: llama.cpp copies every row to the host
    llcuda_event   event   = {};
    llcuda_timings timings = {};
};

namespace shim {

// Marks a context as in use by this thread, as long as the object lives. `status` is not OK if it must not be used. The
// thread that has claimed the context waits until another one leaves it.
struct Entry {
    explicit Entry(llcuda_context * context, bool even_lost = false);
    ~Entry();
    Entry(const Entry &) = delete;
    void leave();
    llcuda_context * context;
    int status = LLCUDA_OK;
};

// Make the context usable after an exception, without the incomplete batch, or mark it as lost.
void recover(llcuda_context * context);

// Run `call` as the only thread inside the context; exceptions become a status.
template <typename Result, typename Call> Result entered(llcuda_context * context, Call && call) {
    Entry entry(context);
    if (entry.status != LLCUDA_OK) {
        return entry.status;
    }
    Guard guard;  // keeps the error lines until the caller reads them
    const Result result = guarded<Result>(LLCUDA_EXCEPTION, call);
    if (result == LLCUDA_EXCEPTION) {
        recover(context);
    }
    return result;
}

// The files that the weights of a model are mapped from; null without any.
std::shared_ptr<const WatchedFiles> files_of(const llama_model * model);

// Forget the results of the last decode. Rows that Python holds stay as they are.
void forget_outputs(llcuda_context * context);

// Wait for the device; the time counts as the decode's.
void wait(llcuda_context * context);

// Which output of the last call an index stands for, -1 = none. index: that of a token in the call; below 0 it counts
// from the last output.
int32_t output_of(const llcuda_context * context, int32_t index);

// The logits of an output, those that Python may have changed where it has read them; null if a later micro-batch has
// overwritten them. The decode must be complete.
const float * logits_of(llcuda_context * context, int32_t output);

// Wait for the logits at `indices`, null where there are none, then run `call`; its time counts as sampling.
int with_rows(llcuda_context * context, const int32_t * indices, std::vector<const float *> & rows,
              const std::function<int()> & call);

}  // namespace shim
