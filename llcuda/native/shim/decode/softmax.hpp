// exp for log-softmax over a row of logits, without a branch: loops over it are vectorised.
#pragma once

#include <cstdint>
#include <cstring>

namespace shim {

// exp(x) for x <= 0: 2^k times the Taylor polynomial of the rest. Relative error below 1e-7 (2 + |x|);
// 0 below -80, NaN of NaN.
inline float exp_negative(float x) {
    constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the integer
    const float shifted = x * 1.44269504f + TO_INTEGER;
    const float r = x - (shifted - TO_INTEGER) * 0.693147181f;
    float p = r * (1.0f / 720) + 1.0f / 120;
    p = r * p + 1.0f / 24;
    p = r * p + 1.0f / 6;
    p = r * p + 1.0f / 2;
    p = r * p + 1;
    p = r * p + 1;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    std::memcpy(&power, &bits, sizeof bits);
    p *= power;
    std::memcpy(&bits, &p, sizeof bits);
    bits &= static_cast<uint32_t>(x < -80.0f) - 1u;
    std::memcpy(&p, &bits, sizeof bits);
    return p;
}

}  // namespace shim
