// Kernels that draw a token from the whole vocabulary: where the nucleus ends, by histograms of weight over the
// distance from the highest logit, then what each chunk weighs, then the token at the row's random number.
#pragma once

#include "pick.cuh"

namespace {

constexpr int BINS    = 2048;
constexpr float RANGE = 32.0f;  // what lies further below the highest logit weighs under 2e-14 of it
constexpr float COARSE = BINS / RANGE, FINE = COARSE * BINS;
constexpr float UNIT  = 17592186044416.0f;  // 2^44: weights are whole numbers, so sums do not depend on order

struct Draw {
    float    highest;
    int      bin;     // the coarse bin in which the nucleus ends
    float    cut;     // how far below the highest a kept logit may lie
    unsigned long long left;  // weight that the bins before `bin` lack to the nucleus
};

__device__ unsigned long long weight(float below, float scale) {
    return static_cast<unsigned long long>(expf(-below * scale) * UNIT);
}

// Bias and penalties of single tokens, in the order of llama.cpp's chain; or what was there before them.
__global__ void adjust(View view, float * logits, llcuda_adjustment * adjustments, bool restore) {
    const llcuda_row row = view.rows[blockIdx.x];
    if (row.draw == 0) {
        return;
    }
    for (int i = row.adjust_begin + threadIdx.x; i < row.adjust_end; i += blockDim.x) {
        llcuda_adjustment & a = adjustments[i];
        float & logit = logits[static_cast<size_t>(row.index) * view.n_vocab + a.token];
        if (restore) {
            logit = a.before;
            continue;
        }
        a.before = logit;
        float value = logit + a.bias;
        if (a.count) {
            value = value <= 0 ? value * row.repeat : value / row.repeat;
            value -= a.count * row.frequency + row.presence;
        }
        logit = value;
    }
}

__device__ bool draws_from_all(const llcuda_row & row) { return row.draw && row.k == 0; }

__global__ void draw_begin(View view, const uint32_t * group_keys, int n_groups, Draw * draws) {
    __shared__ uint32_t highest;
    if (threadIdx.x == 0) {
        highest = 0;
    }
    __syncthreads();
    uint32_t own = 0;
    for (int i = threadIdx.x; i < n_groups; i += blockDim.x) {
        own = max(own, group_keys[static_cast<size_t>(blockIdx.x) * n_groups + i]);
    }
    atomicMax(&highest, own);
    __syncthreads();
    if (threadIdx.x == 0) {
        const llcuda_row row = view.rows[blockIdx.x];
        const float by_min_p = row.min_p > 0 ? -logf(row.min_p) : INFINITY;
        draws[blockIdx.x] = {value_of(highest), -1, highest ? by_min_p : -1.0f, 0};
    }
}

// Weights by distance from the highest logit: over the whole range, or within the coarse bin `bin`.
__global__ void weigh(View view, const Draw * draws, unsigned long long * histograms, bool fine) {
    const int r = blockIdx.y;
    if (!draws_from_all(view.rows[r]) || view.rows[r].top_p >= 1) {
        return;
    }
    __shared__ unsigned long long own[BINS];
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
        own[i] = 0;
    }
    __syncthreads();
    const Draw draw = draws[r];
    const float * logits = view.row(r);
    const uint32_t * mask = view.mask(r);
    const int begin = blockIdx.x * CHUNK;
    for (int i = begin + threadIdx.x; i < min(begin + CHUNK, view.n_vocab); i += blockDim.x) {
        const float below = draw.highest - logit_at(logits, mask, i);
        if (!(below < RANGE)) {
            continue;
        }
        const int coarse = static_cast<int>(below * COARSE);
        if (!fine) {
            atomicAdd(&own[coarse], weight(below, 1));
        } else if (coarse == draw.bin) {
            atomicAdd(&own[min(static_cast<int>((below - coarse / COARSE) * FINE), BINS - 1)], weight(below, 1));
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
        if (own[i]) {
            atomicAdd(&histograms[static_cast<size_t>(r) * BINS + i], own[i]);
        }
    }
}

// The sum of `own` over the threads before this one; `total` over all. For PICK_THREADS threads.
__device__ unsigned long long sum_before(unsigned long long own, unsigned long long & total) {
    __shared__ unsigned long long warps[PICK_THREADS / 32];
    unsigned long long sum = own;
    for (int step = 1; step < 32; step *= 2) {
        const unsigned long long other = __shfl_up_sync(~0u, sum, step);
        sum += threadIdx.x % 32 >= step ? other : 0;
    }
    if (threadIdx.x % 32 == 31) {
        warps[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    unsigned long long before = sum - own;
    total = 0;
    for (int warp = 0; warp < PICK_THREADS / 32; warp++) {
        before += warp < threadIdx.x / 32 ? warps[warp] : 0;
        total += warps[warp];
    }
    __syncthreads();
    return before;
}

// Find the bin in which the nucleus ends; clears the histogram for its next use.
__global__ void find_cut(View view, unsigned long long * histograms, Draw * draws, bool fine) {
    const int r = blockIdx.x;
    const llcuda_row row = view.rows[r];
    if (!draws_from_all(row) || row.top_p >= 1) {
        return;
    }
    unsigned long long * histogram = histograms + static_cast<size_t>(r) * BINS;
    constexpr int EACH = BINS / PICK_THREADS;
    unsigned long long own[EACH], sum = 0, total;
    for (int j = 0; j < EACH; j++) {
        own[j] = histogram[threadIdx.x * EACH + j];
        histogram[threadIdx.x * EACH + j] = 0;
        sum += own[j];
    }
    unsigned long long before = sum_before(sum, total);
    const unsigned long long wanted =
        fine ? draws[r].left : max(static_cast<unsigned long long>(static_cast<double>(row.top_p) * total), 1ull);
    __syncthreads();
    for (int j = 0; j < EACH; j++) {
        if (own[j] && before < wanted && wanted <= before + own[j]) {
            const int bin = threadIdx.x * EACH + j;
            if (fine) {
                draws[r].cut = fminf(draws[r].cut, draws[r].bin / COARSE + (bin + 1) / FINE);
            } else {
                draws[r].bin = bin;
                draws[r].left = wanted - before;
            }
        }
        before += own[j];
    }
}

__device__ unsigned long long kept_weight(const View & view, const Draw & draw, int r, int32_t i) {
    const float below = draw.highest - logit_at(view.row(r), view.mask(r), i);
    return below <= draw.cut ? weight(below, 1 / view.rows[r].temperature) : 0;
}

// What each chunk of the vocabulary weighs, at the row's temperature.
__global__ void weigh_chunks(View view, const Draw * draws, unsigned long long * sums) {
    const int r = blockIdx.y;
    if (!draws_from_all(view.rows[r])) {
        return;
    }
    __shared__ unsigned long long sum;
    if (threadIdx.x == 0) {
        sum = 0;
    }
    __syncthreads();
    const Draw draw = draws[r];
    unsigned long long own = 0;
    const int begin = blockIdx.x * CHUNK;
    for (int i = begin + threadIdx.x; i < min(begin + CHUNK, view.n_vocab); i += blockDim.x) {
        own += kept_weight(view, draw, r, i);
    }
    for (int step = 16; step; step /= 2) {
        own += __shfl_xor_sync(~0u, own, step);
    }
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&sum, own);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        sums[static_cast<size_t>(r) * gridDim.x + blockIdx.x] = sum;
    }
}

// The token at the row's uniform number.
__global__ void draw_token(View view, const Draw * draws, const unsigned long long * sums, int n_chunks,
                           llcuda_candidate * out, int32_t * counts) {
    const int r = blockIdx.x;
    const llcuda_row row = view.rows[r];
    if (!draws_from_all(row)) {
        return;
    }
    __shared__ int chunk;
    __shared__ unsigned long long target;
    if (threadIdx.x == 0) {
        unsigned long long total = 0;
        for (int i = 0; i < n_chunks; i++) {
            total += sums[static_cast<size_t>(r) * n_chunks + i];
        }
        target = min(static_cast<unsigned long long>(row.uniform * static_cast<double>(total)), total - (total > 0));
        chunk = -1;
        for (int i = 0; i < n_chunks && total; i++) {
            const unsigned long long here = sums[static_cast<size_t>(r) * n_chunks + i];
            if (target < here) {
                chunk = i;
                break;
            }
            target -= here;
        }
        counts[r] = chunk >= 0;
    }
    __syncthreads();
    if (chunk < 0) {
        return;
    }
    const Draw draw = draws[r];
    constexpr int EACH = CHUNK / PICK_THREADS;
    unsigned long long own[EACH], sum = 0, total;
    for (int j = 0; j < EACH; j++) {
        const int32_t i = chunk * CHUNK + threadIdx.x * EACH + j;
        own[j] = i < view.n_vocab ? kept_weight(view, draw, r, i) : 0;
        sum += own[j];
    }
    unsigned long long before = sum_before(sum, total);
    for (int j = 0; j < EACH; j++) {
        if (before <= target && target < before + own[j]) {
            const int32_t i = chunk * CHUNK + threadIdx.x * EACH + j;
            out[static_cast<size_t>(r) * LLCUDA_MOST_CANDIDATES] = {i, view.row(r)[i]};
        }
        before += own[j];
    }
}

}  // namespace
