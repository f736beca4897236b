// Q2_K, Q4_K and Q5_K: x ~ d * scale * code - dmin * minimum. `puna/quantize/k_search.py` says what
// is searched; here are the same float32 operations in the same order, sixteen sub-blocks at a time.

#include <cmath>

#include "abi.h"
#include "half.h"
#include "k_group.h"

namespace puna {
namespace {

struct Sums {
    Lanes c, cc, xc;  // of w * code, w * code * code, w * x * code
};

struct Integers {
    alignas(64) float scale[LANES], minimum[LANES], error[LANES];
};

// What `search` finds for the blocks of a group.
struct Found {
    float d[LANES], dmin[LANES];
    Integers integers;
    uint8_t codes[LANES / 8][BLOCK];
};

template <int E, int TOP, int MAX_SCALE, bool WEIGHTED>
struct Search {
    using Blocks = Group<E, WEIGHTED>;

    const Blocks& group;
    alignas(64) float d[LANES], dmin[LANES];  // of each lane's block
    alignas(64) float sum_w[LANES], sum_wx[LANES];

    explicit Search(const Blocks& blocks) : group(blocks) {
        for (int at = 0; at < LANES; at += WIDTH) {
            Lanes w{}, wx{};
            for (int e = 0; e < E; e++) {
                w += group.weighted(fill(1), e, at);
                wx += group.weighted(group.values(e, at), e, at);
            }
            store(sum_w + at, w);
            store(sum_wx + at, wx);
        }
    }

    // Sums of the codes that `scale` and `minimum` give.
    Sums sums(Lanes scale, Lanes minimum, int at) const {
        const Lanes by = inverse(scale);
        Sums sums{};
        for (int e = 0; e < E; e++) {
            const Lanes x = group.values(e, at);
            const Lanes code = round(clamp((x + minimum) * by, 0, TOP));
            const Lanes wc = group.weighted(code, e, at);
            sums.c += wc;
            sums.cc += wc * code;
            sums.xc += wc * x;
        }
        return sums;
    }

    template <int N>
    void start(const float (&clips)[N], Integers& found) const {
        for (int at = 0; at < LANES; at += WIDTH) {
            Lanes low{}, high = group.values(0, at);
            for (int e = 0; e < E; e++) {
                low = smaller(group.values(e, at), low);
                high = larger(group.values(e, at), high);
            }
            const Lanes width = high - low;
            Lanes error = fill(HUGE_VALF), best_scale{}, best_minimum{};
            for (const float at_low : clips) {
                for (const float at_high : clips) {
                    const Lanes begin = smaller(low + at_low * width, Lanes{});
                    const Lanes end = high - at_high * width;
                    Lanes scale = (end - begin) * float(1.0 / TOP);
                    const Lanes minimum = fit_line(sums(scale, 0 - begin, at), at, scale);
                    const Lanes new_error = errors(scale, minimum, at);
                    const auto better = (new_error < error) & (scale >= 0.0f);
                    error = better ? new_error : error;
                    best_scale = better ? scale : best_scale;
                    best_minimum = better ? minimum : best_minimum;
                }
            }
            store(found.scale + at, best_scale);
            store(found.minimum + at, best_minimum);
        }
    }

    // Least squares of x ~ scale * code - minimum: changes the scale, gives the minimum.
    Lanes fit_line(Sums sum, int at, Lanes& scale) const {
        const Lanes w = load(sum_w + at), wx = load(sum_wx + at);
        const Lanes product = w * sum.cc;
        const Lanes determinant = product - sum.c * sum.c;
        const auto line = determinant > 1e-4f * product;
        const Lanes by = 1.0f / (line ? determinant : fill(1));
        Lanes slope = (w * sum.xc - wx * sum.c) * by;
        const Lanes offset = (sum.cc * wx - sum.c * sum.xc) * by;
        slope = offset > 0.0f ? ratio(sum.xc, sum.cc) : slope;
        const Lanes shift = (wx - scale * sum.c) / w;
        scale = line ? slope : scale;
        return 0 - smaller(line ? offset : shift, Lanes{});
    }

