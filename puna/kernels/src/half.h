// f16 numbers as bits: to float32 exactly, from it rounded to nearest, ties to even. Little-endian,
// as numpy's views of stored bytes are too.
#pragma once

#include <cstdint>
#include <cstring>

namespace puna {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t load_u16(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return bits;
}

inline void store_u16(uint8_t* at, uint16_t bits) { std::memcpy(at, &bits, 2); }

inline float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    const uint32_t rest = uint32_t(half & 0x7fff) << 13;
    // The exponent's bias is 112 less; the product is exact, for subnormal numbers too.
    const uint32_t number = bits_of(float_of(rest) * 0x1p112f);
    return float_of(sign | (rest >= 0x0f800000 ? 0x70000000 | rest : number));  // infinite, or NaN
}

inline uint16_t to_half(float value) {
    const uint16_t sign = uint16_t(bits_of(value) >> 16 & 0x8000);
    uint32_t bits = bits_of(value) & 0x7fffffff;
    if (bits >= 0x47800000) return uint16_t(sign | 0x7c00);
    if (bits < 0x38800000) {
        // Subnormal: the last place of 0.5 is what the last place of such an f16 is worth.
        return uint16_t(sign | (bits_of(float_of(bits) + 0.5f) - bits_of(0.5f)));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return uint16_t(sign | (bits - (112u << 23)) >> 13);
}

constexpr float HALF_MAX = 65504;

// The least f16 number that is not below a positive value.
inline float up_to_half(float value) {
    const uint16_t half = to_half(value);
    return from_half(from_half(half) < value ? uint16_t(half + 1) : half);
}

inline float load_half(const uint8_t* at) { return from_half(load_u16(at)); }

inline void store_half(uint8_t* at, float value) { store_u16(at, to_half(value)); }

}  // namespace puna
