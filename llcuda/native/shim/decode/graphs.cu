// CUDA graphs of a backend: off, on, or on with a check of each shape's first replay. Compiled into the CUDA backend.
//
// A graph is checked in the call that captures and launches it. What the graph reads and may overwrite is saved before;
// after the replay the results are saved, what was read is restored, and the same kernels run one by one. Their results
// stay.

#include "graphs.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cuda/common.cuh"
#include "ggml-impl.h"

namespace {

// The largest difference of a result, over the largest value of the results.
constexpr float TOLERANCE = 1e-3f;
// Graphs that read more which they may overwrite, such as those that shift a whole KV cache, or have more results, are not
// checked.
constexpr size_t MOST_SAVED = 256 * 1024 * 1024;

struct Place {
    void * data;
    size_t size;
};

// Places of the device's memory, copied one behind the other into a buffer that grows.
class Saved {
  public:
    ~Saved() { cudaFree(buffer_); }

    // False if they are too large, or the device has too little memory.
    bool save(const std::vector<Place> & places, cudaStream_t stream) {
        size_t size = 0;
        for (const auto & place : places) {
            size += place.size;
        }
        if (size > MOST_SAVED) {
            return false;
        }
        if (size > room_) {
            cudaFree(buffer_);
            buffer_ = nullptr;
            room_ = 0;
            if (cudaMalloc(&buffer_, size) != cudaSuccess) {
                cudaGetLastError();
                return false;
            }
            room_ = size;
        }
        copy(places, stream, false);
        return true;
    }
    void restore(const std::vector<Place> & places, cudaStream_t stream) { copy(places, stream, true); }

  private:
    void copy(const std::vector<Place> & places, cudaStream_t stream, bool back) {
        char * saved = static_cast<char *>(buffer_);
        for (const auto & place : places) {
            CUDA_CHECK(cudaMemcpyAsync(back ? place.data : saved, back ? saved : place.data, place.size,
                                       cudaMemcpyDefault, stream));
            saved += place.size;
        }
    }

    void * buffer_ = nullptr;
    size_t room_   = 0;
};

struct Graphs {
    bool  on, checks;
    float tolerance = TOLERANCE;
    decltype(ggml_backend_i::graph_compute) compute;
    decltype(ggml_backend_i::free)          free;
    Saved inputs, results;
    std::unordered_set<uint64_t> shapes;  // that were checked
    llcuda_graphs_report report = {};
};

std::mutex mutex;
// Never destroyed: what the process leaves to its exit may still compute.
auto & graphs_of = *new std::unordered_map<ggml_backend_t, std::unique_ptr<Graphs>>;

Graphs * find(ggml_backend_t backend) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = graphs_of.find(backend);
    return found == graphs_of.end() ? nullptr : found->second.get();
}

ggml_backend_cuda_context & context_of(ggml_backend_t backend) {
    return *static_cast<ggml_backend_cuda_context *>(backend->context);
}

ggml_tensor * root_of(ggml_tensor * tensor) { return tensor->view_src ? tensor->view_src : tensor; }

bool computes(const ggml_tensor * node) {
    return node->op != GGML_OP_NONE && node->op != GGML_OP_VIEW && node->op != GGML_OP_RESHAPE &&
        node->op != GGML_OP_PERMUTE && node->op != GGML_OP_TRANSPOSE && !ggml_is_empty(node);
}

// What the graph reads and may overwrite: inputs in the memory of intermediate results, and states that it changes. KV
// cells need none of it, because the graph writes the same into the same cells again.
std::vector<Place> inputs_of(const ggml_cgraph * cgraph) {
    std::unordered_set<const ggml_tensor *> inside, seen;
    for (int i = 0; i < cgraph->n_nodes; i++) {
        if (!cgraph->nodes[i]->view_src) {
            inside.insert(cgraph->nodes[i]);
        }
    }
    std::vector<Place> places;
    const auto add = [&](const ggml_tensor * root) {
        if (root->data && !inside.count(root) && seen.insert(root).second) {
            places.push_back({root->data, ggml_nbytes(root)});
        }
    };
    for (int i = 0; i < cgraph->n_nodes; i++) {
        ggml_tensor * node = cgraph->nodes[i];
        for (auto * source : node->src) {
            if (source && root_of(source)->buffer && root_of(source)->buffer->usage == GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
                add(root_of(source));
            }
        }
        if (node->view_src && computes(node) && node->op != GGML_OP_SET_ROWS) {
            add(node->view_src);
        }
    }
    return places;
}

