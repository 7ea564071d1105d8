// Faults of llama.cpp caused by a file: caught while a model is loaded or a context is created, and lost pages of a
// watched file at any time.
//
// llama.cpp divides by hyper-parameters and follows pointers to optional tensors without checks. A file
// that lacks what its architecture needs would end the process, and so would a file that becomes
// shorter while it is mapped.

#include "common.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <iterator>
#include <mutex>

#include "gguf/watched.hpp"

namespace {

constexpr uintptr_t NULL_PAGES = 1 << 20;  // a fault below: a member of a null object
constexpr int    SIGNALS[] = {SIGFPE, SIGSEGV, SIGBUS};
constexpr size_t BUS = 2;  // its place

thread_local sigjmp_buf * landing = nullptr;

// A handler stands only while something needs it.
struct Handler {
    int               users = 0;
    struct sigaction  before = {};
    std::atomic<bool> passed_on{false};  // to the handler before
} handlers[std::size(SIGNALS)];
std::mutex mutex;

void on_fault(int signal, siginfo_t * info, void *) {
    const bool raised_here = info->si_code > 0;  // not by kill()
    const bool expected = signal != SIGSEGV || reinterpret_cast<uintptr_t>(info->si_addr) < NULL_PAGES;
    if (landing && raised_here && expected) {
        siglongjmp(*landing, signal);
    }
    const int error = errno;
    if (signal == SIGBUS && raised_here && shim::replace_lost_pages(info->si_addr)) {
        errno = error;
        return;  // the instruction runs again, and reads zeros
    }
    // Not ours: the instruction runs again, into the handler that was there before; if that one hands it back, into none.
    auto & handler = handlers[std::find(SIGNALS, std::end(SIGNALS), signal) - SIGNALS];
    struct sigaction none = {};
    none.sa_handler = SIG_DFL;
    sigaction(signal, handler.passed_on.exchange(true) ? &none : &handler.before, nullptr);
    if (!raised_here) {
        raise(signal);
    }
    errno = error;
}

bool is_ours(const struct sigaction & action) { return (action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_fault; }

void hold(size_t i) {
    handlers[i].users++;
    struct sigaction now;
    sigaction(SIGNALS[i], nullptr, &now);
    if (!is_ours(now)) {  // also where another handler was installed since
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        handlers[i].before = now;
        handlers[i].passed_on = false;
        sigaction(SIGNALS[i], &action, nullptr);
    }
}

void release(size_t i) {
    struct sigaction now;
    if (--handlers[i].users == 0 && sigaction(SIGNALS[i], nullptr, &now) == 0 && is_ours(now)) {
        sigaction(SIGNALS[i], &handlers[i].before, nullptr);
    }
}

struct Handlers {
    Handlers() {
        std::lock_guard<std::mutex> lock(mutex);
        for (size_t i = 0; i < std::size(SIGNALS); i++) {
            hold(i);
        }
    }
    ~Handlers() {
        std::lock_guard<std::mutex> lock(mutex);
        for (size_t i = 0; i < std::size(SIGNALS); i++) {
            release(i);
        }
    }
};

}  // namespace

namespace shim {

void hold_bus_errors() {
    std::lock_guard<std::mutex> lock(mutex);
    hold(BUS);
}

void release_bus_errors() {
    std::lock_guard<std::mutex> lock(mutex);
    release(BUS);
}

bool survives(const std::function<void()> & call) {
    Handlers handlers;
    sigjmp_buf here;
    sigjmp_buf * const outer = landing;
    const int signal = sigsetjmp(here, 1);
    if (signal == 0) {
        landing = &here;
        try {
            call();
        } catch (...) {
            landing = outer;
            throw;
        }
        landing = outer;
        return true;
    }
    landing = outer;
    add_error(signal == SIGBUS ? "the file became shorter while it was read"
              : signal == SIGFPE ? "llama.cpp divides by zero: the file contradicts its architecture"
                                 : "llama.cpp read through a null pointer: a tensor is missing in the file, or "
                                   "llcuda's libraries were not built with one compiler");
    return false;
}

FaultsOff::FaultsOff() : landing_(landing) { landing = nullptr; }
FaultsOff::~FaultsOff() { landing = static_cast<sigjmp_buf *>(landing_); }

}  // namespace shim
