// A check of the operations of a model, before the first context computes them.
//
// The CPU backend asserts on the parameters of an operation in each of its threads, and nothing can catch a failure in
// a thread of its own. So this file checks the parameters that depend on a file's hyper-parameters, on the graph itself:
// for every architecture, and with all overrides applied.

#include "decode/context.hpp"

#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "ggml.h"

using shim::guarded;

namespace {

float float_param(const ggml_tensor * node, int i) {
    float value;
    memcpy(&value, &node->op_params[i], sizeof(value));
    return value;
}

const char * check_rope(const ggml_tensor * node) {
    const int32_t n_dims = node->op_params[1], mode = node->op_params[2];
    const int32_t * sections = node->op_params + 11;
    if (n_dims < 2 || n_dims % 2 || n_dims > node->ne[0]) {
        return "rope.dimension_count is odd or exceeds the size of a head";
    }
    if (mode & GGML_ROPE_TYPE_MROPE && sections[0] <= 0 && sections[1] <= 0 && sections[2] <= 0) {
        return "rope.dimension_sections are missing or 0";
    }
    if (mode == GGML_ROPE_TYPE_VISION && n_dims != node->ne[0] / 2) {
        return "rope.dimension_count is not half the size of a head";
    }
    if (node->src[2] && (node->src[2]->type != GGML_TYPE_F32 || node->src[2]->ne[0] < n_dims / 2)) {
        return "the factors of rope are too few, or not f32";
    }
    return nullptr;
}

bool is_float(const ggml_tensor * tensor) {
    return tensor->type == GGML_TYPE_F32 || tensor->type == GGML_TYPE_F16 || tensor->type == GGML_TYPE_BF16;
}

// What is wrong with an operation, or null.
const char * check_node(const ggml_tensor * node) {
    const ggml_tensor * a = node->src[0];
    const ggml_tensor * b = node->src[1];
    switch (node->op) {
        case GGML_OP_ROPE:
            return check_rope(node);
        case GGML_OP_NORM: case GGML_OP_RMS_NORM: case GGML_OP_L2_NORM: case GGML_OP_GROUP_NORM: {
            const float epsilon = float_param(node, node->op == GGML_OP_GROUP_NORM ? 1 : 0);
            return epsilon >= 0 && std::isfinite(epsilon) ? nullptr : "the epsilon of a norm is negative or not finite";
        }
        case GGML_OP_ADD: case GGML_OP_SUB: case GGML_OP_MUL: case GGML_OP_DIV:
            if (!is_float(b) || (a->type == GGML_TYPE_F32 && b->type != GGML_TYPE_F32)) {
                return "a vector is not f32";
            }
            return nullptr;
        default:
            return nullptr;
    }
}

struct Probe {
    const char * problem = nullptr;
    std::string  where;
    bool         computes = false;  // false: stop as soon as computing begins, all was seen
};

// llama.cpp calls this for every node of a part of the graph before it computes that part.
bool on_node(ggml_tensor * node, bool ask, void * data) {
    auto * probe = static_cast<Probe *>(data);
    if (ask && (probe->problem = check_node(node))) {
        probe->where = node->name;
        throw std::runtime_error("probe");
    }
    return false;
}

bool on_abort_poll(void * data) { return !static_cast<Probe *>(data)->computes; }

bool has_gpu() {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) != GGML_BACKEND_DEVICE_TYPE_CPU) {
            return true;
        }
    }
    return false;
}

// Whether the operations of `model` can be computed; false after an error line.
bool look_at_operations(llama_model * model, llama_context_params params) {
    Probe probe;
    probe.computes = has_gpu();  // then the graph has several parts, and the later ones are seen later
    params.n_ctx = params.n_batch = params.n_ubatch = 64;
    params.n_seq_max = 1;
    params.n_outputs_max = 4;
    params.cb_eval = on_node;
    params.cb_eval_user_data = &probe;
    params.abort_callback = on_abort_poll;
    params.abort_callback_data = &probe;
    std::unique_ptr<llama_context, void (*)(llama_context *)> context(llama_init_from_model(model, params), llama_free);
    for (const int32_t n_tokens : {1, 3}) {
        llama_token tokens[3] = {0, 0, 0};
        try {
            if (context && llama_model_has_encoder(model)) {
                llama_encode(context.get(), llama_batch_get_one(tokens, n_tokens));
            }
            if (context && llama_model_has_decoder(model)) {
                llama_decode(context.get(), llama_batch_get_one(tokens, n_tokens));
            }
        } catch (const std::exception &) {
            // Only what the probe found counts; the rest is said by the context itself.
            if (!shim::gpus_answer()) {
                (void) context.release();  // what fails in a destructor ends the process
                return false;
            }
        }
        if (probe.problem) {
            shim::add_error(std::string(probe.problem) + " (in '" + probe.where + "')");
            return false;
        }
    }
    return true;
}

}  // namespace

int llcuda_probe(llama_model * model, llama_context_params params) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        bool fine = false;
        return shim::survives([&] { fine = look_at_operations(model, params); }) && fine ? LLCUDA_OK : LLCUDA_INVALID_FILE;
    });
}
