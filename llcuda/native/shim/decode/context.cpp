// Decoding: fill the batch, check it, keep time; in C because it happens for every token.

#include "decode/context.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include <pthread.h>
#include <unistd.h>

#include "decode/graphs.h"
#include "ggml-backend-impl.h"
#include "llama-context.h"

// Of the patch kept-graphs: how many graphs were built to be kept, and how many made way for another.
extern "C" __attribute__((weak)) void llcuda_kept_graphs(llama_context * context, int64_t * built, int64_t * evicted,
                                                         bool reset);

using shim::guarded;
using shim::now_ns;

namespace shim {

constexpr int WAIT_US = 20;  // between two looks whether another thread has left

Entry::Entry(llcuda_context * context, bool even_lost) : context(context) {
    const auto self = (uint64_t) pthread_self();
    while (context->busy.exchange(true, std::memory_order_acquire)) {
        if (context->owner != self || context->holder == self) {
            status = LLCUDA_BUSY;
            return;
        }
        usleep(WAIT_US);
    }
    context->holder.store(self, std::memory_order_relaxed);
    if (context->closed || (context->lost && !even_lost)) {
        status = context->closed ? LLCUDA_CLOSED : LLCUDA_LOST;
        leave();
    }
}

Entry::~Entry() {
    if (status == LLCUDA_OK) {
        leave();
    }
}

void Entry::leave() {
    context->holder.store(0, std::memory_order_relaxed);
    context->busy.store(false, std::memory_order_release);
}

}  // namespace shim

namespace {

constexpr int NODES_BETWEEN_CLOCK_READS   = 16;
constexpr int64_t SIGNAL_INTERVAL_NS      = 20'000'000;

// Called by the CPU backend between graph nodes, on the thread that decodes.
bool on_abort_poll(void * data) {
    auto * context = static_cast<llcuda_context *>(data);
    if (context->cancelled.load(std::memory_order_relaxed)) {
        return true;
    }
    if (!context->polls_signals || ++context->polls % NODES_BETWEEN_CLOCK_READS) {
        return false;
    }
    const int64_t now = now_ns();
    if (now - context->last_poll_ns < SIGNAL_INTERVAL_NS) {
        return false;
    }
    context->last_poll_ns = now;
    return llcuda_on_signals() != 0;
}

int32_t next_position(llcuda_context * context, int32_t seq) {
    return context->memory ? llama_memory_seq_pos_max(context->memory, seq) + 1 : 0;
}

bool valid_seq(const llcuda_context * context, int32_t seq) { return seq >= 0 && seq < context->n_seq_max; }

// Compute the filled batch; its time counts as decode if every row belongs to another sequence.
int process(llcuda_context * context, llama_process_type type, int32_t n_tokens, bool one_row_each) {
    context->polls_signals = (uint64_t) pthread_self() == shim::main_thread;
    const int64_t begin = now_ns();
    context->last_poll_ns = begin;
    context->computing = context->unfinished = true;
    const int status = llama_process(context->raw, type, context->batch);
    context->computing = false;
    context->unfinished = status < LLCUDA_INVALID_BATCH;
    const int64_t elapsed = now_ns() - begin;
    auto & timings = context->timings;
    context->event = {one_row_each, n_tokens, static_cast<int32_t>(context->outputs.size()), elapsed};
    if (one_row_each) {
        timings.decode_ns += elapsed;
        timings.decode_tokens += n_tokens;
        timings.decode_calls++;
    } else {
        timings.prefill_ns += elapsed;
        timings.prefill_tokens += n_tokens;
        timings.prefill_calls++;
    }
    context->pending = true;
    if (context->device) {
        context->device->computed(context->raw, context->outputs.size());
    }
    // Afterwards: what was computed with other weights is no result.
    if (context->files && shim::report_change(*context->files)) {
        return LLCUDA_FILE_CHANGED;
    }
    return status < LLCUDA_INVALID_BATCH ? static_cast<int>(LLCUDA_EXCEPTION) : status;
}

void add_row(llcuda_context * context, int32_t token, int32_t seq, int32_t pos, bool output) {
    const int32_t row = llama_batch_ext_add_token(context->batch, seq, token);
    llama_batch_ext_set_pos(context->batch, row, &pos);
    if (output) {
        llama_batch_ext_set_output_logits(context->batch, row, true);
    }
}

int decode_chunk(llcuda_context * context, const int32_t * tokens, int32_t begin, int32_t end, int32_t total,
                 int32_t seq, int32_t pos, int outputs) {
    llama_batch_ext_clear(context->batch);
    context->first_row = begin;
    shim::forget_outputs(context);
    context->first.assign(context->n_seq_max, -1);
    context->first[seq] = pos + begin;
    for (int32_t i = begin; i < end; i++) {
        const bool output = outputs == LLCUDA_OUTPUT_ALL || context->embeddings
                         || (outputs == LLCUDA_OUTPUT_LAST && i == total - 1);
        add_row(context, tokens[i], seq, pos + i, output);
        if (output) {
            context->outputs.push_back(i);
        }
    }
    const int status = process(context, LLAMA_PROCESS_TYPE_DECODE, end - begin, total == 1);
    if (status != LLCUDA_OK) {
        shim::forget_outputs(context);
    }
    return status;
}

// Whether the CPU backend uses AMX, whose kernels compute several rows otherwise than one.
bool uses_amx(ggml_backend_reg_t cpu) {
    using Features = ggml_backend_feature * (*)(ggml_backend_reg_t);
    auto * features = reinterpret_cast<Features>(ggml_backend_reg_get_proc_address(cpu, "ggml_backend_get_features"));
    for (auto * feature = features ? features(cpu) : nullptr; feature && feature->name; feature++) {
        if (strcmp(feature->name, "AMX_INT8") == 0 && strcmp(feature->value, "0") != 0) {
            return true;
        }
    }
    return false;
}

// Set the mode of every backend of a context; false where one has no such mode.
bool compute_row_by_row(llama_context * raw) {
    auto * sched = raw->get_sched();
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); i++) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        auto * registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
        using Set = void (*)(ggml_backend_t, bool);
        auto * set = reinterpret_cast<Set>(ggml_backend_reg_get_proc_address(registry, "llcuda_batch_invariant"));
        if (!set || uses_amx(registry)) {
            return false;
        }
        set(backend, true);
    }
    return true;
}

