// Kernels for the best candidates of each row: the groups whose highest logit is among the k highest hold them.
// Rows differ in their parameters, not in their launches.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "select.h"

namespace {

constexpr int GROUP   = 64;    // logits whose highest stands for them
constexpr int CHUNK   = 4096;  // logits of one block
constexpr int THREADS = 256;
constexpr int PICK_THREADS = 1024;
constexpr int KEPT    = 1024;  // candidates of a row that shared memory holds
constexpr int NEAR_GROUPS = 4096;

// Bits of a float in an order that whole numbers have; 0 for -inf and NaN, which are never chosen.
__device__ uint32_t key_of(float value) {
    if (!(value > -INFINITY)) {
        return 0;
    }
    const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float value_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ float logit_at(const float * logits, const uint32_t * mask, int32_t i) {
    return mask && !(mask[i >> 5] >> (i & 31) & 1) ? -INFINITY : logits[i];
}

struct View {
    const float *    logits;
    const uint32_t * masks;  // of all rows, null without any
    int32_t          n_vocab, mask_words;
    const llcuda_row * rows;

    __device__ const float * row(int r) const { return logits + static_cast<size_t>(rows[r].index) * n_vocab; }
    __device__ const uint32_t * mask(int r) const {
        return rows[r].mask < 0 ? nullptr : masks + static_cast<size_t>(rows[r].mask) * mask_words;
    }
};

// The highest logit of each group.
__global__ void group_max(View view, uint32_t * out, int n_groups) {
    const float * logits = view.row(blockIdx.y);
    const uint32_t * mask = view.mask(blockIdx.y);
    const int lane = threadIdx.x % 16;
    const int end = min(n_groups, static_cast<int>(blockIdx.x + 1) * (CHUNK / GROUP));
    for (int group = blockIdx.x * (CHUNK / GROUP) + threadIdx.x / 16; group < end; group += THREADS / 16) {
        float best = -INFINITY;
        for (int i = group * GROUP + lane; i < min((group + 1) * GROUP, view.n_vocab); i += 16) {
            best = fmaxf(best, logit_at(logits, mask, i));
        }
        for (int step = 8; step; step /= 2) {
            best = fmaxf(best, __shfl_xor_sync(threadIdx.x & 16 ? 0xffff0000u : 0xffffu, best, step, 16));
        }
        if (lane == 0) {
            out[static_cast<size_t>(blockIdx.y) * n_groups + group] = key_of(best);
        }
    }
}

// The k-th highest of the keys that `at` gives for 0 to n-1, 0 when there are fewer. All threads take part.
template <typename At> __device__ uint32_t kth_highest(int n, int k, At at) {
    __shared__ int histogram[256];
    __shared__ uint32_t prefix;
    __shared__ int rank;
    if (threadIdx.x == 0) {
        prefix = 0;
        rank = k;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) {
            histogram[threadIdx.x] = 0;
        }
        __syncthreads();
        const uint32_t known = shift == 24 ? 0 : ~0u << (shift + 8);
        for (int begin = threadIdx.x & ~31; begin < n; begin += blockDim.x) {
            const int i = begin + threadIdx.x % 32;
            const uint32_t key = i < n ? at(i) : 0;
            const int bin = key && (key & known) == prefix ? static_cast<int>(key >> shift & 255) : -1;
            // Most keys share their highest byte: one addition for all equal ones of a warp.
            const unsigned alike = __match_any_sync(~0u, bin);
            if (bin >= 0 && __ffs(alike) - 1 == threadIdx.x % 32) {
                atomicAdd(&histogram[bin], __popc(alike));
            }
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            // Lane l holds the bins 8l to 8l+7; above: how many keys lie in higher bins.
            int own = 0;
            for (int j = 0; j < 8; j++) {
                own += histogram[threadIdx.x * 8 + j];
            }
            int above = own;
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_down_sync(~0u, above, step);
                above += threadIdx.x + step < 32 ? other : 0;
            }
            const int wanted = rank, total = __shfl_sync(~0u, above, 0);
            above -= own;
            __syncwarp();
            if (total < wanted) {
                rank = 0;  // fewer than k: every lane writes the same
            } else if (above < wanted && wanted <= above + own) {
                for (int j = 7; j >= 0; j--) {
                    const int here = histogram[threadIdx.x * 8 + j];
                    if (above + here >= wanted) {
                        prefix |= static_cast<uint32_t>(threadIdx.x * 8 + j) << shift;
                        rank = wanted - above;
                        break;
                    }
                    above += here;
                }
            }
        }
        __syncthreads();
        if (rank == 0) {
            return 0;
        }
    }
    return prefix;
}

