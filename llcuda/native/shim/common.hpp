// Shared by all files of the shim: the guard around every call into llama.cpp, and the errors.
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

// Compile a function for several processors; the best version is chosen at load. For loops that are vectorised.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SHIM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SHIM_CLONES
#endif

namespace shim {

// The work of a loop, from which on threads pay: waking them costs milliseconds on a busy machine.
constexpr double WORTH_THREADS_NS = 3e6;

// Python's main thread, as pthread_self() names it.
extern uint64_t main_thread;

// Append a line to this thread's errors.
void add_error(const std::string & line);

// Pass a line to Python's log.
void log_warning(const std::string & line);

// Passes each line that llama.cpp logs on this thread, of any level, to `see`, as long as the object lives. An exception
// of `see` passes through llama.cpp.
struct LogWatch {
    explicit LogWatch(std::function<void(const std::string & line)> see);
    ~LogWatch();
    LogWatch(const LogWatch &) = delete;
};

// Lets a failed GGML_ASSERT on this thread throw instead of ending the process, as long as the object lives.
struct Guard {
    Guard();
    ~Guard();
    Guard(const Guard &) = delete;
};

// Run `call`; an exception becomes `failed` and an error line.
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

// Run `call` inside `guarded`; false if it divides by zero, or reads through a null pointer or the mapping of a file
// that became shorter. Its allocations are lost then, so this is for faults that only a damaged file causes.
bool survives(const std::function<void()> & call);

// Handle the bus errors of watched files, on every thread, from the first of these calls to the last of those.
void hold_bus_errors();
void release_bus_errors();

// Whether the last call on this thread that threw did so by an error of CUDA.
extern thread_local bool cuda_failed;

// Whether every GPU still answers: after the fault of a kernel, or the loss of a GPU, none does in this process.
bool gpus_answer();

// Clear CUDA's last error, which the check after the next kernel would take for its own.
void forget_cuda_error();

// A function of the CUDA backend, or of the CUDA run-time library under it; null without a GPU.
void * cuda_symbol(const char * name);
template <typename Function> Function cuda_function(const char * name) {
    return reinterpret_cast<Function>(cuda_symbol(name));
}

// Turns `survives` off on this thread as long as the object lives: around calls of Python.
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
