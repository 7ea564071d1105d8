// What the CUDA backend offers the shim for weights of 4 bits. Errors are CUDA's numbers, 0 = fine.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// values[i] = code[packed[i]] * absmax[i / block_size], on the device where `values` lies: all but `code`, 16 floats,
// is its memory. The high half of a byte is the value before that of the low half. type: GGML_TYPE_F32, _F16 or
// _BF16; the float32 product is rounded once, to nearest even. block_size: a power of two. packed: aligned to 4
// bytes, values: to 16. stream: a cudaStream_t, behind whose work this begins.
int llcuda_nf4_expand(const uint8_t * packed, const float * absmax, const float * code, int64_t n, int32_t block_size,
                      int type, void * values, void * stream);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