std::vector<const ggml_tensor *> results_of(const ggml_cgraph * cgraph) {
    std::vector<const ggml_tensor *> results;
    for (int i = 0; i < cgraph->n_nodes; i++) {
        const ggml_tensor * node = cgraph->nodes[i];
        if (computes(node) && node->data && ggml_is_contiguous(node) &&
                (i == cgraph->n_nodes - 1 || (node->flags & GGML_TENSOR_FLAG_OUTPUT))) {
            results.push_back(node);
        }
    }
    return results;
}

// A number for the operations and sizes of a graph.
uint64_t shape_of(const ggml_cgraph * cgraph) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    const auto add = [&](uint64_t value) { hash = (hash ^ value) * 1099511628211u; };
    for (int i = 0; i < cgraph->n_nodes; i++) {
        const ggml_tensor * node = cgraph->nodes[i];
        add(node->op);
        add(node->type);
        for (int64_t size : node->ne) {
            add(size);
        }
        for (const auto * source : node->src) {
            for (int d = 0; source && d < GGML_MAX_DIMS; d++) {
                add(source->ne[d]);
            }
        }
    }
    return hash;
}

// The largest difference of two results over their largest value; infinite where one has another NaN or infinity.
float difference(const ggml_tensor * tensor, const std::vector<char> & a, const std::vector<char> & b) {
    if (memcmp(a.data(), b.data(), a.size()) == 0) {
        return 0;
    }
    if (tensor->type != GGML_TYPE_F32) {
        return INFINITY;
    }
    const auto * x = reinterpret_cast<const float *>(a.data());
    const auto * y = reinterpret_cast<const float *>(b.data());
    float most = 0, largest = 0;
    for (size_t i = 0; i < a.size() / sizeof(float); i++) {
        if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) {
            largest = std::isfinite(y[i]) ? std::max(largest, std::fabs(y[i])) : largest;
            continue;
        }
        if (!std::isfinite(x[i]) || !std::isfinite(y[i])) {
            return INFINITY;
        }
        most = std::max(most, std::fabs(x[i] - y[i]));
        largest = std::max(largest, std::fabs(y[i]));
    }
    return most / largest;
}

