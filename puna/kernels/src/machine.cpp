// What the processor can do, and a check of weights that all types share.

#include "abi.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

// Which sources this library was made from.
PUNA_EXPORT const char* puna_digest() { return PUNA_DIGEST; }

// The best instruction set of those that libraries are built for. x86: 0 any, 1 AVX2, 2 AVX-512,
// 3 its dot products of bytes. aarch64: 0 any (NEON), 1 its dot products of bytes.
PUNA_EXPORT int puna_level() {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool vnni = __builtin_cpu_supports("avx512vnni");
    return avx2 && avx512 ? 2 + vnni : avx2 ? 1 : 0;
#elif defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return 0;
#endif
}

// The bits of the largest magnitude, which sort as the numbers do, NaN above infinity.
PUNA_EXPORT uint32_t puna_largest(const uint32_t* x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = x[i] & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}