// Call `call` with every backend of a context that computes on a GPU by CUDA.
void with_cuda_backends(llama_context * raw, const std::function<void(ggml_backend_t)> & call) {
    auto * sched = raw->get_sched();
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); i++) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        const bool several = ggml_backend_is_meta(backend);
        for (size_t j = 0; j < (several ? ggml_backend_meta_n_backends(backend) : 1); j++) {
            ggml_backend_t one = several ? ggml_backend_meta_simple_backend(backend, j) : backend;
            auto * registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(one));
            if (strcmp(ggml_backend_reg_name(registry), "CUDA") == 0) {
                call(one);
            }
        }
    }
}

void set_cuda_graphs(llcuda_context * context) {
    static auto * const set = shim::cuda_function<decltype(&llcuda_graphs_set)>("llcuda_graphs_set");
    if (set) {
        with_cuda_backends(context->raw, [&](ggml_backend_t backend) { set(backend, context->cuda_graphs.c_str()); });
    }
}

// Create llama.cpp's context, which has neither cells nor results yet; false if that fails.
bool create(llcuda_context * context, llama_model * model, llama_context_params params) {
    params.abort_callback = on_abort_poll;
    params.abort_callback_data = context;
    if (context->keep_logits) {
        context->device = std::make_unique<shim::DeviceLogits>(params);
    }
    const bool made = shim::survives([&] { context->raw = llama_init_from_model(model, params); });
    if (!made || !context->raw) {
        return false;
    }
    const auto * vocab = llama_model_get_vocab(model);
    context->n_vocab       = llama_vocab_n_tokens(vocab);
    context->memory        = llama_get_memory(context->raw);
    context->n_batch       = llama_n_batch(context->raw);
    context->n_seq_max     = llama_n_seq_max(context->raw);
    context->n_outputs_max = params.n_outputs_max && !llama_model_has_encoder(model)
                                 ? params.n_outputs_max : context->n_batch;
    context->window        = llama_model_n_swa(model);
    context->unified       = params.kv_unified || context->n_seq_max == 1;
    context->shared.assign(context->n_seq_max, std::vector<bool>(context->n_seq_max));
    context->embeddings    = params.embeddings;
    if (!context->memory || !llama_get_causal_attn(context->raw)) {
        context->n_batch = std::min<int32_t>(context->n_batch, llama_n_ubatch(context->raw));
        context->whole = true;
    }
    context->batch = llama_batch_ext_init(context->raw);
    context->files = shim::files_of(model);
    set_cuda_graphs(context);
    return !context->batch_invariant || compute_row_by_row(context->raw);
}

