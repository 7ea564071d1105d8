// Graphs of tensors: built, allocated, computed.

#include "tensor/gemm.h"
#include "tensor/storage.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "ggml-impl.h"
#pragma GCC diagnostic pop

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using shim::Device;
using shim::guarded;

namespace {

constexpr double  WORK_OF_ONE = 1 << 20;  // operations below which one thread is as fast
constexpr size_t  KEPT_MOST = size_t(64) << 20;  // bytes of intermediate results that wait for the next graph
constexpr int     LARGEST_BATCH = 1 << 16;

struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Context = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

class Graph {
  public:
    Graph(Device & device, const llcuda_node * nodes, int32_t n)
        : device_(device), nodes_(nodes), n_(n),
          context_(ggml_init({2 * n * ggml_tensor_overhead() + ggml_graph_overhead_custom(4 * n + 8, false), nullptr, true}),
                   ggml_free) {
        if (!context_) {
            throw std::runtime_error("failed to allocate a graph");
        }
        graph_ = ggml_new_graph_custom(context_.get(), 4 * n + 8, false);
        for (int32_t i = 0; i < n; i++) {
            tensors_.push_back(build(nodes[i]));
        }
        for (int32_t i = 0; i < n; i++) {
            if (nodes[i].op != LLCUDA_OP_LEAF) {
                finish(nodes[i], tensors_[i]);
            }
        }
    }

    void compute(int32_t threads) {
        allocate();
        ggml_backend_t backend = device_.backend();
        if (device_.is_cpu) {
            set_threads(backend, work() < WORK_OF_ONE ? 1 : threads);
        }
        int begin = 0;
        for (int i = 0; i < ggml_graph_n_nodes(graph_); i++) {
            if (const auto * node = product(ggml_graph_node(graph_, i))) {
                run(backend, begin, i);
                multiply(backend, *node, ggml_graph_node(graph_, i));
                begin = i + 1;
            }
        }
        run(backend, begin, ggml_graph_n_nodes(graph_));
        if (device_.intermediates && ggml_gallocr_get_buffer_size(device_.intermediates, 0) > KEPT_MOST) {
            device_.synchronize();
            ggml_gallocr_free(device_.intermediates);
            device_.intermediates = nullptr;
        }
    }

