// Sampling many rows of one decode at once, and the cut that keeps it cheap.

#include "context.hpp"

#include <algorithm>
#include <cmath>
#include <string>

using shim::guarded;

namespace {

constexpr int32_t BLOCK = 64;

// What a row costs, by measurement: a full chain 10 ns a logit, a cut 50 us and 0.1 ns a logit.
constexpr double ALL_NS = 10.0, CUT_NS = 0.1, CUT_FIXED_NS = 50e3;

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

int llcuda_sample_rows(llcuda_context * context, int32_t n, const int32_t * indices, llama_sampler ** chains,
                       const int32_t * supersets, const int8_t * local, int32_t * tokens, int32_t * statuses) {
    std::vector<const float *> rows(n);
    return shim::with_rows(context, indices, rows, [&]() -> int {
        std::vector<std::string> messages(n);
        const int32_t n_vocab = context->n_vocab;
        auto sample = [&](int32_t i) {
            statuses[i] = rows[i] ? guarded<int>(LLCUDA_EXCEPTION, [&] {
                return shim::run_chain(chains[i], rows[i], n_vocab, supersets[i], &tokens[i]);
            }) : static_cast<int>(LLCUDA_NO_OUTPUT);
            if (statuses[i] == LLCUDA_EXCEPTION) {
                messages[i] = llcuda_errors();
            }
        };
        double cost = 0;
        for (int32_t i = 0; i < n; i++) {
            cost += supersets[i] ? CUT_FIXED_NS + CUT_NS * n_vocab : ALL_NS * n_vocab;
        }
        const bool threads = n > 1 && cost > shim::WORTH_THREADS_NS;
        #pragma omp parallel for schedule(dynamic) if(threads)
        for (int32_t i = 0; i < n; i++) {
            if (!local[i]) {
                sample(i);
            }
        }
        int failed = 0;
        for (int32_t i = 0; i < n; i++) {
            if (local[i]) {
                sample(i);
            }
            failed += statuses[i] != LLCUDA_OK;
            if (!messages[i].empty()) {
                shim::add_error(messages[i]);
            }
        }
        context->timings.sampled_tokens += n - failed;
        return failed;
    });
}