// Choose one of the n best logits, sorted: top_p, min_p, temperature and the row's random number, each summed in
// the order of the CPU's samplers, so that the same number gives the same token.
__device__ int draw_from(const llcuda_row & row, const float * best, int n) {
    __shared__ float weights[LLCUDA_MOST_CANDIDATES];
    __shared__ int result, left;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        weights[i] = expf(best[i] - best[0]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        left = n;
        if (row.top_p < 1) {
            float total = 0, sum = 0;
            for (int i = 0; i < n; i++) {
                total += weights[i];
            }
            for (int i = 0; i < n; i++) {
                sum += weights[i] / total;
                if (sum >= row.top_p) {
                    left = i + 1;
                    break;
                }
            }
        }
        if (row.min_p > 0) {
            const float least = best[0] + logf(row.min_p);
            int i = 1;
            while (i < left && best[i] >= least) {
                i++;
            }
            left = min(left, i);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < left; i += blockDim.x) {
        weights[i] = expf(best[i] / row.temperature - best[0] / row.temperature);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0, sum = 0;
        for (int i = 0; i < left; i++) {
            total += weights[i];
        }
        result = max(left - 1, 0);
        for (int i = 0; i < left; i++) {
            sum += weights[i];
            if (sum >= total * row.uniform) {
                result = i;
                break;
            }
        }
    }
    __syncthreads();
    return result;
}

// The k best candidates of a row: those groups' whose highest is among the k highest. Or one of them, drawn.
__global__ void pick_best(View view, const uint32_t * group_keys, int n_groups, const llcuda_adjustment * adjustments,
                          llcuda_candidate * out, int32_t * counts) {
    const llcuda_row row = view.rows[blockIdx.x];
    if (row.k == 0) {
        return;
    }
    __shared__ uint32_t keys[KEPT];
    __shared__ int32_t ids[KEPT];
    __shared__ uint32_t near[NEAR_GROUPS];  // the groups' keys, once read
    __shared__ int32_t chosen[NEAR_GROUPS];
    __shared__ int kept, n_chosen;
    const float * logits = view.row(blockIdx.x);
    const uint32_t * mask = view.mask(blockIdx.x);
    const uint32_t * groups = group_keys + static_cast<size_t>(blockIdx.x) * n_groups;
    if (n_groups <= NEAR_GROUPS) {
        for (int i = threadIdx.x; i < n_groups; i += blockDim.x) {
            near[i] = groups[i];
        }
        groups = near;
    }
    if (threadIdx.x == 0) {
        kept = 0;
    }
    __syncthreads();
    uint32_t cut = max(kth_highest(n_groups, row.k, [&](int i) { return groups[i]; }), 1u);
    // Collect what is at least `least`: first the groups that hold it, then half a warp looks into each.
    auto collect = [&](uint32_t least) {
        for (int first = 0; first < n_groups; first += NEAR_GROUPS) {
            if (threadIdx.x == 0) {
                n_chosen = 0;
            }
            __syncthreads();
            for (int i = first + threadIdx.x; i < min(first + NEAR_GROUPS, n_groups); i += blockDim.x) {
                if (groups[i] >= least) {
                    chosen[atomicAdd(&n_chosen, 1)] = i;
                }
            }
            __syncthreads();
            for (int c = threadIdx.x / 16; c < n_chosen; c += blockDim.x / 16) {
                const int begin = chosen[c] * GROUP;
                for (int i = begin + threadIdx.x % 16; i < min(begin + GROUP, view.n_vocab); i += 16) {
                    const uint32_t key = key_of(logit_at(logits, mask, i));
                    if (key >= least) {
                        const int place = atomicAdd(&kept, 1);
                        if (place < KEPT) {
                            keys[place] = key;
                            ids[place] = i;
                        }
                    }
                }
            }
            __syncthreads();
        }
    };
    collect(cut);
    if (kept > KEPT) {
        // Many equal logits. Exactly the k-th highest; of those equal to it the lowest ids.
        auto key_at = [&](int i) { return key_of(logit_at(logits, mask, i)); };
        const uint32_t last = kth_highest(view.n_vocab, row.k, key_at);
        if (threadIdx.x == 0) {
            kept = 0;
        }
        __syncthreads();
        collect(last + 1);
        __shared__ int missing;
        if (threadIdx.x == 0) {
            missing = row.k - kept;
        }
        for (int begin = 0; begin < view.n_vocab; begin += blockDim.x) {
            __syncthreads();
            if (missing <= 0) {
                break;
            }
            const int i = begin + threadIdx.x;
            const bool equal = i < view.n_vocab && key_at(i) == last;
            __shared__ int before[PICK_THREADS / 32];
            const unsigned votes = __ballot_sync(~0u, equal);
            if (threadIdx.x % 32 == 0) {
                before[threadIdx.x / 32] = __popc(votes);
            }
            __syncthreads();
            int place = __popc(votes & ((1u << threadIdx.x % 32) - 1)), total = 0;
            for (int warp = 0; warp < blockDim.x / 32; warp++) {
                place += warp < threadIdx.x / 32 ? before[warp] : 0;
                total += before[warp];
            }
            if (equal && place < missing) {
                const int free = atomicAdd(&kept, 1);
                keys[free] = last;
                ids[free] = i;
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                missing -= total;
            }
        }
        __syncthreads();
    }
    // Each counts those before it: that is its place.
    __shared__ float best[LLCUDA_MOST_CANDIDATES];
    __shared__ int32_t best_ids[LLCUDA_MOST_CANDIDATES];
    llcuda_candidate * results = out + static_cast<size_t>(blockIdx.x) * LLCUDA_MOST_CANDIDATES;
    const int n = min(kept, KEPT), n_best = min(n, row.k);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        int place = 0;
        for (int j = 0; j < n; j++) {
            place += keys[j] > keys[i] || (keys[j] == keys[i] && ids[j] < ids[i]);
        }
        if (place < row.k) {
            best[place] = value_of(keys[i]);
            best_ids[place] = ids[i];
        }
    }
    __syncthreads();
    if (row.draw) {
        const int chosen = draw_from(row, best, n_best);
        if (threadIdx.x == 0) {
            counts[blockIdx.x] = n_best > 0;
            if (n_best > 0) {
                results[0] = {best_ids[chosen], best[chosen]};
            }
        }
        return;
    }
    for (int i = threadIdx.x; i < n_best; i += blockDim.x) {
        results[i] = {best_ids[i], best[i]};
    }
    // Behind them the logits that were asked for by name.
    for (int i = row.adjust_begin + threadIdx.x; i < row.adjust_end; i += blockDim.x) {
        const int32_t id = adjustments[i].token;
        results[row.k + i - row.adjust_begin] = {id, logit_at(logits, mask, id)};
    }
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = n_best;
    }
}

}  // namespace