  private:
    ggml_tensor * build(const llcuda_node & node) {
        ggml_context * const c = context_.get();
        const auto type = static_cast<ggml_type>(node.type);
        ggml_tensor * const a = source(node, 0), * const b = source(node, 1);
        const float * const v = node.values;
        const int64_t * const ne = node.ne;
        switch (node.op) {
            case LLCUDA_OP_LEAF: {
                ggml_tensor * leaf = ggml_new_tensor_4d(c, type, ne[0], ne[1], ne[2], ne[3]);
                stretch(leaf, node);
                leaf->buffer = node.storage->buffer ? node.storage->buffer : device_.anchor();
                leaf->data = node.storage->data + node.offset;
                return leaf;
            }
            case LLCUDA_OP_VIEW: {
                ggml_tensor * view = ggml_view_1d(c, a, 1, node.offset);
                stretch(view, node);
                return view;
            }
            case LLCUDA_OP_CAST:     return a->type == type ? ggml_cont(c, a) : ggml_cast(c, a, type);
            case LLCUDA_OP_FILL:     return ggml_fill(c, ggml_new_tensor_4d(c, type, ne[0], ne[1], ne[2], ne[3]), v[0]);
            case LLCUDA_OP_ADD:      return ggml_add(c, a, b);
            case LLCUDA_OP_SUB:      return ggml_sub(c, a, b);
            case LLCUDA_OP_MUL:      return ggml_mul(c, a, b);
            case LLCUDA_OP_DIV:      return ggml_div(c, a, b);
            case LLCUDA_OP_UNARY:    return ggml_unary(c, a, static_cast<ggml_unary_op>(node.numbers[0]));
            case LLCUDA_OP_SQR:      return ggml_sqr(c, a);
            case LLCUDA_OP_SQRT:     return ggml_sqrt(c, a);
            case LLCUDA_OP_LOG:      return ggml_log(c, a);
            case LLCUDA_OP_SCALE:    return ggml_scale_bias(c, a, v[0], v[1]);
            case LLCUDA_OP_CLAMP:    return clamp(a, v[0], v[1]);
            case LLCUDA_OP_SOFTMAX:  return ggml_soft_max(c, a);
            case LLCUDA_OP_NORM:     return ggml_norm(c, a, v[0]);
            case LLCUDA_OP_RMS_NORM: return ggml_rms_norm(c, a, v[0]);
            case LLCUDA_OP_ROPE:
                return ggml_rope_ext(c, a, b, source(node, 2), node.numbers[0], node.numbers[1], node.numbers[2], v[0],
                                     v[1], v[2], v[3], v[4], v[5]);
            case LLCUDA_OP_GET_ROWS: return ggml_get_rows(c, a, b);
            case LLCUDA_OP_CONCAT:   return ggml_concat(c, a, b, node.numbers[0]);
            case LLCUDA_OP_SUM_ROWS: return ggml_sum_rows(c, a);
            case LLCUDA_OP_ARGMAX:   return ggml_argmax(c, a);
            case LLCUDA_OP_REPEAT:   return ggml_repeat_4d(c, a, ne[0], ne[1], ne[2], ne[3]);
            case LLCUDA_OP_MUL_MAT:  return ggml_mul_mat(c, a, b);
            case LLCUDA_OP_GEMM: {
                ggml_tensor * result = ggml_new_tensor_4d(c, type, ne[0], ne[1], ne[2], ne[3]);
                result->op = GGML_OP_CUSTOM;  // ours: ggml plans its memory and never computes it
                result->src[0] = a;
                result->src[1] = b;
                return result;
            }
            default: throw std::runtime_error("unknown operation " + std::to_string(node.op));
        }
    }

    ggml_tensor * source(const llcuda_node & node, int i) const {
        return node.source[i] < 0 ? nullptr : tensors_.at(node.source[i]);
    }

    // ggml_clamp works in place, on what may be somebody's.
    ggml_tensor * clamp(ggml_tensor * a, float low, float high) {
        ggml_tensor * result = ggml_dup_tensor(context_.get(), a);
        ggml_set_op_params_f32(result, 0, low);
        ggml_set_op_params_f32(result, 1, high);
        result->op = GGML_OP_CLAMP;
        result->src[0] = a;
        return result;
    }

    static void stretch(ggml_tensor * tensor, const llcuda_node & node) {
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            tensor->ne[i] = node.ne[i];
            tensor->nb[i] = node.nb[i];
        }
    }

