// Log-probabilities of rows of the last decode: that of one token, and the highest ones.

#include "sampling/sampling.hpp"
#include "decode/softmax.hpp"

#include <algorithm>
#include <cmath>

using shim::exp_negative;
using shim::guarded;

namespace {

constexpr int32_t LANES = 16, BLOCK = 256;
constexpr double ROW_NS = 0.3;  // a logit, by measurement

// The sum of exp(values - highest); NaN when a value is NaN, or `highest` no finite number.
SHIM_CLONES double sum_exp(const float * values, int32_t n, float highest) {
    double total = 0;
    int32_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float sums[LANES] = {};
        for (int32_t j = i; j < i + BLOCK; j += LANES) {
            for (int32_t k = 0; k < LANES; k++) {
                sums[k] += exp_negative(values[j + k] - highest);
            }
        }
        for (float sum : sums) {
            total += sum;
        }
    }
    for (; i < n; i++) {
        total += exp_negative(values[i] - highest);
    }
    return total;
}

// One row: log p of `token`, and the n_top best.
void log_softmax(const float * logits, int32_t n_vocab, int32_t token, int32_t n_top, double * value,
                 int32_t * top_tokens, double * top_values) {
    thread_local std::vector<llama_token_data> best;
    shim::best_candidates(logits, n_vocab, std::max(n_top, 1), best);
    std::stable_sort(best.begin(), best.end(), [](const auto & a, const auto & b) { return a.logit > b.logit; });
    const float highest = best.empty() ? NAN : best[0].logit;
    const double normalizer = std::log(sum_exp(logits, n_vocab, highest));
    auto log_p = [&](float logit) { return static_cast<double>(logit) - highest - normalizer; };
    *value = log_p(logits[token]);
    const bool ranked = !std::isnan(normalizer);
    for (int32_t k = 0; k < n_top; k++) {
        top_tokens[k] = ranked ? best[k].id : k;
        top_values[k] = ranked ? log_p(best[k].logit) : NAN;
    }
}

}  // namespace

int llcuda_logprobs(llcuda_context * context, int32_t n, const int32_t * indices, const int32_t * tokens,
                    int32_t n_top, double * values, int32_t * top_tokens, double * top_values) {
    std::vector<const float *> rows(n);
    return shim::with_rows(context, indices, rows, [&]() -> int {
        const int32_t n_vocab = context->n_vocab;
        for (int32_t i = 0; i < n; i++) {
            if (!rows[i]) {
                return LLCUDA_NO_OUTPUT;
            }
            if (tokens[i] < 0 || tokens[i] >= n_vocab) {
                return LLCUDA_BAD_TOKEN;
            }
        }
        const bool threads = n > 1 && n * (ROW_NS * n_vocab) > shim::WORTH_THREADS_NS;
        int status = LLCUDA_OK;
        #pragma omp parallel for schedule(dynamic) reduction(min : status) if(threads)
        for (int32_t i = 0; i < n; i++) {
            const auto top = static_cast<size_t>(i) * n_top;
            status = std::min(status, guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
                log_softmax(rows[i], n_vocab, tokens[i], n_top, &values[i], top_tokens + top, top_values + top);
                return LLCUDA_OK;
            }));
        }
        return status;
    });
}