    // The best neighbours of `from`, with their errors.
    void try_neighbours(const Integers& from, Integers& found) const {
        for (int at = 0; at < LANES; at += WIDTH) {
            const Lanes block_d = load(d + at), block_dmin = load(dmin + at);
            const Lanes old_scale = load(from.scale + at), old_minimum = load(from.minimum + at);
            Lanes error = fill(HUGE_VALF), best_scale = old_scale, best_minimum = old_minimum;
            for (const float scale_step : {0.0f, -1.0f, 1.0f}) {
                for (const float minimum_step : {0.0f, -1.0f, 1.0f}) {
                    const Lanes new_scale = clamp(old_scale + scale_step, 0, MAX_SCALE);
                    const Lanes new_minimum = clamp(old_minimum + minimum_step, 0, MAX_SCALE);
                    const Lanes new_error =
                        errors(block_d * new_scale, block_dmin * new_minimum, at);
                    const auto better = new_error < error;
                    error = better ? new_error : error;
                    best_scale = better ? new_scale : best_scale;
                    best_minimum = better ? new_minimum : best_minimum;
                }
            }
            store(found.scale + at, best_scale);
            store(found.minimum + at, best_minimum);
            store(found.error + at, error);
        }
    }

    Lanes errors(Lanes scale, Lanes minimum, int at) const {
        const Lanes by = inverse(scale);
        Lanes error{};
        for (int e = 0; e < E; e++) {
            const Lanes x = group.values(e, at);
            const Lanes code = round(clamp((x + minimum) * by, 0, TOP));
            const Lanes off = x - (scale * code - minimum);
            error += group.weighted(off * off, e, at);
        }
        return error;
    }

    // Least squares of a block's d and dmin for the codes that its integers give now.
    void fit(const Integers& integers, float* new_d, float* new_dmin) const {
        alignas(64) float c[LANES], cc[LANES], xc[LANES];
        for (int at = 0; at < LANES; at += WIDTH) {
            const Sums sum = sums(load(d + at) * load(integers.scale + at),
                                  load(dmin + at) * load(integers.minimum + at), at);
            store(c + at, sum.c);
            store(cc + at, sum.cc);
            store(xc + at, sum.xc);
        }
        for (int first = 0; first < LANES; first += Blocks::SUBS) {
            double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
            for (int lane = first; lane < first + Blocks::SUBS; lane++) {
                const double a = integers.scale[lane], b = integers.minimum[lane];
                aa += a * a * cc[lane];
                ab += a * b * c[lane];
                bb += b * b * sum_w[lane];
                xa += a * xc[lane];
                xb += b * sum_wx[lane];
            }
            const double determinant = aa * bb - ab * ab;
            const bool both = determinant > 1e-9 * aa * bb;
            const double by = 1 / (both ? determinant : 1);
            const float fit = float(both ? (xa * bb - xb * ab) * by : aa > 0 ? xa / aa : 0);
            const double alone = aa > 0 || !(bb > 0) ? 0 : -(xb / bb);
            const float fit_min = float(both ? (xa * ab - xb * aa) * by : alone);
            const bool usable =
                fit >= 0 && fit <= HALF_MAX && fit_min >= 0 && fit_min <= HALF_MAX;
            for (int lane = first; lane < first + Blocks::SUBS; lane++) {
                new_d[lane] = usable ? from_half(to_half(fit)) : d[lane];
                new_dmin[lane] = usable ? from_half(to_half(fit_min)) : dmin[lane];
            }
        }
    }

    template <int N>
    void run(const float (&clips)[N], Found& found) {
        Integers start_at, first, second;
        start(clips, start_at);
        for (int block = 0; block < LANES; block += Blocks::SUBS) {
            float most = 0, most_min = 0;
            for (int lane = block; lane < block + Blocks::SUBS; lane++) {
                most = start_at.scale[lane] > most ? start_at.scale[lane] : most;
                most_min = start_at.minimum[lane] > most_min ? start_at.minimum[lane] : most_min;
            }
            for (int lane = block; lane < block + Blocks::SUBS; lane++) {
                d[lane] = up_to_half(most / MAX_SCALE);
                dmin[lane] = up_to_half(most_min / MAX_SCALE);
            }
        }
        const Lanes limit = fill(MAX_SCALE);
        for (int at = 0; at < LANES; at += WIDTH) {
            const Lanes scale = load(start_at.scale + at) * inverse(load(d + at));
            const Lanes minimum = load(start_at.minimum + at) * inverse(load(dmin + at));
            store(start_at.scale + at, smaller(round(scale), limit));
            store(start_at.minimum + at, smaller(round(minimum), limit));
        }
        try_neighbours(start_at, first);

        float old_d[LANES], old_dmin[LANES], new_d[LANES], new_dmin[LANES];
        fit(first, new_d, new_dmin);
        std::memcpy(old_d, d, sizeof d);
        std::memcpy(old_dmin, dmin, sizeof dmin);
        std::memcpy(d, new_d, sizeof d);
        std::memcpy(dmin, new_dmin, sizeof dmin);
        try_neighbours(first, second);
        for (int block = 0; block < LANES; block += Blocks::SUBS) {
            double error = 0, new_error = 0;
            for (int lane = block; lane < block + Blocks::SUBS; lane++) {
                error += first.error[lane];
                new_error += second.error[lane];
            }
            if (new_error < error) continue;
            for (int lane = block; lane < block + Blocks::SUBS; lane++) {
                d[lane] = old_d[lane];
                dmin[lane] = old_dmin[lane];
                second.scale[lane] = first.scale[lane];
                second.minimum[lane] = first.minimum[lane];
            }
        }
        std::memcpy(found.d, d, sizeof d);
        std::memcpy(found.dmin, dmin, sizeof dmin);
        found.integers = second;
        store_codes(second, found.codes);
    }

