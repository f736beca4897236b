// As many float32 numbers as a register holds, and the few operations on them that C++ lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace puna {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Lanes __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntLanes __attribute__((vector_size(WIDTH * 4)));

inline Lanes load(const float* at) {
    Lanes lanes;
    std::memcpy(&lanes, at, sizeof lanes);
    return lanes;
}

inline void store(float* at, Lanes lanes) { std::memcpy(at, &lanes, sizeof lanes); }

inline Lanes fill(float value) { return value - Lanes{}; }

inline Lanes smaller(Lanes a, Lanes b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX__)
    return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
    return _mm_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

inline Lanes larger(Lanes a, Lanes b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX__)
    return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

inline Lanes clamp(Lanes values, float low, float high) {
    return smaller(larger(values, fill(low)), fill(high));
}

inline Lanes magnitude(Lanes values) { return (Lanes)((IntLanes)values & 0x7fffffff); }

// To the nearest integer, ties to even, of magnitudes below 2**22.
inline Lanes round(Lanes values) { return (values + 0x1.8p23f) - 0x1.8p23f; }

// 1 / scale; 0 where the scale is too small to have an inverse.
inline Lanes inverse(Lanes scale) {
    const auto usable = magnitude(scale) > 1e-30f;
    return usable ? 1.0f / (usable ? scale : fill(1.0f)) : Lanes{};
}

// numerator / denominator; 0 where the denominator is not above 0.
inline Lanes ratio(Lanes numerator, Lanes denominator) {
    const auto usable = denominator > 0.0f;
    return usable ? numerator / (usable ? denominator : fill(1.0f)) : Lanes{};
}

}  // namespace puna
