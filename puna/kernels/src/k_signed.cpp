// Q3_K and Q6_K: x ~ d * scale * (code - zero). `puna/quantize/k_search.py` says what is searched;
// here are the same float32 operations in the same order, a block's sixteen sub-blocks at a time.

#include <cmath>

#include "abi.h"
#include "half.h"
#include "k_group.h"

namespace puna {
namespace {

constexpr int E = 16;

struct Integers {
    alignas(64) float scale[LANES], error[LANES];

    double total_error() const {
        double total = 0;
        for (const float lane : error) total += lane;
        return total;
    }
};

template <int ZERO, int MAX_SCALE, bool WEIGHTED>
struct Search {
    const Group<E, WEIGHTED>& group;
    float d = 0;

    static Lanes code(Lanes x, Lanes by) { return round(clamp(x * by, -ZERO, ZERO - 1)); }

    // Sums of w * code * code and w * x * code.
    void sums(Lanes scale, int at, Lanes& cc, Lanes& xc) const {
        const Lanes by = inverse(scale);
        cc = xc = Lanes{};
        for (int e = 0; e < E; e++) {
            const Lanes x = group.values(e, at);
            const Lanes c = code(x, by);
            const Lanes wc = group.weighted(c, e, at);
            cc += wc * c;
            xc += wc * x;
        }
    }

    template <int N>
    void start(const double (&levels)[N], float* found) const {
        for (int at = 0; at < LANES; at += WIDTH) {
            Lanes largest{};
            for (int e = 0; e < E; e++) largest = larger(magnitude(group.values(e, at)), largest);
            Lanes best{}, best_scale{};
            for (const double sign : {1.0, -1.0}) {
                for (const double level : levels) {
                    Lanes cc, xc;
                    sums(largest * float(sign / level), at, cc, xc);
                    const Lanes scale = ratio(xc, cc);
                    const Lanes gain = scale * xc;
                    const auto better = gain > best;
                    best = better ? gain : best;
                    best_scale = better ? scale : best_scale;
                }
            }
            store(found + at, best_scale);
        }
    }

    // The best neighbours of `from`, with their errors.
    void try_neighbours(const float* from, Integers& found) const {
        for (int at = 0; at < LANES; at += WIDTH) {
            const Lanes old_scale = load(from + at);
            Lanes error = fill(HUGE_VALF), best_scale = old_scale;
            for (const float step : {0.0f, -1.0f, 1.0f}) {
                const Lanes new_scale = clamp(old_scale + step, -MAX_SCALE, MAX_SCALE - 1);
                const Lanes scale = d * new_scale;
                const Lanes by = inverse(scale);
                Lanes new_error{};
                for (int e = 0; e < E; e++) {
                    const Lanes x = group.values(e, at);
                    const Lanes off = x - scale * code(x, by);
                    new_error += group.weighted(off * off, e, at);
                }
                const auto better = new_error < error;
                error = better ? new_error : error;
                best_scale = better ? new_scale : best_scale;
            }
            store(found.scale + at, best_scale);
            store(found.error + at, error);
        }
    }

    // Least squares of d for the codes that `scales` give now.
    float fit(const float* scales) const {
        alignas(64) float cc[LANES], xc[LANES];
        for (int at = 0; at < LANES; at += WIDTH) {
            Lanes lane_cc, lane_xc;
            sums(d * load(scales + at), at, lane_cc, lane_xc);
            store(cc + at, lane_cc);
            store(xc + at, lane_xc);
        }
        double aa = 0, xa = 0;
        for (int lane = 0; lane < LANES; lane++) {
            const double a = scales[lane];
            xa += a * xc[lane];
            aa += a * a * cc[lane];
        }
        const float fit = float(aa > 0 ? xa / aa : 0);
        return fit != 0 && std::fabs(fit) <= HALF_MAX ? from_half(to_half(fit)) : d;
    }

    template <int N>
    Integers run(const double (&levels)[N]) {
        alignas(64) float scales[LANES];
        start(levels, scales);
        float largest = scales[0];
        for (const float scale : scales) {
            if (std::fabs(scale) > std::fabs(largest)) largest = scale;
        }
        d = up_to_half(std::fabs(largest) / MAX_SCALE);
        if (largest > 0) d = -d;
        for (int at = 0; at < LANES; at += WIDTH) {
            const Lanes nearest = round(load(scales + at) * inverse(fill(d)));
            store(scales + at, clamp(nearest, -MAX_SCALE, MAX_SCALE - 1));
        }
        Integers first, second;
        try_neighbours(scales, first);
        const float old_d = d;
        d = fit(first.scale);
        try_neighbours(first.scale, second);
        if (second.total_error() < first.total_error()) return second;
        d = old_d;
        return first;
    }

    void store_codes(const Integers& integers, uint8_t* codes) const {
        for (int at = 0; at < LANES; at += WIDTH) {
            const Lanes by = inverse(d * load(integers.scale + at));
            for (int e = 0; e < E; e++) {
                const Lanes c = code(group.values(e, at), by) + float(ZERO);
                for (int i = 0; i < WIDTH; i++) codes[(at + i) * E + e] = uint8_t(c[i]);
            }
        }
    }
};

// Quantizes rows to blocks that `store(d, scales, codes, out)` writes.
template <int ZERO, int MAX_SCALE, int BLOCK_BYTES, int N, typename Store>
void quantize(const float* x, int64_t num_rows, int64_t length, const float* importance,
              uint8_t* out, const double (&levels)[N], Store store_block) {
    const auto quantize_group = [&](const auto& group, int, uint8_t* at) {
        using Blocks = std::remove_cv_t<std::remove_reference_t<decltype(group)>>;
        Search<ZERO, MAX_SCALE, Blocks::IS_WEIGHTED> search{group};
        const Integers integers = search.run(levels);
        int8_t scales[LANES];
        uint8_t codes[BLOCK];
        for (int s = 0; s < LANES; s++) scales[s] = int8_t(integers.scale[s]);
        search.store_codes(integers, codes);
        store_block(search.d, scales, codes, at);
    };
    for_groups<E, BLOCK_BYTES>(x, importance, num_rows, length, out, quantize_group);
}

}  // namespace

PUNA_QUANTIZE(q3_k) {
    const double levels[] = {3.2, 3.6, 4, 4.4, 4.8, 5.4, 6, 7};
    quantize<4, 32, 110>(x, num_rows, length, importance, out, levels,
                         [](float d, const int8_t* scales, const uint8_t* codes, uint8_t* at) {
                             uint8_t positive[LANES];
                             for (int i = 0; i < LANES; i++) positive[i] = uint8_t(scales[i] + 32);
                             pack<1, 32>(codes, BLOCK, 2, at);
                             pack<2, 32>(codes, BLOCK, 0, at + 32);
                             pack<4, 8>(positive, LANES, 0, at + 96);
                             pack<2, 4>(positive, LANES, 4, at + 104);
                             store_half(at + 108, d);
                         });
}

PUNA_QUANTIZE(q6_k) {
    const double levels[] = {28, 28.5, 29, 29.5, 30, 30.5, 31, 31.5, 32, 32.5, 33, 33.5, 34};
    quantize<32, 128, 210>(x, num_rows, length, importance, out, levels,
                           [](float d, const int8_t* scales, const uint8_t* codes, uint8_t* at) {
                               pack<4, 64>(codes, BLOCK, 0, at);
                               pack<2, 32>(codes, BLOCK, 4, at + 128);
                               std::memcpy(at + 192, scales, LANES);
                               store_half(at + 208, d);
                           });
}

}  // namespace puna
