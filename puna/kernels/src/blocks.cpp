// GGML's blocks of 32, as `puna/quantize/blocks.py` defines them, and f16.

#include <cmath>
#include <cstring>

#include "abi.h"
#include "half.h"

namespace puna {
namespace {

constexpr int SIZE = 32;

void unpack_nibbles(const uint8_t* low, int32_t* codes) {
    for (int i = 0; i < 16; i++) {
        codes[i] = low[i] & 15;
        codes[i + 16] = low[i] >> 4;
    }
}

void add_fifth_bits(const uint8_t* high, int32_t* codes) {
    const uint32_t bits = high[0] | high[1] << 8 | high[2] << 16 | uint32_t(high[3]) << 24;
    for (int i = 0; i < SIZE; i++) codes[i] |= int32_t(bits >> i & 1) << 4;
}

void pack_nibbles(const int32_t* codes, uint8_t* low) {
    for (int i = 0; i < 16; i++) low[i] = uint8_t((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

void pack_fifth_bits(const int32_t* codes, uint8_t* high) {
    uint32_t bits = 0;
    for (int i = 0; i < SIZE; i++) bits |= uint32_t(codes[i] >> 4) << i;
    for (int i = 0; i < 4; i++) high[i] = uint8_t(bits >> 8 * i);
}

// 1 / d, or 0 where d is 0; `defined` is 0 where the inverse overflows, and so must the codes be.
float inverse(float d, int32_t& defined) {
    const float inverse = d == 0 ? 0 : 1 / d;
    defined = std::isfinite(inverse) ? -1 : 0;
    return defined ? inverse : 0;
}

uint32_t largest_magnitude(const float* x) {
    uint32_t largest = 0;
    for (int i = 0; i < SIZE; i++) {
        const uint32_t bits = bits_of(x[i]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

template <int ZERO>
float signed_codes(const float* x, int32_t* codes) {
    const uint32_t largest = largest_magnitude(x);
    int place = 0;
    while ((bits_of(x[place]) & 0x7fffffff) != largest) place++;
    const float d = x[place] / float(-ZERO);
    int32_t defined;
    const float by = inverse(d, defined);
    for (int i = 0; i < SIZE; i++) {
        const int32_t code = int32_t(x[i] * by + (ZERO + 0.5f)) & defined;
        codes[i] = code < 2 * ZERO ? code : 2 * ZERO - 1;
    }
    return d;
}

// Floats as integers that sort alike, with -0 below +0; its own inverse.
int32_t sortable(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

float zero_of_first_sign(const float* x) {
    while (*x != 0) x++;
    return *x;
}

template <int TOP>
float ranged_codes(const float* x, float& m, int32_t* codes) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int i = 0; i < SIZE; i++) {
        const int32_t key = sortable(int32_t(bits_of(x[i])));
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    m = float_of(uint32_t(sortable(low)));
    if (m == 0) m = zero_of_first_sign(x);
    float maximum = float_of(uint32_t(sortable(high)));
    if (maximum == 0) maximum = zero_of_first_sign(x);
    const float d = (maximum - m) / float(TOP);
    int32_t defined;
    const float by = inverse(d, defined);
    for (int i = 0; i < SIZE; i++) {
        const int32_t code = int32_t((x[i] - m) * by + 0.5f) & defined;
        codes[i] = code < TOP ? code : TOP;
    }
    return d;
}

}  // namespace

// Plain numbers, blocks of one.
PUNA_DEQUANTIZE(f32) { std::memcpy(out, in, size_t(num_blocks) * sizeof(float)); }

PUNA_DEQUANTIZE(bf16) {
    for (int64_t i = 0; i < num_blocks; i++) {
        out[i] = float_of(uint32_t(load_u16(in + 2 * i)) << 16);
    }
}

PUNA_DEQUANTIZE(f16) {
    for (int64_t i = 0; i < num_blocks; i++) out[i] = load_half(in + 2 * i);
}

PUNA_DEQUANTIZE(q4_0) {
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_blocks; b++, in += 18, out += SIZE) {
        const float d = load_half(in);
        unpack_nibbles(in + 2, codes);
        for (int i = 0; i < SIZE; i++) out[i] = d * float(codes[i] - 8);
    }
}

PUNA_DEQUANTIZE(q4_1) {
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_blocks; b++, in += 20, out += SIZE) {
        const float d = load_half(in), m = load_half(in + 2);
        unpack_nibbles(in + 4, codes);
        for (int i = 0; i < SIZE; i++) out[i] = d * float(codes[i]) + m;
    }
}

PUNA_DEQUANTIZE(q5_0) {
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_blocks; b++, in += 22, out += SIZE) {
        const float d = load_half(in);
        unpack_nibbles(in + 6, codes);
        add_fifth_bits(in + 2, codes);
        for (int i = 0; i < SIZE; i++) out[i] = d * float(codes[i] - 16);
    }
}

PUNA_DEQUANTIZE(q5_1) {
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_blocks; b++, in += 24, out += SIZE) {
        const float d = load_half(in), m = load_half(in + 2);
        unpack_nibbles(in + 8, codes);
        add_fifth_bits(in + 4, codes);
        for (int i = 0; i < SIZE; i++) out[i] = d * float(codes[i]) + m;
    }
}

PUNA_DEQUANTIZE(q8_0) {
    for (int64_t b = 0; b < num_blocks; b++, in += 34, out += SIZE) {
        const float d = load_half(in);
        for (int i = 0; i < SIZE; i++) out[i] = float(int8_t(in[2 + i])) * d;
    }
}

PUNA_QUANTIZE(q4_0) {
    (void)importance;
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_rows * length / SIZE; b++, x += SIZE, out += 18) {
        store_half(out, signed_codes<8>(x, codes));
        pack_nibbles(codes, out + 2);
    }
}

PUNA_QUANTIZE(q4_1) {
    (void)importance;
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_rows * length / SIZE; b++, x += SIZE, out += 20) {
        float m;
        store_half(out, ranged_codes<15>(x, m, codes));
        store_half(out + 2, m);
        pack_nibbles(codes, out + 4);
    }
}

PUNA_QUANTIZE(q5_0) {
    (void)importance;
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_rows * length / SIZE; b++, x += SIZE, out += 22) {
        store_half(out, signed_codes<16>(x, codes));
        pack_fifth_bits(codes, out + 2);
        pack_nibbles(codes, out + 6);
    }
}

PUNA_QUANTIZE(q5_1) {
    (void)importance;
    int32_t codes[SIZE];
    for (int64_t b = 0; b < num_rows * length / SIZE; b++, x += SIZE, out += 24) {
        float m;
        store_half(out, ranged_codes<31>(x, m, codes));
        store_half(out + 2, m);
        pack_fifth_bits(codes, out + 4);
        pack_nibbles(codes, out + 8);
    }
}

PUNA_QUANTIZE(q8_0) {
    (void)importance;
    for (int64_t b = 0; b < num_rows * length / SIZE; b++, x += SIZE, out += 34) {
        const float d = float_of(largest_magnitude(x)) / 127;
        int32_t defined;
        const float by = inverse(d, defined);
        store_half(out, d);
        for (int i = 0; i < SIZE; i++) {
            const float scaled = x[i] * by;
            // Half away from zero; what truncation leaves is exact.
            const int32_t code = int32_t(scaled);
            const float rest = scaled - float(code);
            out[2 + i] = uint8_t((code + (rest >= 0.5f) - (rest <= -0.5f)) & defined);
        }
    }
}

}  // namespace puna
