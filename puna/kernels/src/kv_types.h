// How keys and values are kept in pages: the types that `puna/kernels/kv_types.py` names.
//
// Of a page, a layer and a head: keys (head_dim, TILE positions) and values (TILE positions, padded
// head_dim), each followed by the f16 scales of its positions where the type has scales.
#pragma once

#include "vectors.h"

namespace puna {

inline Floats within(Floats x, float limit) {
    return select(x > limit, splat(limit), select(x < -limit, splat(-limit), x));
}

struct KvF32 {
    static constexpr int SIZE = 4, SCALE = 0;  // bytes of a number, of a position's scale
    static Lanes load_lanes(const uint8_t* at) { return bits_at<Lanes>(at); }
    static float scale_of(const float*, int64_t) { return 1; }
    static void pack(Floats x, float, uint8_t* out) { store_floats((float*)out, x); }
};

struct KvF16 {
    static constexpr int SIZE = 2, SCALE = 0;
    static Lanes load_lanes(const uint8_t* at) { return halves_at(at); }
    static float scale_of(const float*, int64_t) { return 1; }
    // What is larger than the largest number becomes that, not infinite.
    static void pack(Floats x, float, uint8_t* out) {
        store_halves(out, within(x, HALF_MAX));
    }
};

struct KvInt8 {
    static constexpr int SIZE = 1, SCALE = 2;
    static Lanes load_lanes(const uint8_t* at) { return small_at<int8_t>(at); }
    // 1/127 of the largest magnitude, as it is kept.
    static float scale_of(const float* x, int64_t count) {
        float largest = 0;
        for (int64_t i = 0; i < count; i++) {
            const float magnitude = x[i] < 0 ? -x[i] : x[i];
            largest = magnitude > largest ? magnitude : largest;
        }
        largest /= 127;
        return from_half(to_half(largest > HALF_MAX ? HALF_MAX : largest));
    }
    static void pack(Floats x, float scale, uint8_t* out) {
        const Floats codes = within(x / (scale > 0 ? scale : 1), 127);
        // To nearest, ties to even.
        store_small((int8_t*)out, (Ints)(codes + 0x1.8p23f) - 0x4b400000);
    }
};

// call(T{}) for the type of that number.
template <class Call>
inline void with_kv_type(int32_t type, Call&& call) {
    switch (type) {
        case 0: return call.template operator()<KvF32>();
        case 1: return call.template operator()<KvF16>();
        case 2: return call.template operator()<KvInt8>();
        default: return;
    }
}

template <class T>
constexpr int64_t kv_bytes(int64_t width) {
    return TILE * (width * T::SIZE + T::SCALE);
}

// Keeps a head (head_dim): number i at to + i * step, which is T::SIZE for values.
template <class T>
inline void keep_head(const float* x, int64_t head_dim, uint8_t* to, int64_t step, uint8_t* scale) {
    const float by = T::scale_of(x, head_dim);
    if constexpr (T::SCALE != 0) store_half(scale, by);
    for (int64_t i = 0; i < head_dim; i += TILE) {
        const int64_t count = head_dim - i < TILE ? head_dim - i : TILE;
        uint8_t packed[TILE * T::SIZE];
        T::pack(load_part(x + i, count), by, packed);
        if (step == T::SIZE) {
            std::memcpy(to + i * step, packed, sizeof packed);  // zeros into the padding
            continue;
        }
        for (int64_t j = 0; j < count; j++) {
            std::memcpy(to + (i + j) * step, packed + j * T::SIZE, T::SIZE);
        }
    }
}

}  // namespace puna
