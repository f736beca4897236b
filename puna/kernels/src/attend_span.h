// What queries that look at the same pages have of a span of positions: attention's arithmetic.
//
// Sums of a query have an order of their own: a product of head_dim is the sum of two halves, values
// are added up by position. How many queries and registers go together changes nothing.
#pragma once

#include <algorithm>
#include <cmath>

#include "kv_types.h"
#include "step.h"

namespace puna {

// Accumulators that fit the registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int SUMS = 16;
#else
constexpr int SUMS = 8;
#endif

// A part of a sequence: the pages of a KV head from position `begin` on.
struct Span {
    const uint8_t *keys[SPAN / TILE], *values[SPAN / TILE];
    int64_t begin;
};

// What a query has of some positions: the weighted sum of values (head_stride), the largest score,
// the sum of weights. `AttentionSpace` has room for it.
struct Part {
    float* sums;
    float& top;
    float& total;
    Part(const Work& w, float* at)
        : sums(at), top(at[w.head_stride]), total(at[w.head_stride + 1]) {}
};

// Products of N queries, interleaved (head_dim, N), with R registers of positions: number i of
// register r lies at keys[r] + i * TILE * T::SIZE, and what is needed after it at next[r].
template <class T, int N, int R>
inline void score(const float* q, const uint8_t* const (&keys)[R], const uint8_t* const (&next)[R],
                  int half, Lanes (&out)[N][R]) {
    if constexpr (2 * N * R <= SUMS) {  // both halves at once, where one would wait for additions
        Lanes sums[2][N][R] = {};
        for (int64_t i = 0; i < half; i++) {
            for (int h = 0; h < 2; h++) {
                const int64_t at = i + h * half;
                for (int r = 0; r < R; r++) {
                    const Lanes key = T::load_lanes(keys[r] + at * TILE * T::SIZE);
                    __builtin_prefetch(next[r] + at * TILE * T::SIZE);
                    for (int n = 0; n < N; n++) {
                        sums[h][n][r] = fma(fill(q[at * N + n]), key, sums[h][n][r]);
                    }
                }
            }
        }
        for (int n = 0; n < N; n++) {
            for (int r = 0; r < R; r++) out[n][r] = sums[0][n][r] + sums[1][n][r];
        }
        return;
    }
    for (int h = 0; h < 2; h++) {
        Lanes sums[N][R] = {};
        for (int64_t i = h * half; i < (h + 1) * half; i++) {
            for (int r = 0; r < R; r++) {
                const Lanes key = T::load_lanes(keys[r] + i * TILE * T::SIZE);
                for (int n = 0; n < N; n++) {
                    sums[n][r] = fma(fill(q[i * N + n]), key, sums[n][r]);
                }
            }
        }
        for (int n = 0; n < N; n++) {
            for (int r = 0; r < R; r++) out[n][r] = h == 0 ? sums[n][r] : out[n][r] + sums[n][r];
        }
    }
}

// Values weighed for N queries, R registers of the head from number `first` on.
template <class T, int N, int R>
inline void weigh(const float* weights, const uint8_t* const* values, int64_t slots, int64_t width,
                  int64_t first, float* const* out) {
    Lanes sums[N][R] = {};
    for (int64_t b = 0; b * TILE < slots; b++, weights += TILE) {
        const uint8_t* at = values[b] + first * T::SIZE;
        const uint8_t* next = values[(b + 1) * TILE < slots ? b + 1 : b] + first * T::SIZE;
        const int64_t count = slots - b * TILE < TILE ? slots - b * TILE : TILE;
        for (int64_t slot = 0; slot < count; slot++) {
            for (int r = 0; r < R; r++) {
                const int64_t offset = (slot * width + r * WIDTH) * T::SIZE;
                const Lanes value = T::load_lanes(at + offset);
                if constexpr (N == 1) __builtin_prefetch(next + offset);
                for (int n = 0; n < N; n++) {
                    sums[n][r] = fma(fill(weights[n * SPAN + slot]), value, sums[n][r]);
                }
            }
        }
    }
    for (int n = 0; n < N; n++) {
        for (int r = 0; r < R; r++) store(out[n] + first + r * WIDTH, sums[n][r]);
    }
}

// Scores of `own` positions to their weights; those up to `blocks` pages are none of the query's.
template <class T>
inline void weigh_scores(const Work& w, const Span& span, float* scores, int64_t own,
                         int64_t blocks, Part part) {
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t seen = (own + TILE - 1) / TILE;
    Floats largest = splat(-HUGE_VALF), total = {};
    for (int64_t b = 0; b < seen; b++) {
        Floats score = load_floats(scores + b * TILE);
        if constexpr (T::SCALE != 0) {
            score *= load_halves(span.keys[b] + w.m.head_dim * TILE * T::SIZE);
        }
        const int32_t left = int32_t(own - b * TILE);
        if (left < TILE) score = select(lanes < left, score, splat(-HUGE_VALF));
        largest = maximum(largest, score);
        store_floats(scores + b * TILE, score);
    }
    part.top = largest_of(largest);
    for (int64_t b = 0; b < seen; b++) {
        Floats weight = exponential(load_floats(scores + b * TILE) - part.top);
        total += weight;
        if constexpr (T::SCALE != 0) {
            weight *= load_halves(span.values[b] + w.head_stride * TILE * T::SIZE);
        }
        store_floats(scores + b * TILE, weight);
    }
    for (int64_t b = seen; b < blocks; b++) store_floats(scores + b * TILE, Floats{});
    part.total = sum_of(total);
}

// What N queries, which look at `lengths` positions each, have of a span.
template <class T, int N>
__attribute__((noinline)) void attend_span(const Work& w, const Span& span, const float* q,
                                           const int64_t* lengths, float* scores, float* parts) {
    constexpr int R = SUMS / N < 4 ? SUMS / N : 4;
    const int half = w.m.head_dim / 2;
    int64_t slots = 0, own[N];  // positions of the span that any query, that each looks at
    for (int n = 0; n < N; n++) {
        const int64_t left = lengths[n] - span.begin;
        own[n] = left < 0 ? 0 : left > SPAN ? SPAN : left;
        slots = own[n] > slots ? own[n] : slots;
    }
    const int64_t blocks = (slots + TILE - 1) / TILE;
    const auto take = [&]<int COUNT>(int64_t at) {  // positions, COUNT registers of them
        const uint8_t *keys[COUNT], *next[COUNT];
        for (int r = 0; r < COUNT; r++) {
            const int64_t slot = at + r * WIDTH;
            keys[r] = span.keys[slot / TILE] + slot % TILE * T::SIZE;
            next[r] = span.keys[std::min((slot + COUNT * WIDTH) / TILE, blocks - 1)];
        }
        Lanes products[N][COUNT];
        score<T, N, COUNT>(q, keys, next, half, products);
        for (int n = 0; n < N; n++) {
            float* to = scores + n * SPAN + at;
            for (int r = 0; r < COUNT; r++) store(to + r * WIDTH, products[n][r]);
        }
    };
    int64_t at = 0;
    for (; at + R * WIDTH <= blocks * TILE; at += R * WIDTH) take.template operator()<R>(at);
    for (; at < blocks * TILE; at += WIDTH) take.template operator()<1>(at);

    float* sums[N];
    for (int n = 0; n < N; n++) {
        const Part part(w, parts + n * w.attention.part_floats);
        sums[n] = part.sums;
        weigh_scores<T>(w, span, scores + n * SPAN, own[n], blocks, part);
    }
    const int64_t width = w.head_stride;
    int64_t i = 0;
    const auto sum_up = [&]<int COUNT>() {
        for (; i + COUNT * WIDTH <= width; i += COUNT * WIDTH) {
            weigh<T, N, COUNT>(scores, span.values, slots, width, i, sums);
        }
    };
    sum_up.template operator()<(SUMS / N < 8 ? SUMS / N : 8)>();
    sum_up.template operator()<(SUMS / N < 4 ? SUMS / N : 4)>();
    sum_up.template operator()<1>();
}

}  // namespace puna
