// Faults of llama.cpp caused by a file, caught while a model is loaded or a context is created.
//
// llama.cpp divides by hyper-parameters and follows pointers to optional tensors without checks. A file
// that lacks what its architecture needs would end the process, and so would a file that becomes
// shorter while it is mapped.

#include "common.hpp"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <iterator>
#include <mutex>

namespace {

constexpr uintptr_t NULL_PAGES = 1 << 20;  // a fault below: a member of a null object
constexpr int SIGNALS[] = {SIGFPE, SIGSEGV, SIGBUS};

thread_local sigjmp_buf * landing = nullptr;

std::mutex       mutex;
int              users = 0;
struct sigaction before[std::size(SIGNALS)];

void on_fault(int signal, siginfo_t * info, void *) {
    const bool raised_here = info->si_code > 0;  // not by kill()
    const bool expected = signal != SIGSEGV || reinterpret_cast<uintptr_t>(info->si_addr) < NULL_PAGES;
    if (landing && raised_here && expected) {
        siglongjmp(*landing, signal);
    }
    // Not ours: the instruction runs again, into the handler that was there before.
    sigaction(signal, &before[std::find(SIGNALS, std::end(SIGNALS), signal) - SIGNALS], nullptr);
    if (!raised_here) {
        raise(signal);
    }
}

// The handlers stand only while a thread needs them.
struct Handlers {
    Handlers() {
        std::lock_guard<std::mutex> lock(mutex);
        if (users++ == 0) {
            struct sigaction action = {};
            action.sa_sigaction = on_fault;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            for (size_t i = 0; i < std::size(SIGNALS); i++) {
                sigaction(SIGNALS[i], &action, &before[i]);
            }
        }
    }
    ~Handlers() {
        std::lock_guard<std::mutex> lock(mutex);
        if (--users == 0) {
            for (size_t i = 0; i < std::size(SIGNALS); i++) {
                sigaction(SIGNALS[i], &before[i], nullptr);
            }
        }
    }
};

}  // namespace

namespace shim {

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
                               : "llama.cpp divides by zero or misses a tensor: the file contradicts its architecture");
    return false;
}

FaultsOff::FaultsOff() : landing_(landing) { landing = nullptr; }
FaultsOff::~FaultsOff() { landing = static_cast<sigjmp_buf *>(landing_); }

}  // namespace shim
