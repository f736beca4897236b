// Sixteen float32 or int32 numbers, the width of a tile, on any processor.
#pragma once

#include <initializer_list>

#include "parts.h"

namespace puna {

constexpr int TILE = 16;  // rows of a matrix, or positions of a page, that are computed together

#if defined(__AVX512F__)
typedef Lanes Floats;
typedef IntLanes Ints;
typedef ByteLanes Bytes;

// What make(number of a register) gives, in one or several registers.
template <class V, class Make>
inline V made(Make make) {
    return make(0);
}

// Register i of several.
template <class V>
inline V part_of(V v, int) {
    return v;
}
#else
typedef Parts<float, Lanes> Floats;
typedef Parts<int32_t, IntLanes> Ints;
typedef Parts<uint8_t, ByteLanes> Bytes;

template <class V, class Make>
inline V made(Make make) {
    return V::of(make);
}

template <class T, class Register>
inline Register part_of(const Parts<T, Register>& v, int i) {
    return v.part[i];
}

inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return Floats::of([&](int i) { return fma(a.part[i], b.part[i], c.part[i]); });
}

template <int TOP = 255>
inline Ints dot4(const Ints& sums, const Bytes& codes, int32_t x) {
    return Ints::of([&](int i) { return dot4<TOP>(sums.part[i], codes.part[i], x); });
}
#endif

// Register by register: a copy of all at once would go through memory.
template <class V>
inline V load_as(const void* at) {
    return made<V>([&](int i) {
        return bits_at<decltype(part_of(V{}, i))>((const uint8_t*)at + 4 * WIDTH * i);
    });
}

inline Floats load_floats(const float* at) { return load_as<Floats>(at); }

inline void store_floats(float* at, Floats v) {
    for (int i = 0; i < TILE / WIDTH; i++) store(at + WIDTH * i, part_of(v, i));
}

// The first `count` numbers, then zeros.
inline Floats load_part(const float* at, int64_t count) {
    if (count >= TILE) return load_floats(at);
    Floats v = {};
    std::memcpy(&v, at, sizeof(float) * count);
    return v;
}

inline void store_part(float* at, Floats v, int64_t count) {
    std::memcpy(at, &v, count >= TILE ? sizeof v : sizeof(float) * count);
}

inline Floats splat(float value) { return value - Floats{}; }

// Sixteen f16 numbers.
inline Floats load_halves(const uint8_t* at) {
    return made<Floats>([&](int i) { return halves_at(at + 2 * WIDTH * i); });
}

inline void store_halves(uint8_t* at, Floats v) {
    for (int i = 0; i < TILE / WIDTH; i++) halves_to(at + 2 * WIDTH * i, part_of(v, i));
}

// Sixteen bf16 numbers.
inline Floats load_brains(const uint8_t* at) {
    return made<Floats>([&](int i) { return brains_at(at + 2 * WIDTH * i); });
}

// Sixteen small integers as floats.
template <class T>
inline Floats load_small(const uint8_t* at) {
    return made<Floats>([&](int i) { return small_at<T>(at + WIDTH * i); });
}

// Sixteen integers of -128 to 127 as bytes.
inline void store_small(int8_t* at, Ints v) {
    typedef int8_t Small __attribute__((vector_size(WIDTH)));
    for (int i = 0; i < TILE / WIDTH; i++) {
        const Small small = __builtin_convertvector(part_of(v, i), Small);
        std::memcpy(at + WIDTH * i, &small, sizeof small);
    }
}

inline Floats floats_of(Ints v) {
    return made<Floats>([&](int i) { return __builtin_convertvector(part_of(v, i), Lanes); });
}

// a where the mask, a comparison, is true, else b.
inline Floats select(Ints mask, Floats a, Floats b) {
    return made<Floats>([&](int i) { return part_of(mask, i) ? part_of(a, i) : part_of(b, i); });
}

// All sixteen combined, halves with each other until one is left; an order that sums depend on.
#if defined(__AVX512F__)
inline float sum_of(Floats v) { return _mm512_reduce_add_ps(v); }
inline int32_t sum_of(Ints v) { return _mm512_reduce_add_epi32((__m512i)v); }
inline float largest_of(Floats v) { return _mm512_reduce_max_ps(v); }
#else
template <class T, class Register, class Combine>
inline T reduced(Parts<T, Register> v, Combine combine) {
    for (int half = TILE / WIDTH / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) v.part[i] = combine(v.part[i], v.part[i + half]);
    }
    T numbers[WIDTH];
    std::memcpy(numbers, &v.part[0], sizeof numbers);
    for (int half = WIDTH / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) numbers[i] = combine(numbers[i], numbers[i + half]);
    }
    return numbers[0];
}

inline float sum_of(Floats v) {
    return reduced(v, [](auto a, auto b) { return a + b; });
}
inline int32_t sum_of(Ints v) {
    return reduced(v, [](auto a, auto b) { return a + b; });
}
inline float largest_of(Floats v) {
    return reduced(v, [](auto a, auto b) { return b > a ? b : a; });
}
#endif

inline Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }

// e to the x, within 2e-7 of it; 0 below -87, e^88 above 88.
inline Floats exponential(Floats x) {
    const Ints tiny = x < -87.0f;
    x = select(x > 88.0f, splat(88.0f), select(tiny, splat(-87.0f), x));
    const Floats shifted = fma(x, splat(0x1.715476p0f), splat(0x1.8p23f));
    const Floats n = shifted - 0x1.8p23f;
    // ln 2 in two parts, so that the remainder is exact.
    Floats r = fma(n, splat(-0x1.62e4p-1f), x);
    r = fma(n, splat(-0x1.7f7d1cp-20f), r);
    Floats p = splat(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
        p = fma(p, r, splat(c));
    }
    const Ints power = ((Ints)shifted - 0x4b400000 + 127) << 23;
    return select(tiny, Floats{}, p * (Floats)power);
}

}  // namespace puna
