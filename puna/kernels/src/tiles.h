// Matrices as the step reads them: tiles of 16 rows, all columns of a tile one after another.
//
// A kind of tile says how codes and scales of 32 (or 256) columns lie. Codes are unsigned, 16 rows by
// 4 columns a register, as the processors' dot products of bytes want them: register j of a group
// holds columns 4j to 4j + 3. Their low four bits come in registers of which the high nibbles are
// those of register j + 4; bits above in planes of one or two bits.
#pragma once

#include "vectors.h"

namespace puna {

constexpr int GROUP = 32;

// Activations of one row and group: int8 codes, what they are multiplied with, sums by halves.
struct Group {
    int8_t codes[GROUP];
    float scale;
    int32_t sums[2];
    int32_t padding;

    // The codes of columns 4j to 4j + 3.
    int32_t four(int j) const {
        int32_t bits;
        std::memcpy(&bits, codes + 4 * j, 4);
        return bits;
    }
    // The sum of run `s` of `runs`, which are 1 or 2.
    int32_t sum(int runs, int s) const { return runs == 1 ? sums[0] + sums[1] : sums[s]; }
};

template <int HIGH>
constexpr int GROUP_BYTES = HIGH == 4 ? 512 : 256 + 64 * HIGH;

template <int BYTES>
inline void prefetch(const uint8_t* at) {
    for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(at + line);
}

// The codes of a group: HIGH bits of each above its low four.
template <int HIGH>
inline void load_codes(const uint8_t* at, Bytes* codes) {
    if constexpr (HIGH == 4) {
        for (int j = 0; j < 8; j++) codes[j] = load_as<Bytes>(at + 64 * j);
        return;
    }
#pragma GCC unroll 4  // else codes are kept in memory where a register holds few
    for (int j = 0; j < 4; j++) {
        const Bytes both = load_as<Bytes>(at + 64 * j);
        codes[j] = both & 15;
        codes[j + 4] = (Bytes)((Ints)both >> 4) & 15;
    }
    if constexpr (HIGH == 1) {
        const Ints plane = load_as<Ints>(at + 256);
        for (int j = 0; j < 8; j++) {
            const Ints moved = j < 4 ? plane << (4 - j) : plane >> (j - 4);
            codes[j] |= (Bytes)moved & 16;
        }
    }
    if constexpr (HIGH == 2) {
        for (int j = 0; j < 8; j++) {
            const Ints plane = load_as<Ints>(at + 256 + 64 * (j / 4));
            const int run = j % 4;
            const Ints moved = run < 2 ? plane << (4 - 2 * run) : plane >> (2 * run - 4);
            codes[j] |= (Bytes)moved & 48;
        }
    }
}

// Of a block: weight = scale * (code - ZERO) - minimum; SUB columns share scale and minimum.
template <int HIGH_, int ZERO_, bool MINIMUM_>
struct Plain {  // Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: f16 scale and minimum a group
    static constexpr int HIGH = HIGH_, ZERO = ZERO_, SUB = 32, BLOCK = 32;
    static constexpr bool MINIMUM = MINIMUM_;
    static constexpr int HEAD = MINIMUM ? 64 : 32;
    Floats scale_, minimum_;

    explicit Plain(const uint8_t* at) : scale_(load_halves(at)) {
        if constexpr (MINIMUM) minimum_ = -load_halves(at + 32);
    }
    Floats scale(const uint8_t*, int) const { return scale_; }
    Floats minimum(const uint8_t*, int) const { return minimum_; }
};

template <int HIGH_, int SUB_>
struct Ranged {  // Q2_K, Q4_K, Q5_K: f16 d and dmin; uint8 scales and minimums
    static constexpr int HIGH = HIGH_, ZERO = 0, SUB = SUB_, BLOCK = 256;
    static constexpr bool MINIMUM = true;
    static constexpr int HEAD = 64 + 2 * TILE * BLOCK / SUB;
    Floats d_, dmin_;

    explicit Ranged(const uint8_t* at) : d_(load_halves(at)), dmin_(load_halves(at + 32)) {}
    Floats scale(const uint8_t* at, int sub) const {
        return d_ * load_small<uint8_t>(at + 64 + TILE * sub);
    }
    Floats minimum(const uint8_t* at, int sub) const {
        return dmin_ * load_small<uint8_t>(at + 64 + TILE * (BLOCK / SUB + sub));
    }
};

struct Signed {  // Q3_K, Q6_K: f16 d; int8 scales of 16 columns
    static constexpr int HIGH = 2, ZERO = 32, SUB = 16, BLOCK = 256;
    static constexpr bool MINIMUM = false;
    static constexpr int HEAD = 32 + TILE * BLOCK / SUB;
    Floats d_;

    explicit Signed(const uint8_t* at) : d_(load_halves(at)) {}
    Floats scale(const uint8_t* at, int sub) const {
        return d_ * load_small<int8_t>(at + 32 + TILE * sub);
    }
    Floats minimum(const uint8_t*, int) const { return Floats{}; }
};

template <int HIGH_>
struct Zeroed {  // integers of up to 4 or 8 bits in groups: f16 scale and uint8 zero of 32 columns
    static constexpr int HIGH = HIGH_, ZERO = 0, SUB = 32, BLOCK = 32;
    static constexpr bool MINIMUM = true;
    static constexpr int HEAD = 32 + TILE;
    Floats scale_, minimum_;

    // 11 bits of the scale by 8 of the zero fit a float: nothing is rounded.
    explicit Zeroed(const uint8_t* at)
        : scale_(load_halves(at)), minimum_(scale_ * load_small<uint8_t>(at + 32)) {}
    Floats scale(const uint8_t*, int) const { return scale_; }
    Floats minimum(const uint8_t*, int) const { return minimum_; }
};

template <class K>
constexpr int BLOCK_BYTES = K::HEAD + K::BLOCK / GROUP * GROUP_BYTES<K::HIGH>;

// Kinds by number, as `puna/kernels/tiles.py` has them.
enum Kind : int32_t {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q4_K,
    Q5_K,
    Q6_K,
    GROUPED_4,
    GROUPED_8
};

// call(K{}...) for the kind of codes that `kind` is; not for floats.
template <class Call>
inline void with_kind(int32_t kind, Call&& call) {
    switch (kind) {
        case Q4_0: return call.template operator()<Plain<0, 8, false>>();
        case Q4_1: return call.template operator()<Plain<0, 0, true>>();
        case Q5_0: return call.template operator()<Plain<1, 16, false>>();
        case Q5_1: return call.template operator()<Plain<1, 0, true>>();
        case Q8_0: return call.template operator()<Plain<4, 128, false>>();
        case Q2_K: return call.template operator()<Ranged<0, 16>>();
        case Q4_K: return call.template operator()<Ranged<0, 32>>();
        case Q5_K: return call.template operator()<Ranged<1, 32>>();
        case Q6_K: return call.template operator()<Signed>();
        case GROUPED_4: return call.template operator()<Zeroed<0>>();
        case GROUPED_8: return call.template operator()<Zeroed<4>>();
        default: return;
    }
}

}  // namespace puna