    void store_codes(const Integers& integers, uint8_t (*codes)[BLOCK]) const {
        for (int at = 0; at < LANES; at += WIDTH) {
            const Lanes scale = load(d + at) * load(integers.scale + at);
            const Lanes minimum = load(dmin + at) * load(integers.minimum + at);
            const Lanes by = inverse(scale);
            for (int e = 0; e < E; e++) {
                const Lanes x = group.values(e, at);
                const Lanes code = round(clamp((x + minimum) * by, 0, TOP));
                for (int i = 0; i < WIDTH; i++) {
                    const int lane = at + i;
                    codes[lane / Blocks::SUBS][lane % Blocks::SUBS * E + e] = uint8_t(code[i]);
                }
            }
        }
    }
};

// Quantizes rows to blocks that `store(d, dmin, scales, minimums, codes, out)` writes.
template <int E, int TOP, int MAX_SCALE, int BLOCK_BYTES, int N, typename Store>
void quantize(const float* x, int64_t num_rows, int64_t length, const float* importance,
              uint8_t* out, const float (&clips)[N], Store store_block) {
    const auto quantize_group = [&](const auto& group, int blocks, uint8_t* at) {
        using Blocks = std::remove_cv_t<std::remove_reference_t<decltype(group)>>;
        Search<E, TOP, MAX_SCALE, Blocks::IS_WEIGHTED> search(group);
        Found found;
        search.run(clips, found);
        for (int block = 0; block < blocks; block++) {
            uint8_t scales[LANES], minimums[LANES];
            const int first = block * Blocks::SUBS;
            for (int s = 0; s < Blocks::SUBS; s++) {
                scales[s] = uint8_t(found.integers.scale[first + s]);
                minimums[s] = uint8_t(found.integers.minimum[first + s]);
            }
            store_block(found.d[first], found.dmin[first], scales, minimums, found.codes[block],
                        at + block * BLOCK_BYTES);
        }
    };
    for_groups<E, BLOCK_BYTES>(x, importance, num_rows, length, out, quantize_group);
}

}  // namespace

PUNA_QUANTIZE(q2_k) {
    const float clips[] = {0, 0.1f, 0.2f, 0.3f};
    quantize<16, 3, 15, 84>(x, num_rows, length, importance, out, clips,
                            [](float d, float dmin, const uint8_t* scales, const uint8_t* minimums,
                               const uint8_t* codes, uint8_t* at) {
                                for (int i = 0; i < 16; i++) {
                                    at[i] = uint8_t(scales[i] | minimums[i] << 4);
                                }
                                pack<2, 32>(codes, BLOCK, 0, at + 16);
                                store_half(at + 80, d);
                                store_half(at + 82, dmin);
                            });
}

PUNA_QUANTIZE(q4_k) {
    const float clips[] = {-0.02f, 0.01f, 0.04f, 0.07f, 0.11f};
    quantize<32, 15, 63, 144>(x, num_rows, length, importance, out, clips,
                              [](float d, float dmin, const uint8_t* scales,
                                 const uint8_t* minimums, const uint8_t* codes, uint8_t* at) {
                                  store_half(at, d);
                                  store_half(at + 2, dmin);
                                  pack_scales(scales, minimums, at + 4);
                                  pack<4, 32>(codes, BLOCK, 0, at + 16);
                              });
}

PUNA_QUANTIZE(q5_k) {
    const float clips[] = {-0.012f, 0, 0.012f, 0.03f, 0.06f};
    quantize<32, 31, 63, 176>(x, num_rows, length, importance, out, clips,
                              [](float d, float dmin, const uint8_t* scales,
                                 const uint8_t* minimums, const uint8_t* codes, uint8_t* at) {
                                  store_half(at, d);
                                  store_half(at + 2, dmin);
                                  pack_scales(scales, minimums, at + 4);
                                  pack<1, 32>(codes, BLOCK, 4, at + 16);
                                  pack<4, 32>(codes, BLOCK, 0, at + 48);
                              });
}

}  // namespace puna
