// The interface of nf4.cu, which is compiled into the CUDA backend: weights of 4 bits. Errors are numbers of CUDA, 0 =
// none.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// values[i] = code[packed[i]] * absmax[i / block_size], as the next work of `stream`, a cudaStream_t. The high half of a
// byte comes before the low half.
// code: 16 floats in the host's memory; the other arrays are in the device's.
// type: GGML_TYPE_F32, _F16 or _BF16; the float32 product is rounded once, to nearest even.
// block_size: a power of two. packed is aligned to 4 bytes, values to 16.
int llcuda_nf4_expand(const uint8_t * packed, const float * absmax, const float * code, int64_t n, int32_t block_size,
                      int type, void * values, void * stream);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