// The results of the replay have been saved, and the kernels have run one by one: compare.
void compare(Graphs & graphs, const ggml_cgraph * cgraph, const std::vector<const ggml_tensor *> & tensors,
             const std::vector<std::vector<char>> & replayed) {
    float most = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
        std::vector<char> computed(replayed[i].size());
        CUDA_CHECK(cudaMemcpy(computed.data(), tensors[i]->data, computed.size(), cudaMemcpyDefault));
        most = std::max(most, difference(tensors[i], replayed[i], computed));
    }
    graphs.report.checked++;
    if (!(most <= graphs.tolerance)) {
        graphs.report.different++;
        graphs.on = false;
        GGML_LOG_WARN("llcuda: the first replay of a CUDA graph of %d operations differs from the same kernels launched one"
                      " by one, by %.1e of the largest result; CUDA graphs are off from here on\n", cgraph->n_nodes, most);
    }
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * cgraph) {
    Graphs & graphs = *find(backend);
#ifdef USE_CUDA_GRAPH
    auto & context = context_of(backend);
    if (cgraph->n_nodes == 0) {
        return graphs.compute(backend, cgraph);
    }
    ggml_cuda_graph & graph = *context.cuda_graph(cgraph->nodes[0]);
    graph.disable_due_to_gpu_arch = !graphs.on;
    if (!graphs.on) {
        return graphs.compute(backend, cgraph);
    }
    // A shape is captured in its second call; what is saved for other calls is not used.
    const bool warm = graph.warmup_complete && graph.instance;
    bool check = graphs.checks && !warm && static_cast<int>(graph.node_props.size()) == cgraph->n_nodes;
    const uint64_t shape = check ? shape_of(cgraph) : 0;
    check = check && !graphs.shapes.count(shape);
    cudaStream_t stream = context.stream();
    std::vector<Place> inputs;
    std::vector<const ggml_tensor *> tensors;
    if (check) {
        size_t size = 0;
        tensors = results_of(cgraph);
        for (const auto * tensor : tensors) {
            size += ggml_nbytes(tensor);
        }
        check = size <= MOST_SAVED;
    }
    if (check) {
        ggml_cuda_set_device(context.device);
        inputs = inputs_of(cgraph);
        check = graphs.inputs.save(inputs, stream);
    }
    const ggml_status status = graphs.compute(backend, cgraph);
    if (!graph.warmup_complete || !graph.instance || !graph.is_enabled()) {
        return status;
    }
    graphs.report.captured += !warm;
    graphs.report.replays++;
    if (!check || status != GGML_STATUS_SUCCESS) {
        return status;
    }
    graphs.shapes.insert(shape);
    std::vector<std::vector<char>> replayed;
    CUDA_CHECK(cudaStreamSynchronize(stream));
    for (const auto * tensor : tensors) {
        replayed.emplace_back(ggml_nbytes(tensor));
        CUDA_CHECK(cudaMemcpy(replayed.back().data(), tensor->data, replayed.back().size(), cudaMemcpyDefault));
    }
    graphs.inputs.restore(inputs, stream);
    graph.disable_due_to_gpu_arch = true;
    const ggml_status again = graphs.compute(backend, cgraph);
    graph.disable_due_to_gpu_arch = false;
    CUDA_CHECK(cudaStreamSynchronize(stream));
    compare(graphs, cgraph, tensors, replayed);
    return again;
#else
    return graphs.compute(backend, cgraph);
#endif
}

void free_backend(ggml_backend_t backend) {
    std::unique_ptr<Graphs> graphs;
    {
        const std::lock_guard<std::mutex> lock(mutex);
        const auto found = graphs_of.find(backend);
        graphs = std::move(found->second);
        graphs_of.erase(found);
    }
    graphs->free(backend);
}

}  // namespace

void llcuda_graphs_set(void * opaque, const char * mode) {
    auto * backend = static_cast<ggml_backend_t>(opaque);
    const bool turing = ggml_cuda_info().devices[context_of(backend).device].cc == GGML_CUDA_CC_TURING;
    const bool on     = strcmp(mode, "off") != 0;
    const bool checks = strcmp(mode, "checked") == 0 || (strcmp(mode, "auto") == 0 && turing);
    const std::lock_guard<std::mutex> lock(mutex);
    auto & graphs = graphs_of[backend];
    if (!graphs) {
        graphs = std::make_unique<Graphs>();
        graphs->compute = backend->iface.graph_compute;
        graphs->free    = backend->iface.free;
        backend->iface.graph_compute = compute;
        backend->iface.free = free_backend;
    }
    if (const char * tolerance = getenv("LLCUDA_CUDA_GRAPHS_TOLERANCE")) {
        graphs->tolerance = static_cast<float>(atof(tolerance));
    }
    graphs->on     = on;
    graphs->checks = checks;
}

void llcuda_graphs_read(void * backend, llcuda_graphs_report * report) {
    const Graphs * graphs = find(static_cast<ggml_backend_t>(backend));
    const bool off_by_upstream = getenv("GGML_CUDA_DISABLE_GRAPHS") != nullptr;
    *report = graphs ? graphs->report : llcuda_graphs_report{};
    report->on = !off_by_upstream && (!graphs || graphs->on);
}
