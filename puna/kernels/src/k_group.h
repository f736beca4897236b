// Sixteen sub-blocks side by side, the lanes that the search for scales works on.
#pragma once

#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "k_layout.h"
#include "lanes.h"

namespace puna {

constexpr int LANES = 16;

// E weights of each sub-block, lane by lane, and how much each counts. Lanes of a last group that
// is not full are 0.
template <int E, bool WEIGHTED>
struct Group {
    static constexpr int SUBS = BLOCK / E;       // sub-blocks of a block
    static constexpr int BLOCKS = LANES / SUBS;  // blocks of a group
    static constexpr bool IS_WEIGHTED = WEIGHTED;

    alignas(64) float x[E][LANES];
    alignas(64) float w[WEIGHTED ? E : 1][LANES];

    // `blocks` blocks from the one numbered `first` on; a row has `length` weights.
    void fill(const float* rows, const float* importance, int64_t length, int64_t first,
              int blocks) {
        for (int lane = 0; lane < LANES; lane++) {
            const bool used = lane / SUBS < blocks;
            const int64_t at = (first + lane / SUBS) * BLOCK + lane % SUBS * E;
            for (int e = 0; e < E; e++) x[e][lane] = used ? rows[at + e] : 0;
            if constexpr (WEIGHTED) {
                for (int e = 0; e < E; e++) w[e][lane] = used ? importance[at % length + e] : 1;
            }
        }
    }

    Lanes values(int e, int at) const { return load(&x[e][at]); }

    // `value` times what element `e` counts.
    Lanes weighted(Lanes value, int e, int at) const {
        if constexpr (WEIGHTED) {
            return load(&w[e][at]) * value;
        } else {
            (void)e, (void)at;
            return value;
        }
    }
};

template <int E, int BLOCK_BYTES, bool WEIGHTED, typename Quantize>
void for_groups_of(const float* x, const float* importance, int64_t num_rows, int64_t length,
                   uint8_t* out, Quantize quantize) {
    using Blocks = Group<E, WEIGHTED>;
    Blocks group;
    const int64_t num_blocks = num_rows * length / BLOCK;
    for (int64_t first = 0; first < num_blocks; first += Blocks::BLOCKS) {
        const int64_t left = num_blocks - first;
        const int blocks = left < Blocks::BLOCKS ? int(left) : Blocks::BLOCKS;
        group.fill(x, importance, length, first, blocks);
        quantize(group, blocks, out + first * BLOCK_BYTES);
    }
}

// Calls `quantize(group, blocks, out)` for all blocks of the rows, some at a time.
template <int E, int BLOCK_BYTES, typename Quantize>
void for_groups(const float* x, const float* importance, int64_t num_rows, int64_t length,
                uint8_t* out, Quantize quantize) {
    if (importance) {
        for_groups_of<E, BLOCK_BYTES, true>(x, importance, num_rows, length, out, quantize);
    } else {
        for_groups_of<E, BLOCK_BYTES, false>(x, importance, num_rows, length, out, quantize);
    }
}

}  // namespace puna