// Free llama.cpp's context; nothing after a GPU failed, because what fails in a destructor ends the process.
void destroy(llcuda_context * context) {
    if (context->batch) {
        llama_batch_ext_free(std::exchange(context->batch, nullptr));
    }
    if (context->raw) {
        llama_free(std::exchange(context->raw, nullptr));
    }
    context->device.reset();
    shim::forget_outputs(context);
    context->first.clear();
}

}  // namespace

llcuda_context * llcuda_context_new(llama_model * model, llama_context_params params, int64_t positions,
                                    bool keep_logits) {
    return guarded<llcuda_context *>(nullptr, [&]() -> llcuda_context * {
        auto context = std::make_unique<llcuda_context>();
        context->keep_logits  = keep_logits;
        context->end_position = positions > 0 && positions < INT32_MAX ? static_cast<int32_t>(positions) : INT32_MAX;
        return create(context.get(), model, params) ? context.release() : nullptr;
    });
}

int llcuda_context_batch_invariant(llcuda_context * context) {
    return shim::entered<int>(context, [&]() -> int {
        context->batch_invariant = compute_row_by_row(context->raw);
        return context->batch_invariant ? LLCUDA_OK : LLCUDA_UNSUPPORTED;
    });
}

int llcuda_context_set_graphs(llcuda_context * context, const char * mode) {
    return shim::entered<int>(context, [&]() -> int {
        context->cuda_graphs = mode;
        set_cuda_graphs(context);
        return LLCUDA_OK;
    });
}

int llcuda_context_graphs(llcuda_context * context, llcuda_cuda_graphs * found) {
    return shim::entered<int>(context, [&]() -> int {
        static auto * const read = shim::cuda_function<decltype(&llcuda_graphs_read)>("llcuda_graphs_read");
        *found = {};
        if (read) {
            bool all = true;
            with_cuda_backends(context->raw, [&](ggml_backend_t backend) {
                llcuda_graphs_report report;
                read(backend, &report);
                found->captured  += report.captured;
                found->replays   += report.replays;
                found->checked   += report.checked;
                found->different += report.different;
                all &= report.on;
                found->on = all;
            });
        }
        return LLCUDA_OK;
    });
}

bool llcuda_context_lost(llcuda_context * context) { return context->lost; }

int llcuda_context_renew(llcuda_context * context, llama_model * model, llama_context_params params) {
    shim::Entry entry(context, true);
    if (entry.status != LLCUDA_OK) {
        return entry.status;
    }
    context->lost = true;  // until there is another one
    if (!shim::gpus_answer()) {
        return LLCUDA_LOST;
    }
    shim::Guard guard;  // keeps the error lines until the caller reads them
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        destroy(context);
        context->lost = !create(context, model, params);
        return context->lost ? LLCUDA_EXCEPTION : LLCUDA_OK;
    });
}

int llcuda_context_close(llcuda_context * context) {
    shim::Entry entry(context, true);
    if (entry.status != LLCUDA_OK) {
        return entry.status;
    }
    context->closed = true;
    if (shim::gpus_answer()) {
        guarded<int>(0, [&] {
            destroy(context);
            return 0;
        });
    }
    return LLCUDA_OK;
}

