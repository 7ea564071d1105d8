// A backend that calls itself CUDA, or what FAKE_BACKEND says: GPUs of any size, whose memory is the host's and for which the
// CPU backend computes. FAKE_GPUS describes them, ';' between: name, compute capability, free and
// total MiB, e.g. "Tesla T4,7.5,14800,15360". Alignment and padding are those of ggml's CUDA
// backend, so that estimates have the same numbers.

#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

namespace {

int types_asked = 0;  // CUDA 12 takes a millisecond to answer

constexpr size_t ALIGNMENT = 128;
constexpr int64_t ROW_PADDING = 512;  // values of a quantized row

struct Gpu {
    std::string name, description;
    size_t free = 0, total = 0;
    ggml_backend_buffer_type type = {};
    ggml_backend_device device = {};
};

Gpu & of(ggml_backend_dev_t device) { return *static_cast<Gpu *>(device->context); }
Gpu & of(ggml_backend_buffer_type_t type) { return *static_cast<Gpu *>(type->context); }

// --- memory ---

const ggml_backend_buffer_i BUFFER = {
    /* free_buffer   */ [](ggml_backend_buffer_t buffer) {
        of(buffer->buft).free += buffer->size;
        std::free(buffer->context);
    },
    /* get_base      */ [](ggml_backend_buffer_t buffer) { return buffer->context; },
    /* init_tensor   */ nullptr,
    /* memset_tensor */ [](ggml_backend_buffer_t, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
        memset(static_cast<char *>(tensor->data) + offset, value, size);
    },
    /* set_tensor    */ [](ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
        memcpy(static_cast<char *>(tensor->data) + offset, data, size);
    },
    /* get_tensor    */ [](ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
        memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
    },
    /* set_tensor_2d */ nullptr,
    /* get_tensor_2d */ nullptr,
    /* cpy_tensor    */ nullptr,
    /* clear         */ [](ggml_backend_buffer_t buffer, uint8_t value) {
        memset(buffer->context, value, buffer->size);
    },
    /* reset         */ nullptr,
};

const ggml_backend_buffer_type_i BUFFER_TYPE = {
    /* get_name       */ [](ggml_backend_buffer_type_t type) { return of(type).name.c_str(); },
    /* alloc_buffer   */ [](ggml_backend_buffer_type_t type, size_t size) -> ggml_backend_buffer_t {
        Gpu & gpu = of(type);
        void * memory = size <= gpu.free ? aligned_alloc(ALIGNMENT, GGML_PAD(size + 1, ALIGNMENT)) : nullptr;
        if (!memory) {
            GGML_LOG_ERROR("allocating %.2f MiB on device %s: cudaMalloc failed: out of memory\n", size / 1048576.0,
                           gpu.name.c_str());
            return nullptr;
        }
        gpu.free -= size;
        return ggml_backend_buffer_init(type, BUFFER, memory, size);
    },
    /* get_alignment  */ [](ggml_backend_buffer_type_t) { return ALIGNMENT; },
    /* get_max_size   */ nullptr,
    /* get_alloc_size */ [](ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
        const int64_t odd = tensor->ne[0] % ROW_PADDING;
        const bool is_padded = ggml_is_quantized(tensor->type) && odd;
        return ggml_nbytes(tensor) + (is_padded ? ggml_row_size(tensor->type, ROW_PADDING - odd) : 0);
    },
    /* is_host        */ nullptr,
};

// --- computing ---

// Each backend has a CPU backend of its own, because several threads may compute at once.
ggml_backend_t cpu_of(ggml_backend_t backend) { return static_cast<ggml_backend_t>(backend->context); }

const ggml_backend_i BACKEND = [] {
    ggml_backend_i iface = {};
    iface.get_name = [](ggml_backend_t backend) { return of(backend->device).name.c_str(); };
    iface.free = [](ggml_backend_t backend) {
        ggml_backend_free(cpu_of(backend));
        delete backend;
    };
    iface.graph_compute = [](ggml_backend_t backend, ggml_cgraph * graph) {
        return ggml_backend_graph_compute(cpu_of(backend), graph);
    };
    return iface;
}();

const ggml_backend_device_i DEVICE = [] {
    ggml_backend_device_i iface = {};
    iface.get_name = [](ggml_backend_dev_t device) { return of(device).name.c_str(); };
    iface.get_description = [](ggml_backend_dev_t device) { return of(device).description.c_str(); };
    iface.get_memory = [](ggml_backend_dev_t device, size_t * free, size_t * total) {
        *free = of(device).free;
        *total = of(device).total;
    };
    iface.get_type = [](ggml_backend_dev_t) {
        types_asked++;
        return GGML_BACKEND_DEVICE_TYPE_GPU;
    };
    iface.get_props = [](ggml_backend_dev_t device, ggml_backend_dev_props * props) {
        const Gpu & gpu = of(device);
        *props = {};
        props->name = gpu.name.c_str();
        props->description = gpu.description.c_str();
        props->memory_free = gpu.free;
        props->memory_total = gpu.total;
        props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    };
    iface.init_backend = [](ggml_backend_dev_t device, const char *) -> ggml_backend_t {
        static ggml_guid id = {0x66, 0x61, 0x6b, 0x65};
        const ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
        return new ggml_backend{&id, BACKEND, device, cpu};
    };
    iface.get_buffer_type = [](ggml_backend_dev_t device) { return &of(device).type; };
    iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor *) { return true; };
    iface.supports_buft = [](ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
        return type == &of(device).type;
    };
    return iface;
}();

std::vector<Gpu *> & gpus() {
    static std::vector<Gpu *> list;
    return list;
}

const char * backend_name() {
    const char * name = getenv("FAKE_BACKEND");
    return name ? name : "CUDA";
}

const ggml_backend_reg_i REGISTRY = {
    /* get_name         */ [](ggml_backend_reg_t) { return backend_name(); },
    /* get_device_count */ [](ggml_backend_reg_t) { return gpus().size(); },
    /* get_device       */ [](ggml_backend_reg_t, size_t index) { return &gpus()[index]->device; },
    /* get_proc_address */ [](ggml_backend_reg_t, const char *) -> void * { return nullptr; },
};

}  // namespace

extern "C" {

int fake_types_asked() { return types_asked; }

__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    static ggml_backend_reg registry = {GGML_BACKEND_API_VERSION, REGISTRY, nullptr};
    const char * described = getenv("FAKE_GPUS");
    std::istringstream list(described ? described : "");
    for (std::string line; std::getline(list, line, ';');) {
        auto * gpu = new Gpu;
        std::istringstream fields(line);
        std::string capability, free, total;
        std::getline(fields, gpu->description, ',');
        std::getline(fields, capability, ',');
        std::getline(fields, free, ',');
        std::getline(fields, total, ',');
        gpu->name = backend_name() + std::to_string(gpus().size());
        gpu->free = std::stoull(free) << 20;
        gpu->total = std::stoull(total) << 20;
        gpu->device = {DEVICE, &registry, gpu};
        gpu->type = {BUFFER_TYPE, &gpu->device, gpu};
        gpus().push_back(gpu);
    }
    return &registry;
}
}
