// Where the codes and scales of GGML's blocks of 256 lie, as `puna/quantize/k_layout.py` says.
#pragma once

#include <cstdint>

namespace puna {

constexpr int BLOCK = 256;

// BITS-bit numbers of a plane: STRIDE bytes hold 8 / BITS runs of STRIDE numbers, the first run in
// the lowest bits. `shift` moves them up, into what `numbers` holds already.
template <int BITS, int STRIDE>
void unpack(const uint8_t* plane, int count, int shift, uint8_t* numbers) {
    for (int begin = 0; begin < count; begin += STRIDE) {
        const int run = begin / STRIDE % (8 / BITS);
        for (int i = 0; i < STRIDE; i++) {
            const int number = plane[i] >> (run * BITS) & ((1 << BITS) - 1);
            numbers[begin + i] = uint8_t(numbers[begin + i] | number << shift);
        }
        if (run == 8 / BITS - 1) plane += STRIDE;
    }
}

// The BITS bits of each number from `shift` on, as a plane.
template <int BITS, int STRIDE>
void pack(const uint8_t* numbers, int count, int shift, uint8_t* plane) {
    for (int begin = 0; begin < count; begin += STRIDE) {
        const int run = begin / STRIDE % (8 / BITS);
        for (int i = 0; i < STRIDE; i++) {
            const int bits = (numbers[begin + i] >> shift & ((1 << BITS) - 1)) << (run * BITS);
            plane[i] = uint8_t(run == 0 ? bits : plane[i] | bits);
        }
        if (run == 8 / BITS - 1) plane += STRIDE;
    }
}

// 6-bit scales and minimums, eight each, in 12 bytes.
inline void unpack_scales(const uint8_t* packed, uint8_t* scales, uint8_t* minimums) {
    for (int i = 0; i < 4; i++) {
        scales[i] = packed[i] & 63;
        minimums[i] = packed[4 + i] & 63;
        scales[4 + i] = uint8_t((packed[8 + i] & 15) | (packed[i] >> 6) << 4);
        minimums[4 + i] = uint8_t(packed[8 + i] >> 4 | (packed[4 + i] >> 6) << 4);
    }
}

inline void pack_scales(const uint8_t* scales, const uint8_t* minimums, uint8_t* packed) {
    for (int i = 0; i < 4; i++) {
        packed[i] = uint8_t(scales[i] | (scales[4 + i] >> 4) << 6);
        packed[4 + i] = uint8_t(minimums[i] | (minimums[4 + i] >> 4) << 6);
        packed[8 + i] = uint8_t((scales[4 + i] & 15) | (minimums[4 + i] & 15) << 4);
    }
}

}  // namespace puna
