// Of ggml.h, for tensors of one's own.

enum ggml_unary_op {
    GGML_UNARY_OP_ABS, GGML_UNARY_OP_NEG, GGML_UNARY_OP_TANH, GGML_UNARY_OP_RELU, GGML_UNARY_OP_SIGMOID,
    GGML_UNARY_OP_GELU, GGML_UNARY_OP_GELU_ERF, GGML_UNARY_OP_SILU, GGML_UNARY_OP_EXP, ...
};

#define GGML_ROPE_TYPE_NEOX ...

int64_t ggml_blck_size(enum ggml_type type);
size_t  ggml_type_size(enum ggml_type type);
bool    ggml_quantize_requires_imatrix(enum ggml_type type);
