// Tasks over the logits of all rows of a step, on the device. Compiled into the CUDA backend.

#include <cstring>
#include <new>

#include "draw.cuh"
#include "ggml-backend-impl.h"
#include "ggml-cuda/common.cuh"

namespace {

template <typename T> bool on_device(T *& pointer, size_t n) {
    return cudaMalloc(reinterpret_cast<void **>(&pointer), n * sizeof(T)) == cudaSuccess;
}

template <typename T> bool on_host(T *& pointer, size_t n) {
    return cudaHostAlloc(reinterpret_cast<void **>(&pointer), n * sizeof(T), cudaHostAllocMapped) == cudaSuccess;
}

}  // namespace

struct llcuda_selector {
    int           device = 0;
    int32_t       n_vocab = 0, max_rows = 0, n_groups = 0, n_chunks = 0, mask_words = 0;
    cudaStream_t  stream = nullptr;   // the backend's
    cudaEvent_t   computed = nullptr;  // the logits
    llcuda_row *  rows = nullptr;  // on the device
    llcuda_row *  rows_sent = nullptr;
    int32_t       n_sent = 0;
    uint32_t *    group_keys = nullptr;
    uint32_t *    masks = nullptr;
    Draw *        draws = nullptr;
    unsigned long long * histograms = nullptr, * sums = nullptr;
    llcuda_adjustment *  adjustments = nullptr;
    int32_t       adjustments_room = 0;
    llcuda_candidate * candidates = nullptr, * candidates_there = nullptr;  // host memory, and as the device sees it
    int32_t *          counts = nullptr, * counts_there = nullptr;
};

static bool allocate(llcuda_selector & s) {
    const size_t rows = s.max_rows;
    return cudaEventCreateWithFlags(&s.computed, cudaEventDisableTiming) == cudaSuccess
        && on_device(s.rows, rows) && on_device(s.group_keys, rows * s.n_groups)
        && on_device(s.masks, rows * s.mask_words) && on_device(s.draws, rows)
        && on_device(s.histograms, rows * BINS) && on_device(s.sums, rows * s.n_chunks)
        && cudaMemset(s.histograms, 0, rows * BINS * sizeof(*s.histograms)) == cudaSuccess
        && on_host(s.candidates, rows * LLCUDA_MOST_CANDIDATES) && on_host(s.counts, rows)
        && cudaHostGetDevicePointer(reinterpret_cast<void **>(&s.candidates_there), s.candidates, 0) == cudaSuccess
        && cudaHostGetDevicePointer(reinterpret_cast<void **>(&s.counts_there), s.counts, 0) == cudaSuccess;
}

llcuda_selector * llcuda_selector_new(const void * logits, int32_t n_vocab, int32_t max_rows) {
    cudaPointerAttributes attributes;
    auto * s = new (std::nothrow) llcuda_selector;
    if (!s || cudaPointerGetAttributes(&attributes, logits) != cudaSuccess) {
        delete s;
        return nullptr;
    }
    s->device = attributes.device;
    s->n_vocab = n_vocab;
    s->max_rows = max_rows;
    s->n_groups = (n_vocab + GROUP - 1) / GROUP;
    s->n_chunks = (n_vocab + CHUNK - 1) / CHUNK;
    s->mask_words = (n_vocab + 31) / 32;
    s->rows_sent = new (std::nothrow) llcuda_row[max_rows]();
    if (!s->rows_sent || cudaSetDevice(s->device) != cudaSuccess || !allocate(*s)) {
        llcuda_selector_free(s);
        cudaGetLastError();
        return nullptr;
    }
    return s;
}

void llcuda_selector_free(llcuda_selector * s) {
    cudaSetDevice(s->device);
    for (void * memory : {static_cast<void *>(s->rows), static_cast<void *>(s->group_keys),
                          static_cast<void *>(s->masks), static_cast<void *>(s->draws),
                          static_cast<void *>(s->histograms), static_cast<void *>(s->sums),
                          static_cast<void *>(s->adjustments)}) {
        cudaFree(memory);
    }
    cudaFreeHost(s->candidates);
    cudaFreeHost(s->counts);
    if (s->computed) {
        cudaEventDestroy(s->computed);
    }
    delete[] s->rows_sent;
    delete s;
}

#define TRY(call)                                  \
    do {                                           \
        const cudaError_t error = (call);          \
        if (error != cudaSuccess) {                \
            cudaGetLastError();                    \
            return error;                          \
        }                                          \
    } while (0)

