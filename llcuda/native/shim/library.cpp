// The log and the errors, assertions as exceptions, and the CPU backends that this machine can run.

#include "common.hpp"

#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <stdexcept>

#include <dlfcn.h>
#include <unistd.h>

#include "ggml-backend-impl.h"

namespace {

constexpr size_t MAX_ERROR_LINES = 8;

thread_local std::deque<std::string> errors;
thread_local std::string             joined_errors;
thread_local std::string             partial_line;
thread_local ggml_log_level          partial_level = GGML_LOG_LEVEL_INFO;
thread_local int                     guards        = 0;
thread_local std::function<void(const std::string &)> watch;

std::atomic<int> delivered_level{GGML_LOG_LEVEL_WARN};

// llama.cpp logs fragments; a line is delivered when its end arrives.
void on_log(ggml_log_level level, const char * text, void *) {
    if (level != GGML_LOG_LEVEL_CONT) {
        partial_level = level;
    }
    partial_line += text;
    size_t end;
    while ((end = partial_line.find('\n')) != std::string::npos) {
        const std::string line = partial_line.substr(0, end);
        partial_line.erase(0, end + 1);
        if (line.empty()) {
            continue;
        }
        if (partial_level >= GGML_LOG_LEVEL_WARN && partial_level <= GGML_LOG_LEVEL_ERROR) {
            shim::add_error(line);
        }
        if (partial_level >= delivered_level.load(std::memory_order_relaxed)) {
            shim::FaultsOff python;
            llcuda_on_log(partial_level, line.c_str());
        }
        if (watch) {
            watch(line);
        }
    }
}

// ggml calls this before abort(). Inside a guard, on the guard's thread, unwinding to it is better.
void on_abort(const char * message) {
    if (guards > 0) {
        shim::cuda_failed = strstr(message, "CUDA error") != nullptr;
        throw std::runtime_error(std::string("assertion failed: ") + message);
    }
    fprintf(stderr, "llcuda: llama.cpp ends the process: %s\n", message);
}

}  // namespace

namespace shim {

thread_local bool cuda_failed = false;

void add_error(const std::string & line) {
    errors.push_back(line);
    if (errors.size() > MAX_ERROR_LINES) {
        errors.pop_front();
    }
}

void log_warning(const std::string & line) { on_log(GGML_LOG_LEVEL_WARN, (line + "\n").c_str(), nullptr); }

LogWatch::LogWatch(std::function<void(const std::string & line)> see) { watch = std::move(see); }
LogWatch::~LogWatch() { watch = nullptr; }

Guard::Guard() {
    if (guards++ == 0) {
        cuda_failed = false;
        if (!errors.empty()) {
            errors.clear();  // an error message quotes the lines of its own call only
        }
    }
}
Guard::~Guard() { guards--; }

void * cuda_symbol(const char * name) {
    const std::string libllama = llcuda_library_path();
    const std::string path = libllama.substr(0, libllama.rfind('/') + 1) + "libggml-cuda.so";
    void * library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    return library ? dlsym(library, name) : nullptr;
}

uint64_t main_thread = 0;

}  // namespace shim

void llcuda_forked(void) {
#ifdef __GLIBC__
    on_exit([](int status, void *) {
        std::fflush(nullptr);
        _exit(status);
    }, nullptr);
#endif
}

const char * llcuda_commit(void) { return LLCUDA_LLAMA_COMMIT; }

const char * llcuda_cuda_architectures(void) { return LLCUDA_CUDA_ARCHITECTURES; }

const char * llcuda_patches(void) { return LLCUDA_PATCHED; }

const char * llcuda_cuda_version(void) { return LLCUDA_CUDA_VERSION; }

const char * llcuda_library_path(void) {
    Dl_info info;
    return dladdr(reinterpret_cast<void *>(&llama_decode), &info) ? info.dli_fname : "";
}

void llcuda_init(uint64_t main_thread) {
    shim::main_thread = main_thread;
    llama_log_set(on_log, nullptr);
    ggml_set_abort_callback(on_abort);
    llama_backend_init();
}

void llcuda_log_level(int level) { delivered_level = level; }

const char * llcuda_errors(void) {
    joined_errors.clear();
    for (const auto & line : errors) {
        joined_errors += joined_errors.empty() ? line : "\n" + line;
    }
    return joined_errors.c_str();
}

void llcuda_clear_errors(void) { errors.clear(); }