    // Puts a tensor into the graph; where it was asked for, to where it was asked for.
    void finish(const llcuda_node & node, ggml_tensor * tensor) {
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            if (tensor->ne[i] != node.ne[i] || tensor->type != node.type) {
                throw std::runtime_error(std::string(ggml_op_desc(tensor)) + " gives another shape or type");
            }
        }
        if (tensor->op != GGML_OP_CUSTOM && !ggml_backend_dev_supports_op(device_.dev, tensor)) {
            throw Unsupported(std::string(ggml_backend_dev_name(device_.dev)) + " cannot compute "
                              + ggml_op_desc(tensor) + " of " + ggml_type_name(tensor->src[0]->type));
        }
        if (node.storage) {
            if (node.storage->size < ggml_nbytes(tensor)) {
                throw std::runtime_error("the result does not fit its memory");
            }
            tensor->buffer = node.storage->buffer;
            tensor->data = node.storage->data;
            ggml_set_output(tensor);
        }
        ggml_build_forward_expand(graph_, tensor);
    }

    void allocate() {
        for (const bool again : {false, true}) {
            if (!device_.intermediates) {
                device_.intermediates = ggml_gallocr_new(device_.buft);
            }
            if (ggml_gallocr_alloc_graph(device_.intermediates, graph_)) {
                return;
            }
            if (!again) {
                device_.release();
            }
        }
        throw std::runtime_error("failed to allocate the intermediate results of a graph");
    }

    double work() const {
        double sum = 0;
        for (int i = 0; i < ggml_graph_n_nodes(graph_); i++) {
            const ggml_tensor * node = ggml_graph_node(graph_, i);
            sum += static_cast<double>(ggml_nelements(node)) * (node->op == GGML_OP_MUL_MAT ? node->src[0]->ne[0] : 1);
        }
        return sum;
    }

    static void set_threads(ggml_backend_t backend, int32_t threads) {
        auto * registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
        static const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
            ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
        set(backend, threads);
    }

    const llcuda_node * product(const ggml_tensor * tensor) const {
        for (int32_t i = 0; tensor->op == GGML_OP_CUSTOM && i < n_; i++) {
            if (tensors_[i] == tensor) {
                return &nodes_[i];
            }
        }
        return nullptr;
    }

    void run(ggml_backend_t backend, int begin, int end) {
        if (begin == end) {
            return;
        }
        ggml_cgraph part = ggml_graph_view(graph_, begin, end);
        if (ggml_backend_graph_compute_async(backend, &part) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("ggml could not compute the graph");
        }
    }

    static void multiply(ggml_backend_t backend, const llcuda_node & node, const ggml_tensor * c) {
        static auto * const gemm = shim::cuda_function<decltype(&llcuda_gemm)>("llcuda_gemm");
        if (!gemm) {
            throw Unsupported(std::string(ggml_backend_name(backend)) + " is not llcuda's own: it lacks llcuda_gemm");
        }
        const ggml_tensor * a = c->src[0], * b = c->src[1];
        const auto size = static_cast<int64_t>(ggml_type_size(c->type));
        auto step = [&](const ggml_tensor * t, int i) { return t->ne[i] == 1 ? 0 : static_cast<int64_t>(t->nb[i]) / size; };
        llcuda_product p = {};
        p.type = c->type;
        p.m = c->ne[1];
        p.n = c->ne[0];
        p.k = a->ne[0];
        p.a_transposed = node.numbers[0];
        p.a_leading = node.numbers[1];
        p.b_transposed = node.numbers[2];
        p.b_leading = node.numbers[3];
        p.batch = c->ne[2];
        p.a_stride = step(a, 2);
        p.b_stride = step(b, 2);
        p.c_stride = p.m * p.n;
        int64_t rest = c->ne[3];
        // Two dimensions of batches are one where the strides go on.
        if (step(a, 3) == p.a_stride * p.batch && step(b, 3) == p.b_stride * p.batch) {
            p.batch *= rest;
            rest = 1;
        }
        for (int64_t outer = 0; outer < rest; outer++) {
            for (int64_t begin = 0; begin < p.batch; begin += LARGEST_BATCH) {
                llcuda_product part = p;
                part.batch = std::min<int64_t>(p.batch - begin, LARGEST_BATCH);
                part.a = static_cast<const char *>(a->data) + (outer * step(a, 3) + begin * p.a_stride) * size;
                part.b = static_cast<const char *>(b->data) + (outer * step(b, 3) + begin * p.b_stride) * size;
                part.c = static_cast<char *>(c->data) + (outer * p.batch + begin) * p.c_stride * size;
                gemm(backend, &part);
            }
        }
    }

    Device &            device_;
    const llcuda_node * nodes_;
    const int32_t       n_;
    Context             context_;
    ggml_cgraph *       graph_ = nullptr;
    std::vector<ggml_tensor *> tensors_;
};

}  // namespace

int llcuda_compute(int index, const llcuda_node * nodes, int32_t n, int32_t threads) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        Device & device = shim::device_at(index);
        std::lock_guard<std::recursive_mutex> lock(device.computing);
        try {
            Graph(device, nodes, n).compute(threads);
        } catch (const Unsupported & error) {
            shim::add_error(error.what());
            return LLCUDA_UNSUPPORTED;
        } catch (...) {
            device.abandon();
            shim::forget_cuda_error();
            throw;
        }
        return LLCUDA_OK;
    });
}
