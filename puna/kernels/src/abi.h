// What Python calls: plain C functions, found by name, that touch nothing but their arguments.
#pragma once

#include <cstdint>

#define PUNA_EXPORT extern "C" __attribute__((visibility("default")))

// Stored blocks to float32: `out` holds `num_blocks` times the block's weights.
#define PUNA_DEQUANTIZE(name) \
    PUNA_EXPORT void puna_dequantize_##name(const uint8_t* in, int64_t num_blocks, float* out)

// Rows of `length` weights, a multiple of the block's, to stored blocks. `importance` is null or
// what each column counts.
#define PUNA_QUANTIZE(name)                                                             \
    PUNA_EXPORT void puna_quantize_##name(const float* x, int64_t num_rows, int64_t length, \
                                          const float* importance, uint8_t* out)