void llcuda_context_free(llcuda_context * context) {
    if (!shim::gpus_answer()) {
        return;
    }
    guarded<int>(0, [&] {
        destroy(context);
        return 0;
    });
    delete context;
}

llama_context * llcuda_context_raw(llcuda_context * context) { return context->raw; }

bool llcuda_context_remembers(llcuda_context * context) { return context->memory != nullptr; }

bool llcuda_context_whole(llcuda_context * context) { return context->whole; }

void llcuda_context_claim(llcuda_context * context) { context->owner = (uint64_t) pthread_self(); }

void llcuda_context_cancel(llcuda_context * context) { context->cancelled = true; }

int llcuda_context_sync(llcuda_context * context) {
    return shim::entered<int>(context, [&]() -> int { shim::wait(context); return LLCUDA_OK; });
}

int llcuda_context_timings(llcuda_context * context, llcuda_timings * timings, bool reset) {
    return shim::entered<int>(context, [&]() -> int {
        *timings = context->timings;
        const auto own = llama_perf_context(context->raw);
        timings->graphs_reused        = own.n_reused;
        timings->llama_prefill_tokens = own.n_p_eval;
        timings->llama_decode_tokens  = own.n_eval;
        timings->llama_prefill_ms     = own.t_p_eval_ms;
        timings->llama_decode_ms      = own.t_eval_ms;
        if (llcuda_kept_graphs) {
            llcuda_kept_graphs(context->raw, &timings->graphs_kept, &timings->graphs_evicted, reset);
        }
        if (reset) {
            context->timings = {};
            llama_perf_context_reset(context->raw);
        }
        return LLCUDA_OK;
    });
}

int llcuda_context_event(llcuda_context * context, llcuda_event * event) {
    return shim::entered<int>(context, [&]() -> int { *event = context->event; return LLCUDA_OK; });
}

int llcuda_set_embeddings(llcuda_context * context, bool on) {
    return shim::entered<int>(context, [&]() -> int {
        llama_set_embeddings(context->raw, on);
        context->embeddings = on;
        return LLCUDA_OK;
    });
}

int llcuda_set_threads(llcuda_context * context, int32_t threads, int32_t threads_batch) {
    return shim::entered<int>(context, [&]() -> int {
        llama_set_n_threads(context->raw, threads, threads_batch);
        return LLCUDA_OK;
    });
}

int llcuda_decode(llcuda_context * context, const int32_t * tokens, int32_t n_tokens,
                  int32_t seq, int32_t pos, int outputs) {
    return shim::entered<int>(context, [&]() -> int {
        context->cancelled = false;  // a cancel is for the decode that runs
        if (n_tokens <= 0) {
            return LLCUDA_INVALID_BATCH;
        }
        if (!valid_seq(context, seq)) {
            return LLCUDA_BAD_SEQUENCE;
        }
        for (int32_t i = 0; i < n_tokens; i++) {
            if (tokens[i] < 0 || tokens[i] >= context->n_vocab) {
                return LLCUDA_BAD_TOKEN;
            }
        }
        const bool every = outputs == LLCUDA_OUTPUT_ALL || context->embeddings;
        if (every && n_tokens > context->n_outputs_max) {
            return LLCUDA_TOO_MANY_OUTPUTS;
        }
        // A split prompt keeps only the last part's outputs, and non-causal attention needs it whole.
        if (n_tokens > context->n_batch && (every || context->whole)) {
            return LLCUDA_TOO_MANY_TOKENS;
        }
        const int32_t start = pos < 0 ? next_position(context, seq) : pos;
        if (start > context->end_position - n_tokens) {
            return LLCUDA_BAD_POSITION;
        }
        int64_t elapsed = 0;
        for (int32_t begin = 0; begin < n_tokens; begin += context->n_batch) {
            const int32_t end = std::min(begin + context->n_batch, n_tokens);
            const int status = decode_chunk(context, tokens, begin, end, n_tokens, seq, start, outputs);
            if (status != LLCUDA_OK) {
                if (begin > 0 && !llama_memory_seq_rm(context->memory, seq, start, -1)) {
                    shim::add_error("the first part of the prompt stays in the memory: it cannot be removed partly");
                }
                return status;
            }
            elapsed += context->event.ns;
        }
        context->event.rows = n_tokens;
        context->event.ns = elapsed;
        return LLCUDA_OK;
    });
}

