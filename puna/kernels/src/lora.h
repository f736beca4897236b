// What adapters add to products, each sequence its own: b (a x) (LoRA, arXiv 2106.09685).
#pragma once

#include "activations.h"

namespace puna {

// Two matrices of f32: a (rank, columns), and b (rows, rank), which the scale is in already.
// No tiles where the adapter leaves the matrix as it is.
struct LowRank {
    Matrix a, b;
};

// The order of an adapter's pairs: those of each layer, then the output's. Matrices that share
// their input follow each other.
enum { WQ, WK, WV, WO, W1, W3, W2, PAIRS_PER_LAYER };

inline int64_t pairs_of(const Work& w, const Layer& layer) {
    return (&layer - w.m.layers) * PAIRS_PER_LAYER;
}

// The additions to the products of `count` matrices that share their input, from pair `first` on.
// A row's are computed from its floats alone, in the order of any product: so its bits depend on
// nothing else in the batch, and those of a row without an adapter are not touched.
class Additions {
   public:
    // Computes a x; to be made by all threads. Row r of x is row `chosen[r]` of the batch.
    Additions(const Work& w, int thread, int64_t first, int count, const Rows& x,
              const int32_t* chosen = nullptr)
        : w_(w), first_(first), chosen_(chosen) {
        if (w.s.adapters == nullptr) return;
        const Share own(int64_t(count) * x.count, thread, w.s.num_threads);
        for (int64_t item = own.begin, end; item < own.end; item = end) {
            const int i = int(item / x.count), row = int(item % x.count);
            const LowRank* pair = pair_of(i, row);
            for (end = item + 1; end < own.end && end % x.count != 0; end++) {
                if (pair_of(i, int(end % x.count)) != pair) break;
            }
            if (pair == nullptr) continue;
            const Rows same{x.floats + row * x.stride, nullptr, x.stride, 0, int(end - item)};
            multiply(pair->a, 0, pair->a.num_tiles(), same, [&](int r, int64_t at, Floats values) {
                store_floats(low(i, row + r) + at, values);
            });
        }
        w.pool->barrier();
    }

    // The products of 16 outputs, from `at` on, of matrix i and a row; with what is added to them.
    Floats operator()(int i, int row, int64_t at, Floats values) const {
        const LowRank* pair = w_.s.adapters == nullptr ? nullptr : pair_of(i, row);
        if (pair == nullptr) return values;
        Floats more;
        multiply_tile<1>(pair->b, at / TILE, {low(i, row), nullptr, 0, 0, 1}, 0, &more);
        return values + more;
    }

   private:
    const LowRank* pair_of(int i, int row) const {
        const LowRank* pairs = w_.s.adapters[w_.s.sequences[chosen_ ? chosen_[row] : row]];
        return pairs && pairs[first_ + i].a.tiles ? pairs + first_ + i : nullptr;
    }

    float* low(int i, int row) const {
        return w_.low + (int64_t(row) * LOW_RANKS + i) * padded(w_.s.rank, TILE);
    }

    const Work& w_;
    const int64_t first_;
    const int32_t* chosen_;
};

}  // namespace puna
