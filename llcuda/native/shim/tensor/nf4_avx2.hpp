// Whole blocks of 4-bit weights to floats with AVX2 and F16C: 32 weights at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c"))) inline

namespace shim::avx2 {

enum class Half { IEEE, BRAIN };

AVX2 __m256i to_bfloat16(__m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
}

// 16 numbers as two tables of bytes, for a shuffle to look up: low bytes and high bytes.
template <Half HALF> AVX2 void byte_tables(__m256 first, __m256 second, __m128i & low, __m128i & high) {
    __m128i a, b;  // 8 numbers of 16 bits each
    if constexpr (HALF == Half::IEEE) {
        a = _mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT);
        b = _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT);
    } else {
        const __m256i both = _mm256_packus_epi32(to_bfloat16(first), to_bfloat16(second));
        const __m256i ordered = _mm256_permute4x64_epi64(both, 0xd8);
        a = _mm256_castsi256_si128(ordered);
        b = _mm256_extracti128_si256(ordered, 1);
    }
    const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    a = _mm_shuffle_epi8(a, apart);
    b = _mm_shuffle_epi8(b, apart);
    low = _mm_unpacklo_epi64(a, b);
    high = _mm_unpackhi_epi64(a, b);
}

AVX2 void store(void * to, __m128i value) { _mm_storeu_si128(static_cast<__m128i *>(to), value); }

// The codes of 16 bytes, in the order of their weights.
AVX2 void codes_of(const uint8_t * packed, __m128i & first, __m128i & second) {
    const __m128i mask = _mm_set1_epi8(15);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(packed));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    const __m128i low = _mm_and_si128(bytes, mask);
    first = _mm_unpacklo_epi8(high, low);
    second = _mm_unpackhi_epi8(high, low);
}

template <Half HALF>
AVX2 void expand(const uint8_t * packed, const float * absmax, const float * code, int64_t blocks, int32_t block_size,
                 uint16_t * values) {
    const __m256 first = _mm256_loadu_ps(code), second = _mm256_loadu_ps(code + 8);
    for (int64_t block = 0; block < blocks; block++) {
        const __m256 scale = _mm256_set1_ps(absmax[block]);
        __m128i low, high;
        byte_tables<HALF>(_mm256_mul_ps(first, scale), _mm256_mul_ps(second, scale), low, high);
        for (int32_t i = 0; i < block_size; i += 32, packed += 16, values += 32) {
            __m128i codes[2];
            codes_of(packed, codes[0], codes[1]);
            for (int k = 0; k < 2; k++) {
                const __m128i lows = _mm_shuffle_epi8(low, codes[k]), highs = _mm_shuffle_epi8(high, codes[k]);
                store(values + 16 * k, _mm_unpacklo_epi8(lows, highs));
                store(values + 16 * k + 8, _mm_unpackhi_epi8(lows, highs));
            }
        }
    }
}

AVX2 void expand(const uint8_t * packed, const float * absmax, const float * code, int64_t blocks, int32_t block_size,
                 float * values) {
    const __m256 first = _mm256_loadu_ps(code), second = _mm256_loadu_ps(code + 8);
    for (int64_t block = 0; block < blocks; block++) {
        const __m256 scale = _mm256_set1_ps(absmax[block]);
        const __m256 lower = _mm256_mul_ps(first, scale), upper = _mm256_mul_ps(second, scale);
        for (int32_t i = 0; i < block_size; i += 32, packed += 16) {
            __m128i codes[2];
            codes_of(packed, codes[0], codes[1]);
            for (int k = 0; k < 4; k++, values += 8) {
                const __m128i bytes = k % 2 ? _mm_unpackhi_epi64(codes[k / 2], codes[k / 2]) : codes[k / 2];
                const __m256i index = _mm256_cvtepu8_epi32(bytes);
                const __m256 above = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // sign: 8 and more
                _mm256_storeu_ps(values, _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, index),
                                                          _mm256_permutevar8x32_ps(upper, index), above));
            }
        }
    }
}

inline bool works() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

}  // namespace shim::avx2

#undef AVX2
#endif
