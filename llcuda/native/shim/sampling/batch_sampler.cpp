// Sampling of many rows of one decode, and the cut to the best candidates that keeps it cheap.

#include "sampling/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <string>

using shim::guarded;
using shim::now_ns;

namespace {

constexpr int32_t BLOCK = 64;

// What a row costs, by measurement: a full chain 10 ns a logit, a cut 5 us and 0.17 ns a logit.
constexpr double ALL_NS = 10.0, CUT_NS = 0.17, CUT_FIXED_NS = 5e3;

struct Best {
    float   logit;
    int32_t id;
};

// Of equal logits the one with the lower id is the better.
bool above(const Best & a, const Best & b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

// The first of the blocks from `begin` that holds a value above `least`, or what is left after the last block.
SHIM_CLONES int32_t next_block(const float * values, int32_t begin, int32_t n, float least) {
    for (; begin + BLOCK <= n; begin += BLOCK) {
        int found = 0;
        for (int32_t i = begin; i < begin + BLOCK; i++) {
            found |= values[i] > least;
        }
        if (found) {
            break;
        }
    }
    return begin;
}

}  // namespace

void shim::best_candidates(const float * logits, int32_t n, int32_t count, std::vector<llama_token_data> & out) {
    thread_local std::vector<Best> heap;  // its front is the least of the best
    heap.clear();
    int32_t i = 0;
    auto offer = [&](int32_t id) {
        const float logit = logits[id];
        if (std::isnan(logit)) {
            return;
        }
        if (static_cast<int32_t>(heap.size()) < count) {
            heap.push_back({logit, id});
            std::push_heap(heap.begin(), heap.end(), above);
        } else if (logit > heap.front().logit) {
            std::pop_heap(heap.begin(), heap.end(), above);
            heap.back() = {logit, id};
            std::push_heap(heap.begin(), heap.end(), above);
        }
    };
    while (i < n && static_cast<int32_t>(heap.size()) < count) {
        offer(i++);
    }
    while (i < n) {
        i = next_block(logits, i, n, heap.front().logit);
        for (const int32_t end = std::min(i + BLOCK, n); i < end; i++) {
            offer(i);
        }
    }
    // In the order of their ids, as llama.cpp's own candidates are.
    std::sort(heap.begin(), heap.end(), [](const Best & a, const Best & b) { return a.id < b.id; });
    out.resize(heap.size());
    for (size_t k = 0; k < heap.size(); k++) {
        out[k] = {heap[k].id, heap[k].logit, 0.0f};
    }
}

// Have the device reduce the rows that it can; `rows` gets what it chose. Returns when the decode was over, or 0.
static int64_t reduce(llcuda_context * context, int32_t n, const std::vector<int32_t> & outputs,
                      const llcuda_sampling * samplings, std::vector<shim::Row> & rows) {
    thread_local std::vector<llcuda_row> tasks;
    thread_local std::vector<llcuda_adjustment> adjustments;
    thread_local std::vector<uint32_t> masks;
    tasks.clear();
    adjustments.clear();
    masks.clear();
    const int32_t words = (context->n_vocab + 31) / 32;
    std::vector<int32_t> task_of(n, -1);
    for (int32_t i = 0; i < n; i++) {
        const auto & sampling = samplings[i];
        const bool fits = sampling.superset > 0 && sampling.superset + sampling.n_extras <= LLCUDA_MOST_CANDIDATES;
        if (outputs[i] < 0 || sampling.forced >= 0 || !(sampling.draw || fits)) {
            continue;
        }
        llcuda_row task = {};
        task.index = outputs[i];
        task.mask = -1;
        if (sampling.mask) {
            task.mask = masks.size() / words;
            masks.insert(masks.end(), sampling.mask, sampling.mask + words);
        }
        task.adjust_begin = adjustments.size();
        if (sampling.draw) {
            shim::fill_draw(sampling.draw, task, adjustments);
        } else {
            task.k = sampling.superset;
            for (int32_t j = 0; j < sampling.n_extras; j++) {
                adjustments.push_back({sampling.extras[j], 0, 0, 0});
            }
        }
        task.adjust_end = adjustments.size();
        task_of[i] = tasks.size();
        tasks.push_back(task);
    }
    if (tasks.empty()) {
        return 0;
    }
    const int64_t begin = now_ns();
    context->device->begin(tasks, adjustments, masks);
    const int64_t computed = now_ns();
    (context->event.decode ? context->timings.decode_ns : context->timings.prefill_ns) += computed - begin;
    context->device->end();
    for (int32_t i = 0; i < n; i++) {
        if (task_of[i] >= 0) {
            rows[i].best = context->device->candidates(task_of[i]);
            rows[i].n_best = context->device->count(task_of[i]);
        }
    }
    return computed;
}

int llcuda_sample_rows(llcuda_context * context, int32_t n, const int32_t * indices,
                       const llcuda_sampling * samplings, int32_t * tokens, int32_t * statuses, int64_t * ns) {
    return shim::entered<int>(context, [&]() -> int {
        const int32_t n_vocab = context->n_vocab;
        std::vector<shim::Row> rows(n);
        std::vector<int32_t> outputs(n);
        for (int32_t i = 0; i < n; i++) {
            outputs[i] = shim::output_of(context, indices[i]);
        }
        int64_t begin = 0;
        if (context->device && context->device->reduces()) {
            begin = reduce(context, n, outputs, samplings, rows);
        }
        shim::wait(context);
        begin = begin ? begin : now_ns();
        double cost = 0;
        for (int32_t i = 0; i < n; i++) {
            if (!rows[i].best && outputs[i] >= 0 && samplings[i].forced < 0) {
                rows[i].logits = shim::logits_of(context, outputs[i]);
                cost += samplings[i].superset ? CUT_FIXED_NS + CUT_NS * n_vocab : ALL_NS * n_vocab;
            }
        }
        std::vector<std::string> messages(n);
        auto sample = [&](int32_t i) {
            const bool forced = samplings[i].forced >= 0;
            statuses[i] = forced || rows[i].best || rows[i].logits ? guarded<int>(LLCUDA_EXCEPTION, [&] {
                return forced ? shim::take_forced(samplings[i], &tokens[i])
                              : shim::sample_row(samplings[i], rows[i], n_vocab, &tokens[i]);
            }) : static_cast<int>(LLCUDA_NO_OUTPUT);
            if (statuses[i] == LLCUDA_EXCEPTION) {
                messages[i] = llcuda_errors();
            }
        };
        const bool threads = n > 1 && cost > shim::WORTH_THREADS_NS;
        #pragma omp parallel for schedule(dynamic) if(threads)
        for (int32_t i = 0; i < n; i++) {
            if (!samplings[i].local) {
                sample(i);
            }
        }
        int failed = 0, forced = 0;
        for (int32_t i = 0; i < n; i++) {
            forced += samplings[i].forced >= 0;
            if (samplings[i].local) {
                sample(i);
            }
            failed += statuses[i] != LLCUDA_OK;
            if (statuses[i] == LLCUDA_NO_CANDIDATES && rows[i].best) {
                const float * logits = shim::logits_of(context, outputs[i]);
                statuses[i] = logits ? shim::why_none_is_left(logits, n_vocab) : statuses[i];
            }
            if (!messages[i].empty()) {
                shim::add_error(messages[i]);
            }
        }
        context->timings.sampled_tokens += std::max(0, n - failed - forced);
        *ns = now_ns() - begin;
        context->timings.sample_ns += *ns;
        return failed;
    });
}
