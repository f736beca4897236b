// GGML's blocks of 256 to float32.

#include <cstring>

#include "abi.h"
#include "half.h"
#include "k_layout.h"

namespace puna {
namespace {

template <int SUB>
void ranged(float d, float dmin, const uint8_t* scales, const uint8_t* minimums,
            const uint8_t* codes, float* out) {
    for (int s = 0; s < BLOCK / SUB; s++) {
        const float scale = d * float(scales[s]), minimum = dmin * float(minimums[s]);
        for (int i = 0; i < SUB; i++) out[i] = scale * float(codes[i]) - minimum;
        codes += SUB;
        out += SUB;
    }
}

template <int ZERO>
void centred(float d, const int8_t* scales, const uint8_t* codes, float* out) {
    for (int s = 0; s < 16; s++) {
        const float scale = d * float(scales[s]);
        for (int i = 0; i < 16; i++) out[i] = scale * float(codes[i] - ZERO);
        codes += 16;
        out += 16;
    }
}

}  // namespace

PUNA_DEQUANTIZE(q2_k) {
    uint8_t scales[16], minimums[16], codes[BLOCK];
    for (int64_t b = 0; b < num_blocks; b++, in += 84, out += BLOCK) {
        for (int i = 0; i < 16; i++) {
            scales[i] = in[i] & 15;
            minimums[i] = in[i] >> 4;
        }
        std::memset(codes, 0, sizeof codes);
        unpack<2, 32>(in + 16, BLOCK, 0, codes);
        ranged<16>(load_half(in + 80), load_half(in + 82), scales, minimums, codes, out);
    }
}

PUNA_DEQUANTIZE(q3_k) {
    uint8_t scales[16], codes[BLOCK];
    int8_t centred_scales[16];
    for (int64_t b = 0; b < num_blocks; b++, in += 110, out += BLOCK) {
        std::memset(scales, 0, sizeof scales);
        unpack<4, 8>(in + 96, 16, 0, scales);
        unpack<2, 4>(in + 104, 16, 4, scales);
        for (int i = 0; i < 16; i++) centred_scales[i] = int8_t(scales[i] - 32);
        std::memset(codes, 0, sizeof codes);
        unpack<2, 32>(in + 32, BLOCK, 0, codes);
        unpack<1, 32>(in, BLOCK, 2, codes);
        centred<4>(load_half(in + 108), centred_scales, codes, out);
    }
}

PUNA_DEQUANTIZE(q4_k) {
    uint8_t scales[8], minimums[8], codes[BLOCK];
    for (int64_t b = 0; b < num_blocks; b++, in += 144, out += BLOCK) {
        unpack_scales(in + 4, scales, minimums);
        std::memset(codes, 0, sizeof codes);
        unpack<4, 32>(in + 16, BLOCK, 0, codes);
        ranged<32>(load_half(in), load_half(in + 2), scales, minimums, codes, out);
    }
}

PUNA_DEQUANTIZE(q5_k) {
    uint8_t scales[8], minimums[8], codes[BLOCK];
    for (int64_t b = 0; b < num_blocks; b++, in += 176, out += BLOCK) {
        unpack_scales(in + 4, scales, minimums);
        std::memset(codes, 0, sizeof codes);
        unpack<4, 32>(in + 48, BLOCK, 0, codes);
        unpack<1, 32>(in + 16, BLOCK, 4, codes);
        ranged<32>(load_half(in), load_half(in + 2), scales, minimums, codes, out);
    }
}

PUNA_DEQUANTIZE(q6_k) {
    int8_t scales[16];
    uint8_t codes[BLOCK];
    for (int64_t b = 0; b < num_blocks; b++, in += 210, out += BLOCK) {
        std::memcpy(scales, in + 192, sizeof scales);
        std::memset(codes, 0, sizeof codes);
        unpack<4, 64>(in, BLOCK, 0, codes);
        unpack<2, 32>(in + 128, BLOCK, 4, codes);
        centred<32>(load_half(in + 208), scales, codes, out);
    }
}

}  // namespace puna
