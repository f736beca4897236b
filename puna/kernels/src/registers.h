// What the processors do with one register of a tile's numbers: WIDTH floats, WIDTH integers, or
// four bytes for each of them.
#pragma once

#include <type_traits>

#include "half.h"
#include "lanes.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace puna {

typedef uint8_t ByteLanes __attribute__((vector_size(WIDTH * 4)));

template <class V>
inline V bits_at(const void* at) {
    V v;
    std::memcpy(&v, at, sizeof v);
    return v;
}

// a * b + c, rounded once where the processor can.
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

// f16 numbers.
inline Lanes halves_at(const uint8_t* at) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(bits_at<__m256i>(at));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(bits_at<__m128i>(at));
#elif defined(__aarch64__)
    return vcvt_f32_f16(bits_at<float16x4_t>(at));
#else
    Lanes out;
    for (int i = 0; i < WIDTH; i++) out[i] = load_half(at + 2 * i);
    return out;
#endif
}

// To f16 numbers, to nearest, ties to even.
inline void halves_to(uint8_t* at, Lanes v) {
#if defined(__AVX512F__)
    const auto halves = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    const auto halves = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    const auto halves = vcvt_f16_f32(v);
#else
    uint16_t halves[WIDTH];
    for (int i = 0; i < WIDTH; i++) halves[i] = to_half(v[i]);
#endif
    std::memcpy(at, &halves, sizeof halves);
}

// bf16 numbers.
inline Lanes brains_at(const uint8_t* at) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits_at<__m256i>(at)), 16);
#elif defined(__AVX2__)
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits_at<__m128i>(at)), 16);
#elif defined(__aarch64__)
    return (Lanes)vshll_n_u16(bits_at<uint16x4_t>(at), 16);
#else
    IntLanes out;
    for (int i = 0; i < WIDTH; i++) out[i] = int32_t(uint32_t(load_u16(at + 2 * i)) << 16);
    return (Lanes)out;
#endif
}

// Integers of one byte as floats.
template <class T>
inline Lanes small_at(const uint8_t* at) {
    // By hand: GCC 12 converts vectors of bytes to floats lane by lane.
#if defined(__AVX512F__)
    const __m128i small = bits_at<__m128i>(at);
    return _mm512_cvtepi32_ps(std::is_signed_v<T> ? _mm512_cvtepi8_epi32(small)
                                                  : _mm512_cvtepu8_epi32(small));
#elif defined(__AVX2__)
    const __m128i small = _mm_cvtsi64_si128(bits_at<int64_t>(at));
    return _mm256_cvtepi32_ps(std::is_signed_v<T> ? _mm256_cvtepi8_epi32(small)
                                                  : _mm256_cvtepu8_epi32(small));
#elif defined(__aarch64__)
    const uint32_t small = bits_at<uint32_t>(at);
    if constexpr (std::is_signed_v<T>) {
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(small)))));
    } else {
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(small)))));
    }
#else
    typedef T Small __attribute__((vector_size(WIDTH)));
    return __builtin_convertvector(bits_at<Small>(at), Lanes);
#endif
}

// sums + the products of four neighbours each: unsigned codes (WIDTH x 4), at most TOP, by the
// signed bytes of x. Below 128 two products fit 16 bits, and codes are signed bytes too.
template <int TOP = 255>
inline IntLanes dot4(IntLanes sums, ByteLanes codes, int32_t x) {
#if defined(__AVX512VNNI__)
    return (IntLanes)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__)
    const __m512i u = (__m512i)codes, s = _mm512_set1_epi32(x);
    if constexpr (TOP < 128) {
        const __m512i pairs = _mm512_maddubs_epi16(u, s);
        return sums + (IntLanes)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    }
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
    return sums + (IntLanes)_mm512_add_epi32(even, odd);
#elif defined(__AVX2__)
    const __m256i u = (__m256i)codes, s = _mm256_set1_epi32(x);
    if constexpr (TOP < 128) {
        const __m256i pairs = _mm256_maddubs_epi16(u, s);
        return sums + (IntLanes)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return sums + (IntLanes)_mm256_add_epi32(even, odd);
#elif defined(__SSE2__)
    const __m128i u = (__m128i)codes, s = _mm_set1_epi32(x);
    const __m128i even = _mm_madd_epi16(_mm_and_si128(u, _mm_set1_epi16(255)),
                                        _mm_srai_epi16(_mm_slli_epi16(s, 8), 8));
    const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(u, 8), _mm_srai_epi16(s, 8));
    return sums + (IntLanes)_mm_add_epi32(even, odd);
#elif defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t s = (int8x16_t)vdupq_n_s32(x);
    if constexpr (TOP < 128) return vdotq_s32(sums, (int8x16_t)codes, s);
    // Codes less 128, and 128 times the sum of x.
    const int32x4_t rest = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(-128), s);
    return vdotq_s32(sums - rest, (int8x16_t)(codes ^ 128), s);
#elif defined(__aarch64__)
    if constexpr (TOP < 128) {
        const int8x16_t u = (int8x16_t)codes, s = (int8x16_t)vdupq_n_s32(x);
        const int16x8_t low = vmull_s8(vget_low_s8(u), vget_low_s8(s));
        const int16x8_t high = vmull_high_s8(u, s);
        return vpadalq_s16(sums, vpaddq_s16(low, high));
    }
    const int16x8_t low = (int16x8_t)vmovl_u8(vget_low_u8(codes));
    const int16x8_t high = (int16x8_t)vmovl_high_u8(codes);
    const int16x4_t s = vget_low_s16(vmovl_s8(vcreate_s8(uint32_t(x))));
    const int32x4_t a = vmull_s16(vget_low_s16(low), s), b = vmull_s16(vget_high_s16(low), s);
    const int32x4_t c = vmull_s16(vget_low_s16(high), s), d = vmull_s16(vget_high_s16(high), s);
    return sums + vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
#else
    int8_t s[4];
    std::memcpy(s, &x, 4);
    for (int i = 0; i < WIDTH; i++) {
        for (int j = 0; j < 4; j++) sums[i] += int32_t(codes[4 * i + j]) * s[j];
    }
    return sums;
#endif
}

}  // namespace puna
