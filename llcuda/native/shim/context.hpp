// The context that the shim's files share.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "common.hpp"
#include "device.hpp"

struct llcuda_context {
    llama_context *   raw    = nullptr;
    llama_memory_t    memory = nullptr;   // null for encoders
    llama_batch_ext * batch  = nullptr;
    int32_t n_vocab = 0, n_batch = 0, n_seq_max = 0, n_outputs_max = 0;
    int32_t end_position = INT32_MAX;  // the first position that no token may have
    int32_t window = 0;       // tokens that the sliding window's cells are kept for; 0: all are kept
    bool unified    = true;   // one KV buffer: partial copies between sequences work
    bool embeddings = false;  // then every row is an output
    bool whole      = false;  // a prompt cannot be split over several batches

    int32_t              first_row = 0;  // index within the call of the last batch's first row
    std::vector<int32_t> outputs;        // indices within the call that have outputs, ascending
    std::vector<int32_t> next;           // per sequence, while a batch is filled
    std::vector<int32_t> first;          // per sequence, the first position of the last batch; -1 = not in it
    bool computing = false;  // the last batch was begun and llama.cpp has not returned
    bool unfinished = false;  // the last batch was begun and not completed
    bool lost      = false;  // its state is unknown, or its device failed: it is neither used nor freed

    std::atomic<bool> busy{false}, cancelled{false};
    bool closed = false;  // changed while busy
    bool    polls_signals = false;  // the decoding thread is Python's main thread
    int64_t last_poll_ns  = 0;
    int     polls         = 0;

    bool pending = false;  // work may still run on the device
    std::unique_ptr<shim::DeviceLogits> device;  // null: llama.cpp copies every row to the host
    llcuda_event   event   = {};
    llcuda_timings timings = {};
};

// Compiled for several processors, and the best chosen at load: for loops that the compiler vectorises.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SHIM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SHIM_CLONES
#endif

namespace shim {

// Threads pay where they save milliseconds; waking them costs more than that on a busy machine.
constexpr double WORTH_THREADS_NS = 3e6;

// Marks the context as in use by this thread. `status` is not OK when it may not be used.
struct Entry {
    explicit Entry(llcuda_context * context);
    ~Entry();
    Entry(const Entry &) = delete;
    llcuda_context * context;
    int status = LLCUDA_OK;
};

// recovery.cpp: make the context usable after an exception, without the batch that was not completed; or it is lost.
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

// Wait for the device; its time counts as the decode's.
void wait(llcuda_context * context);

// Which output of the last call `index` is, -1 when it is none: an index of a token, or from the last output, < 0.
int32_t output_of(const llcuda_context * context, int32_t index);

// The logits of an output, null when they are gone. The decode must be over.
const float * logits_of(llcuda_context * context, int32_t output);

// Wait for the logits at `indices` (null where there are none), then run `call`, its time counted as sampling.
int with_rows(llcuda_context * context, const int32_t * indices, std::vector<const float *> & rows,
              const std::function<int()> & call);

// A row to sample: its logits, or the best of them and the extras, as a device chose them.
struct Row {
    const float *            logits = nullptr;
    const llcuda_candidate * best   = nullptr;
    int32_t                  n_best = 0;
};

// Choose a token from the row of n logits; the chain accepts it.
// Give a row the token that its sampling forces.
int take_forced(const llcuda_sampling & sampling, int32_t * token);
int sample_row(const llcuda_sampling & sampling, const Row & row, int32_t n, int32_t * token);

// draw.cpp: the part of a device's task that a draw decides; its random number is used up.
void fill_draw(llcuda_draw * draw, llcuda_row & task, std::vector<llcuda_adjustment> & adjustments);

// The `count` > 0 highest of n logits, of equal ones the first, NaN left out, in the order of their ids.
void best_candidates(const float * logits, int32_t n, int32_t count, std::vector<llama_token_data> & out);

}  // namespace shim
