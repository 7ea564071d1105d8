// The divergence of the rows of one context from those of a reference.

#include "decode/context.hpp"
#include "decode/softmax.hpp"

#include <algorithm>
#include <cmath>

using shim::exp_negative;
using shim::guarded;

namespace {

constexpr int32_t LANES = 16, BLOCK = 256;
constexpr double ROW_NS = 0.8;  // a logit, by measurement

struct Sums {
    double ours = 0, reference = 0;  // of exp(logit - highest)
    double weighted = 0;             // of exp(reference - its highest) times the difference of both exponents
};

// p log(p / q) is 0 where p is 0, whatever q is.
inline float weigh(float p, float difference) { return p > 0 ? p * difference : 0.0f; }

SHIM_CLONES void sum_up(const float * ours, const float * reference, int32_t n, float ours_highest,
                        float reference_highest, Sums * sums) {
    int32_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float a[LANES] = {}, b[LANES] = {}, c[LANES] = {};
        for (int32_t j = i; j < i + BLOCK; j += LANES) {
            for (int32_t k = 0; k < LANES; k++) {
                const float x = ours[j + k] - ours_highest, y = reference[j + k] - reference_highest;
                const float p = exp_negative(y);
                a[k] += exp_negative(x);
                b[k] += p;
                c[k] += weigh(p, y - x);
            }
        }
        for (int32_t k = 0; k < LANES; k++) {
            sums->ours += a[k];
            sums->reference += b[k];
            sums->weighted += c[k];
        }
    }
    for (; i < n; i++) {
        const float x = ours[i] - ours_highest, y = reference[i] - reference_highest;
        const float p = exp_negative(y);
        sums->ours += exp_negative(x);
        sums->reference += p;
        sums->weighted += weigh(p, y - x);
    }
}

void compare(const float * ours, const float * reference, int32_t n, int32_t token, llcuda_comparison * result) {
    const auto * best = std::max_element(ours, ours + n);
    const auto * reference_best = std::max_element(reference, reference + n);
    Sums sums;
    sum_up(ours, reference, n, *best, *reference_best, &sums);
    const double log_ours = std::log(sums.ours), log_reference = std::log(sums.reference);
    result->logprob           = static_cast<double>(ours[token]) - *best - log_ours;
    result->reference_logprob = static_cast<double>(reference[token]) - *reference_best - log_reference;
    result->divergence        = sums.weighted / sums.reference + log_ours - log_reference;
    result->same_best         = best - ours == reference_best - reference;
}

}  // namespace

int llcuda_compare(llcuda_context * context, llcuda_context * reference, int32_t n, const int32_t * indices,
                   const int32_t * tokens, llcuda_comparison * results) {
    std::vector<const float *> rows(n), reference_rows(n);
    const int32_t n_vocab = context->n_vocab;
    return shim::with_rows(context, indices, rows, [&]() -> int {
        return shim::with_rows(reference, indices, reference_rows, [&]() -> int {
            for (int32_t i = 0; i < n; i++) {
                if (!rows[i] || !reference_rows[i]) {
                    return LLCUDA_NO_OUTPUT;
                }
                if (tokens[i] < 0 || tokens[i] >= n_vocab || n_vocab != reference->n_vocab) {
                    return LLCUDA_BAD_TOKEN;
                }
            }
            const bool threads = n > 1 && n * (ROW_NS * n_vocab) > shim::WORTH_THREADS_NS;
            #pragma omp parallel for schedule(dynamic) if(threads)
            for (int32_t i = 0; i < n; i++) {
                compare(rows[i], reference_rows[i], n_vocab, tokens[i], &results[i]);
            }
            return LLCUDA_OK;
        });
    });
}
