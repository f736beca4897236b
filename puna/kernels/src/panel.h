// Many rows times a matrix of tiles: two tiles are unpacked to bytes, which all rows read.
#pragma once

#include "tiles.h"

namespace puna {

constexpr int SIDES = 2;           // tiles of a panel, which share each load of an activation
constexpr int PANEL_GROUPS = 64;   // of a run of columns: what a panel holds stays in the L2 cache
constexpr int MOST_GROUP_BYTES = 1536;

// What a group of 32 columns of the tiles becomes; SUBS runs of it have a scale of their own.
template <int SUBS, bool MINIMUM>
struct PanelGroup {
    Bytes codes[8][SIDES];
    Floats scales[SUBS][SIDES];
    Floats minimums[MINIMUM ? SUBS : 0][SIDES];
};
static_assert(sizeof(PanelGroup<2, true>) == MOST_GROUP_BYTES);

template <class K>
using PanelGroupOf = PanelGroup<GROUP / K::SUB, K::MINIMUM>;

// Bytes that `multiply_tiles` needs beside its arguments.
inline int64_t panel_bytes(int64_t num_rows) {
    return PANEL_GROUPS * MOST_GROUP_BYTES + num_rows * SIDES * int64_t(sizeof(Floats));
}

template <class K>
inline void unpack_tile(const uint8_t* tile, int side, int num_groups, PanelGroupOf<K>* out) {
    constexpr int SUBS = GROUP / K::SUB, GROUPS = K::BLOCK / GROUP;
    for (int block = 0; block < num_groups / GROUPS; block++, tile += BLOCK_BYTES<K>) {
        const K head(tile);
        for (int g = 0; g < GROUPS; g++, out++) {
            const uint8_t* at = tile + K::HEAD + g * GROUP_BYTES<K::HIGH>;
            prefetch<GROUP_BYTES<K::HIGH>>(at + 4096);
            Bytes codes[8];
            load_codes<K::HIGH>(at, codes);
            for (int j = 0; j < 8; j++) out->codes[j][side] = codes[j];
            for (int s = 0; s < SUBS; s++) {
                out->scales[s][side] = head.scale(tile, g * SUBS + s);
                if constexpr (K::MINIMUM) {
                    out->minimums[s][side] = head.minimum(tile, g * SUBS + s);
                }
            }
        }
    }
}

// Adds the products of N rows' groups, `stride` apart, to `sums` (N, SIDES).
template <int SUBS, bool MINIMUM, int N>
__attribute__((noinline)) void multiply_panel(const PanelGroup<SUBS, MINIMUM>* panel,
                                              int num_groups, int zero, const Group* x,
                                              int64_t stride, Floats* sums) {
    constexpr int PER_SUB = 8 / SUBS;
    Floats totals[N][SIDES];
    std::memcpy(totals, sums, sizeof totals);
    for (int g = 0; g < num_groups; g++, panel++, x++) {
        for (int s = 0; s < SUBS; s++) {
            Ints products[N][SIDES];
            for (int n = 0; n < N; n++) {
                const int32_t sum = x[n * stride].sum(SUBS, s);
                for (Ints& product : products[n]) product = -zero * sum - Ints{};
            }
            for (int j = s * PER_SUB; j < (s + 1) * PER_SUB; j++) {
                for (int n = 0; n < N; n++) {
                    const int32_t four = x[n * stride].four(j);
                    for (int side = 0; side < SIDES; side++) {
                        products[n][side] = dot4(products[n][side], panel->codes[j][side], four);
                    }
                }
            }
            for (int n = 0; n < N; n++) {
                const Group& in = x[n * stride];
                const Floats offset = splat(-in.scale * float(in.sum(SUBS, s)));
                for (int side = 0; side < SIDES; side++) {
                    Floats& total = totals[n][side];
                    const Floats values = floats_of(products[n][side]);
                    total = fma(values, panel->scales[s][side] * in.scale, total);
                    if constexpr (MINIMUM) total = fma(panel->minimums[s][side], offset, total);
                }
            }
        }
    }
    std::memcpy(sums, totals, sizeof totals);
}

// The products of `count` rows, `stride` groups apart, with up to SIDES tiles of `columns` columns
// that lie one after another: `sums` (count, SIDES). `panel` has room for PANEL_GROUPS groups.
template <class K>
void multiply_tiles(const uint8_t* tiles, int sides, int columns, const Group* x, int64_t stride,
                    int count, uint8_t* panel, Floats* sums) {
    constexpr int SUBS = GROUP / K::SUB, GROUPS = K::BLOCK / GROUP;
    const int64_t tile_bytes = int64_t(columns) / K::BLOCK * BLOCK_BYTES<K>;
    auto* groups = reinterpret_cast<PanelGroupOf<K>*>(panel);
    std::memset(sums, 0, sizeof(Floats) * SIDES * size_t(count));
    for (int begin = 0; begin < columns / GROUP; begin += PANEL_GROUPS) {
        const int left = columns / GROUP - begin, here = left < PANEL_GROUPS ? left : PANEL_GROUPS;
        for (int side = 0; side < sides; side++) {
            const uint8_t* tile = tiles + side * tile_bytes + begin / GROUPS * BLOCK_BYTES<K>;
            unpack_tile<K>(tile, side, here, groups);
        }
        int row = 0;
        const auto take = [&]<int N>() {
            for (; row + N <= count; row += N) {
                multiply_panel<SUBS, K::MINIMUM, N>(groups, here, K::ZERO,
                                                    x + row * stride + begin, stride,
                                                    sums + row * SIDES);
            }
        };
        take.template operator()<6>();  // 24 registers of sums, of 32
        take.template operator()<2>();
        take.template operator()<1>();
    }
}

}  // namespace puna
