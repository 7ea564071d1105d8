// Runs llcuda's file for CUDA graphs (llcuda/native/shim/decode/graphs.cu) on the CPU: CUDA's run-time library is memory
// of the host, and the backend is ggml's CPU backend behind the states of llama.cpp's CUDA graphs.
//
// Usage: PROGRAM FOLDER MODE BROKEN STEPS. FOLDER: of ggml's libraries. BROKEN: the replay that has another result, from
// 1 on, 0 = none. Prints the result of each step, then the report: on, replays, checked, different.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml.h"

// --- the part of ggml-cuda/common.cuh that the file uses ---

#define USE_CUDA_GRAPH
#define GGML_CUDA_CC_TURING 750
#define CUDA_CHECK(call) GGML_ASSERT((call) == cudaSuccess)

using cudaStream_t = void *;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyDefault };

static cudaError_t cudaFree(void * data) { free(data); return cudaSuccess; }
static cudaError_t cudaMalloc(void ** data, size_t size) { *data = malloc(size); return cudaSuccess; }
static cudaError_t cudaGetLastError() { return cudaSuccess; }
static cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
static cudaError_t cudaMemcpy(void * to, const void * from, size_t size, cudaMemcpyKind) {
    memcpy(to, from, size);
    return cudaSuccess;
}
static cudaError_t cudaMemcpyAsync(void * to, const void * from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, size, kind);
}

struct ggml_cuda_graph {
    void * instance = nullptr;
    bool disable_due_to_gpu_arch = false;
    bool warmup_complete = false;
    std::vector<int64_t> node_props;
    bool is_enabled() const { return !disable_due_to_gpu_arch; }
};

struct ggml_backend_cuda_context {
    int device = 0;
    std::map<const void *, ggml_cuda_graph> graphs;
    ggml_cuda_graph * cuda_graph(const void * key) { return &graphs[key]; }
    cudaStream_t stream() { return nullptr; }
};

struct ggml_cuda_device_info {
    struct { int cc = GGML_CUDA_CC_TURING; } devices[1];
};
static const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info;
    return info;
}
static void ggml_cuda_set_device(int) {}

#include "graphs.cu"

// --- the backend ---

static ggml_backend_t cpu;
static int replays = 0, broken = 0;

static ggml_status compute_as_cuda(ggml_backend_t backend, ggml_cgraph * cgraph) {
    auto & graph = *static_cast<ggml_backend_cuda_context *>(backend->context)->cuda_graph(cgraph->nodes[0]);
    bool replay = false;
    if (graph.is_enabled()) {
        std::vector<int64_t> properties;
        for (int i = 0; i < cgraph->n_nodes; i++) {
            properties.push_back(cgraph->nodes[i]->ne[0]);
        }
        const bool changed = properties != graph.node_props;
        graph.node_props = properties;
        replay = !changed;
        graph.warmup_complete = !changed;
        graph.instance = replay ? backend : graph.instance;
    }
    const ggml_status status = ggml_backend_graph_compute(cpu, cgraph);
    if (replay && ++replays == broken) {
        static_cast<float *>(cgraph->nodes[cgraph->n_nodes - 1]->data)[0] += 1;
    }
    return status;
}

int main(int, char ** arguments) {
    ggml_backend_load_all_from_path(arguments[1]);
    cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    broken = atoi(arguments[3]);
    ggml_backend_cuda_context context;
    ggml_backend backend = {};
    backend.context = &context;
    backend.iface.graph_compute = compute_as_cuda;
    backend.iface.free = [](ggml_backend_t) {};
    llcuda_graphs_set(&backend, arguments[2]);

    // A state that each step changes, and an input whose memory the allocator gives to a result.
    ggml_context * kept = ggml_init({ggml_tensor_overhead(), nullptr, true});
    ggml_tensor * state = ggml_new_tensor_1d(kept, GGML_TYPE_F32, 1024);
    ggml_backend_buffer_t states = ggml_backend_alloc_ctx_tensors(kept, cpu);
    std::vector<float> numbers(1024, 0);
    ggml_backend_tensor_set(state, numbers.data(), 0, ggml_nbytes(state));
    ggml_gallocr_t allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(cpu));
    for (int64_t size : {512, 1024, 512}) {
        ggml_context * made = ggml_init({32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
        ggml_tensor * input = ggml_new_tensor_1d(made, GGML_TYPE_F32, size);
        ggml_set_input(input);
        ggml_tensor * part = ggml_view_1d(made, state, size, 0);
        ggml_tensor * sum = ggml_add(made, ggml_sqr(made, ggml_scale(made, input, 0.5f)), part);
        ggml_tensor * stored = ggml_cpy(made, sum, part);
        ggml_tensor * result = ggml_scale(made, ggml_scale(made, stored, 3.0f), 2.0f);
        ggml_set_output(result);
        ggml_cgraph * graph = ggml_new_graph(made);
        ggml_build_forward_expand(graph, result);
        ggml_gallocr_alloc_graph(allocator, graph);
        for (int step = 0; step < atoi(arguments[4]); step++) {
            for (int64_t i = 0; i < size; i++) {
                numbers[i] = static_cast<float>((i + step) % 7);
            }
            ggml_backend_tensor_set(input, numbers.data(), 0, ggml_nbytes(input));
            ggml_backend_graph_compute(&backend, graph);
            ggml_backend_tensor_get(result, numbers.data(), 0, ggml_nbytes(result));
            double total = 0;
            for (int64_t i = 0; i < size; i++) {
                total += numbers[i];
            }
            printf("%.1f ", total);
        }
        ggml_free(made);
    }
    llcuda_graphs_report report;
    llcuda_graphs_read(&backend, &report);
    printf("\n%d %d %d %d\n", report.on, static_cast<int>(report.replays), static_cast<int>(report.checked),
           static_cast<int>(report.different));
    backend.iface.free(&backend);
    ggml_gallocr_free(allocator);
    ggml_backend_buffer_free(states);
    ggml_free(kept);
    ggml_backend_free(cpu);
}
