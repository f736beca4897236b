// Rows times a matrix of tiles. The order of a row's sums depends on nothing but its length.
#pragma once

#include "panel.h"

namespace puna {

// A matrix (rows, columns) in tiles; the last tile is filled up with zeros.
struct Matrix {
    const uint8_t* tiles;
    int32_t kind, rows, columns, padding;

    int64_t num_tiles() const { return (rows + TILE - 1) / TILE; }
};

// The same rows as floats (R, stride) and as codes (R, groups); of length a matrix's columns.
// `scratch` has panel_bytes(count), of the thread alone.
struct Rows {
    const float* floats;
    const Group* groups;
    int64_t stride, num_groups;
    int count;
    uint8_t* scratch;
};

// Rows from which on it pays to unpack tiles for all of them. Only with AVX-512 are there registers
// enough for that to be faster.
#if defined(__AVX512F__)
constexpr int PANEL_FROM = 64;
#else
constexpr int PANEL_FROM = 1 << 30;
#endif

template <class Load, int N>
inline void multiply_floats(const uint8_t* tile, int width, int columns, const Rows& x, int first,
                            Floats* out, Load load) {
    // Four sums of every fourth column each hide the latency of an addition.
    Floats sums[N][4] = {};
    int k = 0;
    for (; k + 4 <= columns; k += 4) {
        __builtin_prefetch(tile + 2048);
        for (int i = 0; i < 4; i++, tile += width) {
            const Floats weights = load(tile);
            for (int n = 0; n < N; n++) {
                const float value = x.floats[(first + n) * x.stride + k + i];
                sums[n][i] = fma(weights, splat(value), sums[n][i]);
            }
        }
    }
    for (int i = 0; k < columns; k++, i++, tile += width) {
        const Floats weights = load(tile);
        for (int n = 0; n < N; n++) {
            const float value = x.floats[(first + n) * x.stride + k];
            sums[n][i] = fma(weights, splat(value), sums[n][i]);
        }
    }
    for (int n = 0; n < N; n++) out[n] = (sums[n][0] + sums[n][1]) + (sums[n][2] + sums[n][3]);
}

template <class K, int N>
inline void multiply_codes(const uint8_t* tile, int columns, const Rows& x, int first,
                           Floats* out) {
    constexpr int SUBS = GROUP / K::SUB, PER_SUB = 8 / SUBS, TOP = (16 << K::HIGH) - 1;
    Floats sums[N] = {};
    for (int block = 0; block < columns / K::BLOCK; block++, tile += BLOCK_BYTES<K>) {
        const K head(tile);
        if constexpr (K::BLOCK > GROUP) prefetch<K::HEAD>(tile + 4096);
        for (int g = 0; g < K::BLOCK / GROUP; g++) {
            const uint8_t* at = tile + K::HEAD + g * GROUP_BYTES<K::HIGH>;
            // With many rows the next lines are too far ahead for the processor to see by itself.
            prefetch<GROUP_BYTES<K::HIGH>>(at + 4096);
            Bytes codes[8];
            load_codes<K::HIGH>(at, codes);
#pragma GCC unroll 2  // else the codes are kept in memory, to be found by s
            for (int s = 0; s < SUBS; s++) {
                const Floats scale = head.scale(tile, g * SUBS + s);
                const Floats minimum = head.minimum(tile, g * SUBS + s);
                for (int n = 0; n < N; n++) {
                    const Group& in =
                        x.groups[(first + n) * x.num_groups + block * (K::BLOCK / GROUP) + g];
                    const int32_t total = in.sum(SUBS, s);
                    Ints products = -K::ZERO * total - Ints{};
                    for (int j = 0; j < PER_SUB; j++) {
                        const int k = s * PER_SUB + j;
                        products = dot4<TOP>(products, codes[k], in.four(k));
                    }
                    const Floats values = floats_of(products);
                    sums[n] = fma(values, scale * in.scale, sums[n]);
                    if constexpr (K::MINIMUM) {
                        const float offset = -in.scale * float(total);
                        sums[n] = fma(minimum, splat(offset), sums[n]);
                    }
                }
            }
        }
    }
    for (int n = 0; n < N; n++) out[n] = sums[n];
}

// Not inlined: it is large, and called once for hundreds of thousands of products.
template <int N>
__attribute__((noinline)) void multiply_tile(const Matrix& m, int64_t tile, const Rows& x, int first,
                                             Floats* out) {
    switch (m.kind) {
        case F32: {
            const uint8_t* at = m.tiles + tile * m.columns * 64;
            const auto load = [](const uint8_t* w) { return load_as<Floats>(w); };
            return multiply_floats<decltype(load), N>(at, 64, m.columns, x, first, out, load);
        }
        case F16: {
            const uint8_t* at = m.tiles + tile * m.columns * 32;
            const auto load = [](const uint8_t* w) { return load_halves(w); };
            return multiply_floats<decltype(load), N>(at, 32, m.columns, x, first, out, load);
        }
        case BF16: {
            const uint8_t* at = m.tiles + tile * m.columns * 32;
            const auto load = [](const uint8_t* w) { return load_brains(w); };
            return multiply_floats<decltype(load), N>(at, 32, m.columns, x, first, out, load);
        }
        default:
            with_kind(m.kind, [&]<class K>() {
                const int64_t size = int64_t(m.columns) / K::BLOCK * BLOCK_BYTES<K>;
                multiply_codes<K, N>(m.tiles + tile * size, m.columns, x, first, out);
            });
    }
}

// Two tiles, or the last one, for all rows: sums (count, SIDES) in the rows' scratch.
__attribute__((noinline)) inline Floats* multiply_pair(const Matrix& m, int64_t tile, int sides,
                                                       const Rows& x) {
    auto* sums = reinterpret_cast<Floats*>(x.scratch + PANEL_GROUPS * MOST_GROUP_BYTES);
    with_kind(m.kind, [&]<class K>() {
        const int64_t size = int64_t(m.columns) / K::BLOCK * BLOCK_BYTES<K>;
        multiply_tiles<K>(m.tiles + tile * size, sides, m.columns, x.groups, x.num_groups, x.count,
                          x.scratch, sums);
    });
    return sums;
}

// finish(row, first output, products of 16 outputs) for all rows and the tiles from begin to end.
template <class Finish>
inline void multiply(const Matrix& m, int64_t begin, int64_t end, const Rows& x, Finish finish) {
    if (m.kind > BF16 && x.count >= PANEL_FROM) {
        for (int64_t tile = begin; tile < end; tile += SIDES) {
            const int sides = int(end - tile < SIDES ? end - tile : SIDES);
            const Floats* sums = multiply_pair(m, tile, sides, x);
            for (int row = 0; row < x.count; row++) {
                for (int side = 0; side < sides; side++) {
                    finish(row, (tile + side) * TILE, sums[row * SIDES + side]);
                }
            }
        }
        return;
    }
    Floats out[8];
    for (int64_t tile = begin; tile < end; tile++) {
        int row = 0;
        const auto take = [&]<int N>() {
            for (; row + N <= x.count; row += N) {
                multiply_tile<N>(m, tile, x, row, out);
                for (int n = 0; n < N; n++) finish(row + n, tile * TILE, out[n]);
            }
        };
        if (m.kind > BF16) take.template operator()<8>();
        take.template operator()<4>();
        take.template operator()<1>();
    }
}

}  // namespace puna
