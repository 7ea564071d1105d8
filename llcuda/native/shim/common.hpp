// What the shim's files share: the guard around every call into llama.cpp, and the errors.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>

#include "ggml-backend.h"
#include "llama.h"

extern "C" {
#include "shim.h"

// Defined by the binding module; each takes the GIL and runs a Python function.
void llcuda_on_log(int level, const char * text);
int  llcuda_on_signals(void);
int  llcuda_on_step_apply(void * handle, llama_token_data * data, size_t size, int64_t * selected, size_t * kept);
int  llcuda_on_step_accept(void * handle, int32_t token);
int  llcuda_on_step_reset(void * handle);
void * llcuda_on_step_clone(void * handle);
void llcuda_on_step_free(void * handle);
}

// Compiled for several processors, and the best chosen at load: for loops that the compiler vectorises.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SHIM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SHIM_CLONES
#endif

namespace shim {

// Threads pay where they save milliseconds; waking them costs more than that on a busy machine.
constexpr double WORTH_THREADS_NS = 3e6;

// Python's main thread, as pthread_self() names it.
extern uint64_t main_thread;

// Append a line to this thread's errors.
void add_error(const std::string & line);

// While one lives, `see` gets each line that llama.cpp logs on this thread, of any level; what it throws
// passes through llama.cpp.
struct LogWatch {
    explicit LogWatch(std::function<void(const std::string & line)> see);
    ~LogWatch();
    LogWatch(const LogWatch &) = delete;
};

// While one lives on a thread, a failed GGML_ASSERT on that thread throws instead of ending the process.
struct Guard {
    Guard();
    ~Guard();
    Guard(const Guard &) = delete;
};

// Run `call`; what it throws becomes `failed` and an error line.
template <typename Result, typename Call> Result guarded(Result failed, Call && call) {
    Guard guard;
    try {
        return call();
    } catch (const std::exception & error) {
        add_error(error.what());
    } catch (...) {
        add_error("unknown exception");
    }
    return failed;
}

// Run `call`; false when it divides by zero, or reads through a null pointer or a mapping of a file that became
// shorter. What it had allocated is then lost, so only for what a damaged file can bring about. Inside `guarded`.
bool survives(const std::function<void()> & call);

// Whether an error of CUDA ended the last call on this thread that threw.
extern thread_local bool cuda_failed;

// Whether every GPU still does what it is asked: after a fault of a kernel, or when it is gone, none does in this
// process.
bool gpus_answer();

// CUDA keeps the last error until somebody asks, and the next kernel's check would take it for its own.
void forget_cuda_error();

// A function that the CUDA backend exports, or of the CUDA run-time library under it; null without them. The backend
// is loaded where there is a GPU to use it.
void * cuda_symbol(const char * name);
template <typename Function> Function cuda_function(const char * name) {
    return reinterpret_cast<Function>(cuda_symbol(name));
}

// While one lives, a fault on this thread is nobody's but its own: around calls of Python.
struct FaultsOff {
    FaultsOff();
    ~FaultsOff();
    FaultsOff(const FaultsOff &) = delete;
    void * landing_;
};

inline int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace shim
