// The interface of half.cu, which is compiled into the CUDA backend: BF16 numbers become F16 where they lie.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// Whether the GPU of this memory multiplies BF16 matrices on Tensor Cores: from compute capability 8.0 on.
bool llcuda_multiplies_bf16(const void * data);
// Turn n BF16 numbers into F16. False if one of them is finite and beyond F16's range; nothing is changed then.
bool llcuda_bf16_to_f16(void * data, int64_t n);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif
