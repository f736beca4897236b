// Sixteen float32 or int32 numbers, the width of a tile, on any processor.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "half.h"

namespace puna {

constexpr int TILE = 16;  // rows of a matrix, or positions of a page, that are computed together

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));

template <class V, class T>
inline V load_as(const T* at) {
    V v;
    std::memcpy(&v, at, sizeof v);
    return v;
}

inline Floats load_floats(const float* at) { return load_as<Floats>(at); }

inline void store_floats(float* at, Floats v) { std::memcpy(at, &v, sizeof v); }

inline Floats splat(float value) { return value - Floats{}; }

// a * b + c, rounded once where the processor can.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    __m256 x[2], y[2], z[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    std::memcpy(z, &c, 64);
    for (int i = 0; i < 2; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
    std::memcpy(&c, z, 64);
    return c;
#else
    return a * b + c;
#endif
}

// Sixteen f16 numbers.
inline Floats load_halves(const uint8_t* at) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at));
#else
    Floats out;
    for (int i = 0; i < TILE; i++) out[i] = load_half(at + 2 * i);
    return out;
#endif
}

// Sixteen bf16 numbers.
inline Floats load_brains(const uint8_t* at) {
#if defined(__AVX512F__)
    const __m256i raw = _mm256_loadu_si256((const __m256i*)at);
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
#else
    Ints out;
    for (int i = 0; i < TILE; i++) out[i] = int32_t(uint32_t(load_u16(at + 2 * i)) << 16);
    return (Floats)out;
#endif
}

// Sixteen small integers as floats.
template <class T>
inline Floats load_small(const uint8_t* at) {
#if defined(__AVX512F__)
    // Widened by hand: a conversion of vectors from bytes to floats is compiled lane by lane.
    const __m128i raw = _mm_loadu_si128((const __m128i*)at);
    constexpr bool is_signed = T(-1) < T(0);
    const __m512i wide = is_signed ? _mm512_cvtepi8_epi32(raw) : _mm512_cvtepu8_epi32(raw);
    return (Floats)_mm512_cvtepi32_ps(wide);
#else
    typedef T Small __attribute__((vector_size(16)));
    return __builtin_convertvector(load_as<Small>(at), Floats);
#endif
}

// sums + the products of four neighbours each: unsigned codes (16 x 4) by the signed bytes of x.
inline Ints dot4(Ints sums, Bytes codes, int32_t x) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__)
    const __m512i u = (__m512i)codes, s = _mm512_set1_epi32(x);
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
    return sums + (Ints)_mm512_add_epi32(even, odd);
#elif defined(__AVX2__)
    const __m256i s = _mm256_set1_epi32(x), low = _mm256_set1_epi16(255);
    const __m256i s_even = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8);
    const __m256i s_odd = _mm256_srai_epi16(s, 8);
    __m256i u[2], total[2];
    std::memcpy(u, &codes, 64);
    std::memcpy(total, &sums, 64);
    for (int i = 0; i < 2; i++) {
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u[i], low), s_even);
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u[i], 8), s_odd);
        total[i] = _mm256_add_epi32(total[i], _mm256_add_epi32(even, odd));
    }
    std::memcpy(&sums, total, 64);
    return sums;
#else
    uint8_t u[64];
    int8_t s[4];
    std::memcpy(u, &codes, 64);
    std::memcpy(s, &x, 4);
    for (int i = 0; i < TILE; i++) {
        for (int j = 0; j < 4; j++) sums[i] += int32_t(u[4 * i + j]) * s[j];
    }
    return sums;
#endif
}

inline float sum_of(Floats v) {
    for (int half = TILE / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    }
    return v[0];
}

inline float largest_of(Floats v) {
    float largest = v[0];
    for (int i = 1; i < TILE; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// e to the x, within 2e-7 of it; 0 below -87, e^88 above 88.
inline Floats exponential(Floats x) {
    const Ints tiny = x < -87.0f;
    x = x > 88.0f ? splat(88.0f) : tiny ? splat(-87.0f) : x;
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
    return tiny ? Floats{} : p * (Floats)power;
}

}  // namespace puna
