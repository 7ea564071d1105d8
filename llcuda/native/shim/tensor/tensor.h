// Tensors over ggml's backends. Plain declarations, like shim.h: cffi reads this file as it is.
// device: the number of a CUDA GPU, or LLCUDA_CPU.

// --- device.cpp ---

enum { LLCUDA_CPU = -1 };

struct llcuda_gpu {
    int32_t capability_major, capability_minor, multiprocessors, warp_size;
    size_t  shared_memory, shared_memory_most;  // bytes of a block: by default, and at most
};

int  llcuda_gpu_count(void);
int  llcuda_gpu_properties(int device, struct llcuda_gpu * gpu);  // LLCUDA_UNSUPPORTED without CUDA
ggml_backend_dev_t llcuda_device_handle(int device);              // null: there is none
size_t llcuda_device_kept(int device);           // bytes that are cached for the next tensors
int  llcuda_device_release(int device);          // give them back to the system
int  llcuda_device_synchronize(int device);      // wait until all is computed
int  llcuda_device_stream(int device, uintptr_t * stream);        // the cudaStream_t; 0 on the CPU

// --- storage.cpp: memory, counted; with the last reference it is freed ---

struct llcuda_storage;

// Memory for a tensor; null if there is too little. Its bytes are not cleared, except the padding of quantized rows.
struct llcuda_storage * llcuda_storage_new(int device, int type, const int64_t * ne);
// Memory that a Python object, the owner, keeps alive.
struct llcuda_storage * llcuda_storage_adopt(int device, void * data, size_t size, void * owner);
void   llcuda_storage_release(struct llcuda_storage * storage);
void * llcuda_storage_data(struct llcuda_storage * storage);
int llcuda_storage_write(struct llcuda_storage * storage, size_t offset, const void * data, size_t size);
int llcuda_storage_read(struct llcuda_storage * storage, size_t offset, void * data, size_t size);
int llcuda_storage_clear(struct llcuda_storage * storage, size_t offset, size_t size);
int llcuda_storage_copy(struct llcuda_storage * target, size_t at, struct llcuda_storage * source, size_t from, size_t size);

// --- graph.cpp ---

enum llcuda_tensor_op {
    LLCUDA_OP_LEAF, LLCUDA_OP_VIEW, LLCUDA_OP_CAST, LLCUDA_OP_FILL, LLCUDA_OP_ADD, LLCUDA_OP_SUB, LLCUDA_OP_MUL,
    LLCUDA_OP_DIV, LLCUDA_OP_UNARY, LLCUDA_OP_SQR, LLCUDA_OP_SQRT, LLCUDA_OP_LOG, LLCUDA_OP_SCALE, LLCUDA_OP_CLAMP,
    LLCUDA_OP_SOFTMAX, LLCUDA_OP_NORM, LLCUDA_OP_RMS_NORM, LLCUDA_OP_ROPE, LLCUDA_OP_GET_ROWS, LLCUDA_OP_CONCAT,
    LLCUDA_OP_SUM_ROWS, LLCUDA_OP_ARGMAX, LLCUDA_OP_REPEAT, LLCUDA_OP_MUL_MAT, LLCUDA_OP_GEMM
};

// One tensor of a graph.
// ne, nb: sizes, and bytes between neighbours, fastest first; nb counts only for a leaf or a view.
// source: indices of earlier nodes, -1 = none.
// storage: the memory of a leaf, or that of a result; null for a result that nothing keeps.
// offset: bytes in the storage, or in the source of a view.
// numbers of LLCUDA_OP_GEMM, which multiplies row-major matrices on a GPU: [A is transposed, its leading dimension, B is
// transposed, its leading dimension].
struct llcuda_node {
    int32_t  op, type;
    int64_t  ne[4];
    uint64_t nb[4];
    int32_t  source[4];
    int32_t  numbers[8];
    float    values[8];
    struct llcuda_storage * storage;
    uint64_t offset;
};

// Compute the nodes in their order; a GPU may still compute when this returns. LLCUDA_UNSUPPORTED: the device lacks an
// operation, which llcuda_errors() names.
int llcuda_compute(int device, const struct llcuda_node * nodes, int32_t n, int32_t threads);

// --- types.cpp ---

// Convert rows of floats from and to rows of `type`, on several threads. importance: a weight for each column, or null.
int llcuda_rows_to_float(int type, const void * rows, float * values, int64_t n_rows, int64_t n_columns);
int llcuda_rows_from_float(int type, const float * values, void * rows, int64_t n_rows, int64_t n_columns,
                           const float * importance);

// --- dlpack.cpp: https://dmlc.github.io/dlpack/latest/c_api.html ---

enum {
    LLCUDA_DL_CPU = 1, LLCUDA_DL_CUDA = 2, LLCUDA_DL_CUDA_HOST = 3, LLCUDA_DL_CUDA_MANAGED = 13,
    LLCUDA_DL_READ_ONLY = 1
};

// DLTensor; strides count elements, null = row-major.
struct llcuda_dl_tensor {
    void *    data;
    int32_t   device_type, device_id, ndim;
    uint8_t   code, bits;
    uint16_t  lanes;
    int64_t * shape;
    int64_t * strides;
    uint64_t  byte_offset;
};
// DLManagedTensor, and DLManagedTensorVersioned of DLPack 1.0.
struct llcuda_dl_managed {
    struct llcuda_dl_tensor tensor;
    void * manager;
    void (*deleter)(struct llcuda_dl_managed * self);
};
struct llcuda_dl_versioned {
    uint32_t major, minor;
    void *   manager;
    void (*deleter)(struct llcuda_dl_versioned * self);
    uint64_t flags;
    struct llcuda_dl_tensor tensor;
};

// An llcuda_dl_versioned or llcuda_dl_managed for a capsule, with a reference to the storage. tensor: its description,
// which is copied; data is that of the storage.
void * llcuda_dlpack_new(struct llcuda_storage * storage, const struct llcuda_dl_tensor * tensor, bool versioned,
                         uint64_t flags);
void llcuda_dlpack_drop(void * capsule);  // the destructor of a capsule: frees it if nobody has taken it
// Take over the memory of a capsule; its deleter is called with the last reference.
struct llcuda_storage * llcuda_storage_take(int device, void * managed, bool versioned, size_t size);