static int send(llcuda_selector & s, int32_t n, const llcuda_row * rows, const llcuda_adjustment * adjustments,
                int32_t n_adjustments, const uint32_t * masks, int32_t n_masks) {
    if (n > s.n_sent || std::memcmp(rows, s.rows_sent, n * sizeof(*rows)) != 0) {
        std::memcpy(s.rows_sent, rows, n * sizeof(*rows));
        s.n_sent = n;
        TRY(cudaMemcpyAsync(s.rows, s.rows_sent, n * sizeof(*rows), cudaMemcpyHostToDevice, s.stream));
    }
    if (n_adjustments > s.adjustments_room) {
        TRY(cudaFree(s.adjustments));
        s.adjustments = nullptr;
        s.adjustments_room = 0;
        TRY(cudaMalloc(reinterpret_cast<void **>(&s.adjustments), 2 * n_adjustments * sizeof(*adjustments)));
        s.adjustments_room = 2 * n_adjustments;
    }
    if (n_adjustments) {
        TRY(cudaMemcpyAsync(s.adjustments, adjustments, n_adjustments * sizeof(*adjustments), cudaMemcpyHostToDevice,
                            s.stream));
    }
    if (n_masks) {
        TRY(cudaMemcpyAsync(s.masks, masks, static_cast<size_t>(n_masks) * s.mask_words * sizeof(*masks),
                            cudaMemcpyHostToDevice, s.stream));
    }
    return 0;
}

int llcuda_select(llcuda_selector * selector, void * backend, float * logits, int32_t n, const llcuda_row * rows,
                  const llcuda_adjustment * adjustments, int32_t n_adjustments, const uint32_t * masks,
                  int32_t n_masks, const llcuda_candidate ** candidates, const int32_t ** counts) {
    llcuda_selector & s = *selector;
    if (n > s.max_rows || n_masks > s.max_rows) {
        return cudaErrorInvalidValue;
    }
    bool picks = false, draws = false, cuts = false, adjusts = false;
    for (int32_t i = 0; i < n; i++) {
        s.counts[i] = 0;
        picks |= rows[i].k > 0;
        draws |= rows[i].draw && rows[i].k == 0;
        cuts |= rows[i].draw && rows[i].k == 0 && rows[i].top_p < 1;
        adjusts |= rows[i].draw && rows[i].adjust_end > rows[i].adjust_begin;
    }
    TRY(cudaSetDevice(s.device));
    auto * context = static_cast<ggml_backend_cuda_context *>(static_cast<ggml_backend_t>(backend)->context);
    s.stream = context->stream();
    TRY(cudaEventRecord(s.computed, s.stream));
    if (const int error = send(s, n, rows, adjustments, n_adjustments, masks, n_masks)) {
        return error;
    }
    const View view = {logits, s.masks, s.n_vocab, s.mask_words, s.rows};
    const dim3 chunks(s.n_chunks, n);
    if (adjusts) {
        adjust<<<n, THREADS, 0, s.stream>>>(view, logits, s.adjustments, false);
    }
    group_max<<<chunks, THREADS, 0, s.stream>>>(view, s.group_keys, s.n_groups);
    if (picks) {
        pick_best<<<n, PICK_THREADS, 0, s.stream>>>(view, s.group_keys, s.n_groups, s.adjustments, s.candidates_there,
                                                    s.counts_there);
    }
    if (draws) {
        draw_begin<<<n, PICK_THREADS, 0, s.stream>>>(view, s.group_keys, s.n_groups, s.draws);
        for (const bool fine : {false, true}) {
            if (cuts) {
                weigh<<<chunks, THREADS, 0, s.stream>>>(view, s.draws, s.histograms, fine);
                find_cut<<<n, PICK_THREADS, 0, s.stream>>>(view, s.histograms, s.draws, fine);
            }
        }
        weigh_chunks<<<chunks, THREADS, 0, s.stream>>>(view, s.draws, s.sums);
        draw_token<<<n, PICK_THREADS, 0, s.stream>>>(view, s.draws, s.sums, s.n_chunks, s.candidates_there,
                                                     s.counts_there);
    }
    if (adjusts) {
        adjust<<<n, THREADS, 0, s.stream>>>(view, logits, s.adjustments, true);
    }
    TRY(cudaGetLastError());
    *candidates = s.candidates;
    *counts = s.counts;
    return 0;
}

int llcuda_select_wait(llcuda_selector * selector, bool before) {
    TRY(before ? cudaEventSynchronize(selector->computed) : cudaStreamSynchronize(selector->stream));
    return 0;
}

const char * llcuda_cuda_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