int llcuda_decode_rows(llcuda_context * context, int32_t n_rows, const int32_t * tokens, const int32_t * seqs,
                       const int32_t * positions, const int8_t * outputs) {
    return shim::entered<int>(context, [&]() -> int {
        context->cancelled = false;
        if (n_rows <= 0) {
            return LLCUDA_INVALID_BATCH;
        }
        if (n_rows > context->n_batch) {
            return LLCUDA_TOO_MANY_TOKENS;
        }
        int32_t n_outputs = 0;
        auto & next = context->next;
        next.assign(context->n_seq_max, -1);
        context->first.assign(context->n_seq_max, -1);
        bool one_row_each = true;
        for (int32_t i = 0; i < n_rows; i++) {
            if (tokens[i] < 0 || tokens[i] >= context->n_vocab) {
                return LLCUDA_BAD_TOKEN;
            }
            if (!valid_seq(context, seqs[i])) {
                return LLCUDA_BAD_SEQUENCE;
            }
            n_outputs += context->embeddings || outputs[i];
        }
        if (n_outputs > context->n_outputs_max) {
            return LLCUDA_TOO_MANY_OUTPUTS;
        }
        llama_batch_ext_clear(context->batch);
        context->first_row = 0;
        shim::forget_outputs(context);
        for (int32_t i = 0; i < n_rows; i++) {
            const int32_t seq = seqs[i];
            one_row_each &= next[seq] < 0;
            int32_t pos = positions[i];
            if (pos < 0) {
                pos = next[seq] < 0 ? next_position(context, seq) : next[seq];
            }
            if (pos >= context->end_position) {
                return LLCUDA_BAD_POSITION;
            }
            next[seq] = pos + 1;
            int32_t & first = context->first[seq];
            first = first < 0 ? pos : std::min(first, pos);
            const bool output = context->embeddings || outputs[i];
            add_row(context, tokens[i], seq, pos, output);
            if (output) {
                context->outputs.push_back(i);
            }
        }
        const int status = process(context, LLAMA_PROCESS_TYPE_DECODE, n_rows, one_row_each);
        if (status != LLCUDA_OK) {
            shim::forget_outputs(context);
        }
        return status;
    });
}

int llcuda_encode(llcuda_context * context, const int32_t * tokens, int32_t n_tokens) {
    return shim::entered<int>(context, [&]() -> int {
        context->cancelled = false;
        if (n_tokens <= 0) {
            return LLCUDA_INVALID_BATCH;
        }
        if (n_tokens > context->n_batch || n_tokens > static_cast<int32_t>(llama_n_ubatch(context->raw))) {
            return LLCUDA_TOO_MANY_TOKENS;
        }
        if (n_tokens > context->end_position) {
            return LLCUDA_BAD_POSITION;
        }
        llama_batch_ext_clear(context->batch);
        shim::forget_outputs(context);
        context->first.clear();  // an encoder remembers nothing
        for (int32_t i = 0; i < n_tokens; i++) {
            if (tokens[i] < 0 || tokens[i] >= context->n_vocab) {
                return LLCUDA_BAD_TOKEN;
            }
            add_row(context, tokens[i], 0, i, true);
        }
        return process(context, LLAMA_PROCESS_TYPE_ENCODE, n_tokens, false);
    });
}

int llcuda_set_adapters(llcuda_context * context, llama_adapter_lora ** adapters, float * scales, size_t n) {
    return shim::entered<int>(context, [&]() -> int {
        return llama_set_adapters_lora(context->raw, adapters, n, scales) == 0 ? LLCUDA_OK : LLCUDA_EXCEPTION;
    });
}
