// The interface of graphs.cu, which is compiled into the CUDA backend: whether a backend replays CUDA graphs, and whether
// it compares the first replay of each shape with the same kernels launched one by one.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// on: graphs are replayed. captured: graphs that kernels were recorded for, anew too. replays: launches of graphs.
// Counted where the mode is "checked": checked: first replays that were compared. different: those with other results; one turns graphs off.
struct llcuda_graphs_report {
    int64_t captured, replays, checked, different;
    bool    on;
};

// Set the mode of a ggml_backend_t of CUDA from its next graph on: "on", "off", "checked" or "auto", which is "checked" on
// Turing and "on" elsewhere.
void llcuda_graphs_set(void * backend, const char * mode);
void llcuda_graphs_read(void * backend, struct llcuda_graphs_report * report);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