int llcuda_backend_score(const char * path) {
    void * library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        shim::add_error(dlerror());
        return -1;
    }
    auto score = reinterpret_cast<int (*)()>(dlsym(library, "ggml_backend_score"));
    const int result = score ? score() : 1;
    dlclose(library);
    return result;
}

namespace {

constexpr int64_t ROWS_OF_A_BLOCK = 4;  // at most, of ggml-cuda's products of quantized matrices and a vector (mmvq.cu)

size_t (*cuda_alloc_size)(ggml_backend_buffer_type_t type, const ggml_tensor * tensor);

// A block of threads computes up to four rows of a quantized matrix, and reads all of them although the matrix may end
// before: what it reads there is not used, but it must be memory.
size_t with_whole_blocks(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) {
    const size_t size = cuda_alloc_size(type, tensor);
    const int64_t rest = tensor->ne[1] % ROWS_OF_A_BLOCK;
    const bool whole = rest == 0 || !ggml_is_quantized(tensor->type);
    return whole ? size : size + (ROWS_OF_A_BLOCK - rest) * tensor->nb[1];
}

// Let the tensors of CUDA's devices be allocated with whole blocks of rows.
void end_matrices_in_whole_blocks(ggml_backend_reg_t registry) {
    for (size_t i = 0; i < ggml_backend_reg_dev_count(registry); i++) {
        auto & iface = ggml_backend_dev_buffer_type(ggml_backend_reg_dev_get(registry, i))->iface;
        if (iface.get_alloc_size && iface.get_alloc_size != with_whole_blocks) {
            cuda_alloc_size = iface.get_alloc_size;
            iface.get_alloc_size = with_whole_blocks;
        }
    }
}

}  // namespace

bool llcuda_backend_load(const char * path) {
    return shim::guarded<bool>(false, [&] {
        ggml_backend_reg_t registry = ggml_backend_load(path);
        if (registry && strcmp(ggml_backend_reg_name(registry), "CUDA") == 0) {
            end_matrices_in_whole_blocks(registry);
        }
        return registry != nullptr;
    });
}

int llcuda_memory_now(ggml_backend_dev_t device, size_t * free, size_t * total) {
    return shim::guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        ggml_backend_dev_memory(device, free, total);
        return *total ? LLCUDA_OK : LLCUDA_EXCEPTION;  // 0 is ggml's answer for a GPU that gives none
    });
}

bool llcuda_gpus_answer(void) { return shim::gpus_answer(); }

// --- what the processor permits ---

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>

namespace {

constexpr int REFUSALS[] = {SIGILL, SIGSEGV, SIGBUS};

sigjmp_buf refused;

void on_refusal(int) { siglongjmp(refused, 1); }

__attribute__((target("amx-tile,amx-int8"), noinline)) void run_tiles() {
    alignas(64) struct {
        uint8_t  palette = 1, start_row = 0, reserved[14] = {};
        uint16_t columns[16] = {64, 64, 64};
        uint8_t  rows[16] = {16, 16, 16};
    } config;
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_dpbssd(0, 1, 2);
    _tile_release();
}

// Virtual machines list AMX and then refuse the first tile instruction, so run one.
bool amx_works() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // asm/prctl.h, arch_prctl(2)
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) {
        return false;
    }
    struct sigaction trap = {}, before[std::size(REFUSALS)] = {};
    trap.sa_handler = on_refusal;
    for (size_t i = 0; i < std::size(REFUSALS); i++) {
        sigaction(REFUSALS[i], &trap, &before[i]);
    }
    volatile bool works = false;
    if (sigsetjmp(refused, 1) == 0) {
        run_tiles();
        works = true;
    }
    for (size_t i = 0; i < std::size(REFUSALS); i++) {
        sigaction(REFUSALS[i], &before[i], nullptr);
    }
    return works;
}

}  // namespace

bool llcuda_cpu_permits(const char * feature) {
    __builtin_cpu_init();  // reads what the operating system saves too, unlike ggml's own score
    if (!strcmp(feature, "avx"))    { return __builtin_cpu_supports("avx"); }
    if (!strcmp(feature, "avx512")) { return __builtin_cpu_supports("avx512bw"); }
    if (!strcmp(feature, "amx"))    { return amx_works(); }
    return false;
}

#else

bool llcuda_cpu_permits(const char *) { return true; }

#endif
