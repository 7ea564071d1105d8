// Weights of 4 bits, in blocks that share a scale: bitsandbytes' NF4 and FP4, and back.

#include "tensor/nf4.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common.hpp"
#include "sampling/select.h"
#include "tensor/nf4_avx2.hpp"

using shim::guarded;

namespace {

constexpr int64_t CHUNK = 1 << 16;  // values that a thread takes at once
constexpr int32_t INFINITE = 0x7f800000, ABSOLUTE = 0x7fffffff;
constexpr float LEAST_SCALE = 1e-38f;  // what bitsandbytes divides by at least

template <typename To, typename From> To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct Float16 {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// To nearest, of two the even one; no NaN comes here.
void round_to(float value, float & result) { result = value; }

void round_to(float value, BFloat16 & result) {
    const auto bits = bits_of<uint32_t>(value);
    result.bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void round_to(float value, Float16 & result) {
    const auto bits = bits_of<uint32_t>(value);
    const uint32_t size = bits & ABSOLUTE;
    const uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    // Beside 0.5 a float's last bit is worth as much as a subnormal's: the sum rounds.
    const uint32_t subnormal = bits_of<uint32_t>(bits_of<float>(size) + 0.5f) - bits_of<uint32_t>(0.5f);
    const uint32_t finite = size < 113u << 23 ? subnormal : normal;
    result.bits = static_cast<uint16_t>((bits >> 16 & 0x8000) | (size < 143u << 23 ? finite : 0x7c00));
}

// Values [0, n) of blocks that begin at absmax[0]; what a block's 16 codes stand for is computed once.
template <typename T>
void expand(const uint8_t * packed, const float * absmax, const float * code, int64_t n, int32_t block_size,
            T * values) {
    for (int64_t begin = 0; begin < n; begin += block_size, absmax++) {
        T table[16];
        for (int i = 0; i < 16; i++) {
            round_to(code[i] * *absmax, table[i]);
        }
        const int64_t end = std::min<int64_t>(begin + block_size, n);
        for (int64_t i = begin; i + 1 < end; i += 2) {
            const uint8_t pair = packed[i / 2];
            values[i] = table[pair >> 4];
            values[i + 1] = table[pair & 15];
        }
        if (end % 2) {
            values[end - 1] = table[packed[end / 2] >> 4];
        }
    }
}

// As many of the whole blocks as the processor has special instructions for: all or none.
template <typename T>
int64_t expand_fast(const uint8_t * packed, const float * absmax, const float * code, int64_t blocks,
                    int32_t block_size, T * values) {
#if defined(__x86_64__)
    static const bool fast = shim::avx2::works();
    if (!fast) {
        return 0;
    }
    if constexpr (std::is_same_v<T, float>) {
        shim::avx2::expand(packed, absmax, code, blocks, block_size, values);
    } else {
        constexpr auto half = std::is_same_v<T, Float16> ? shim::avx2::Half::IEEE : shim::avx2::Half::BRAIN;
        shim::avx2::expand<half>(packed, absmax, code, blocks, block_size, &values->bits);
    }
    return blocks;
#else
    return 0;
#endif
}

// Give `work` the blocks of [0, n), CHUNK by CHUNK, on several threads where it pays.
template <typename Work> void in_chunks(int64_t n, const Work & work) {
    const int64_t chunks = (n + CHUNK - 1) / CHUNK;
    #pragma omp parallel for schedule(static) if(chunks > 16)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        work(chunk * CHUNK, std::min((chunk + 1) * CHUNK, n));
    }
}

template <typename T>
void dequantize(const uint8_t * packed, const float * absmax, const float * code, int64_t n, int32_t block_size,
                void * values) {
    in_chunks(n, [&](int64_t begin, int64_t end) {
        const float * scales = absmax + begin / block_size;
        T * out = static_cast<T *>(values) + begin;
        const int64_t blocks =
            expand_fast(packed + begin / 2, scales, code, (end - begin) / block_size, block_size, out);
        const int64_t done = blocks * block_size;
        expand(packed + (begin + done) / 2, scales + blocks, code, end - begin - done, block_size, out + done);
    });
}

// The largest absolute value's bits; those of inf and above when one is no finite number.
SHIM_CLONES int32_t largest(const float * values, int64_t n) {
    int32_t result = 0;
    for (int64_t i = 0; i < n; i++) {
        result = std::max(result, bits_of<int32_t>(values[i]) & ABSOLUTE);
    }
    return result;
}

// How many of `bounds` lie below each value, after it was divided by the scale: as bitsandbytes does it, by a
// product with the reciprocal in a whole block and by a quotient in the last, shorter one.
SHIM_CLONES void find_codes(const float * values, int64_t n, float scale, bool whole, const float * bounds,
                            int32_t * found) {
    const float reciprocal = 1.0f / scale;
    for (int64_t i = 0; i < n; i++) {
        const float value = whole ? values[i] * reciprocal : values[i] / scale;
        int32_t below = 0;
        for (int k = 0; k < 15; k++) {
            below += value > bounds[k];
        }
        found[i] = below;
    }
}

void quantize_block(const float * values, int64_t n, bool whole, const float * bounds, const uint8_t * codes,
                    uint8_t * packed, float & absmax) {
    int32_t found[LLCUDA_NF4_LARGEST_BLOCK];
    const float scale = std::max(absmax, LEAST_SCALE);
    if (!whole) {
        absmax = scale;
    }
    find_codes(values, n, scale, whole, bounds, found);
    if (n % 2) {
        const float zero = 0;  // in the low half of the last byte
        find_codes(&zero, 1, 1, true, bounds, found + n);
    }
    for (int64_t i = 0; i < n; i += 2) {
        packed[i / 2] = static_cast<uint8_t>(codes[found[i]] << 4 | codes[found[i + 1]]);
    }
}

}  // namespace

int llcuda_nf4_dequantize(const uint8_t * packed, const float * absmax, const float * code, int64_t n,
                          int32_t block_size, int type, void * values) {
    switch (type) {
        case GGML_TYPE_F32:  dequantize<float>(packed, absmax, code, n, block_size, values); break;
        case GGML_TYPE_F16:  dequantize<Float16>(packed, absmax, code, n, block_size, values); break;
        case GGML_TYPE_BF16: dequantize<BFloat16>(packed, absmax, code, n, block_size, values); break;
        default:             return LLCUDA_UNSUPPORTED;
    }
    return LLCUDA_OK;
}

bool llcuda_nf4_quantize(const float * values, int64_t n, int32_t block_size, const float * bounds,
                         const uint8_t * codes, uint8_t * packed, float * absmax) {
    std::atomic<bool> finite{true};
    in_chunks(n, [&](int64_t begin, int64_t end) {
        for (; begin < end && finite; begin += block_size) {
            const int64_t size = std::min<int64_t>(block_size, n - begin);
            const int32_t bits = largest(values + begin, size);
            if (bits >= INFINITE) {
                finite = false;
                break;
            }
            float & scale = absmax[begin / block_size];
            scale = bits_of<float>(bits);
            quantize_block(values + begin, size, size == block_size, bounds, codes, packed + begin / 2, scale);
        }
    });
    return finite;
}

int llcuda_nf4_on_gpu(uintptr_t packed, uintptr_t absmax, const float * code, int64_t n, int32_t block_size, int type,
                      uintptr_t values, uintptr_t stream) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        const auto expand_there = shim::cuda_function<decltype(&llcuda_nf4_expand)>("llcuda_nf4_expand");
        const auto cuda_error = shim::cuda_function<decltype(&llcuda_cuda_error)>("llcuda_cuda_error");
        if (!expand_there) {
            return LLCUDA_UNSUPPORTED;
        }
        const int error =
            expand_there(reinterpret_cast<const uint8_t *>(packed), reinterpret_cast<const float *>(absmax), code, n,
                         block_size, type, reinterpret_cast<void *>(values), reinterpret_cast<void *>(stream));
        if (error) {
            throw std::runtime_error(std::string("CUDA error: ") + cuda_error(error));
        }
        return LLCUDA_OK;
    });
}
