// Attention over pages of keys and values.
#pragma once

#include <cmath>

#include "step.h"

namespace puna {

inline int64_t page_of(const Work& w, int64_t layer, int row, int64_t block, int64_t kv_head) {
    const int64_t page = w.s.tables[int64_t(w.s.sequences[row]) * w.s.table_width + block];
    return ((layer * w.m.num_pages + page) * w.m.num_kv_heads + kv_head) * TILE;
}

// Turns queries and keys by their positions' angles; keys and values go to their pages.
inline void place_heads(const Work& w, int thread, int64_t layer) {
    const Model& m = w.m;
    const int half = m.head_dim / 2, kinds = m.num_heads + 2 * m.num_kv_heads;
    const int64_t q_stride = padded(m.dim, TILE);
    const int64_t kv_stride = padded(int64_t(m.num_kv_heads) * m.head_dim, TILE);
    const Share own(int64_t(w.s.num_rows) * kinds, thread, w.s.num_threads);
    for (int64_t item = own.begin; item < own.end; item++) {
        const int row = int(item / kinds), position = w.s.positions[row];
        const float* c = m.cosines + int64_t(position) * half;
        const float* s = m.sines + int64_t(position) * half;
        int head = int(item % kinds);
        if (head < m.num_heads) {
            float* q = w.q + row * q_stride + int64_t(head) * m.head_dim;
            for (int i = 0; i < half; i++) {
                const float low = q[i], high = q[i + half];
                q[i] = low * c[i] - high * s[i];
                q[i + half] = high * c[i] + low * s[i];
            }
            continue;
        }
        head -= m.num_heads;
        const bool is_key = head < m.num_kv_heads;
        if (!is_key) head -= m.num_kv_heads;
        const int64_t page = page_of(w, layer, row, position / TILE, head);
        const int slot = position % TILE;
        if (is_key) {
            const float* k = w.k + row * kv_stride + int64_t(head) * m.head_dim;
            float* to = m.keys + page * m.head_dim + slot;
            for (int i = 0; i < half; i++) {
                to[i * TILE] = k[i] * c[i] - k[i + half] * s[i];
                to[(i + half) * TILE] = k[i + half] * c[i] + k[i] * s[i];
            }
        } else {
            const float* v = w.v + row * kv_stride + int64_t(head) * m.head_dim;
            std::memcpy(m.values + (page + slot) * w.head_stride, v, sizeof(float) * m.head_dim);
        }
    }
    w.pool->barrier();
}

// One head of one row, over all positions up to its own.
inline void attend_head(const Work& w, float* scores, int64_t layer, int row, int head, float* out) {
    const Model& m = w.m;
    const int kv_head = head / (m.num_heads / m.num_kv_heads);
    const float* q = w.q + row * padded(m.dim, TILE) + int64_t(head) * m.head_dim;
    const float by = 1 / std::sqrt(float(m.head_dim));
    const int length = w.s.positions[row] + 1, blocks = (length + TILE - 1) / TILE;
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Floats largest = splat(-INFINITY);
    for (int b = 0; b < blocks; b++) {
        const float* keys = m.keys + page_of(w, layer, row, b, kv_head) * m.head_dim;
        Floats products[2] = {};
        for (int i = 0; i < m.head_dim; i += 2) {
            for (int j = 0; j < 2; j++) {
                products[j] =
                    fma(splat(q[i + j]), load_floats(keys + (i + j) * TILE), products[j]);
            }
        }
        Floats score = (products[0] + products[1]) * by;
        score = select(lanes + b * TILE < length, score, splat(-INFINITY));
        largest = maximum(largest, score);
        store_floats(scores + b * TILE, score);
    }
    const float top = largest_of(largest);
    Floats total = {};
    for (int b = 0; b < blocks; b++) {
        const Floats weight = exponential(load_floats(scores + b * TILE) - top);
        total += weight;
        store_floats(scores + b * TILE, weight);
    }
    const float share = 1 / sum_of(total);
    constexpr int WIDE = 4;  // registers of a head at a time
    for (int64_t d = 0; d < w.head_stride; d += WIDE * TILE) {
        const int64_t here = w.head_stride - d < WIDE * TILE ? (w.head_stride - d) / TILE : WIDE;
        Floats sums[WIDE] = {};
        for (int b = 0; b < blocks; b++) {
            const float* values = m.values + page_of(w, layer, row, b, kv_head) * w.head_stride + d;
            const int slots = length - b * TILE < TILE ? length - b * TILE : TILE;
            for (int slot = 0; slot < slots; slot++, values += w.head_stride) {
                const Floats weight = splat(scores[b * TILE + slot]);
                if (here == WIDE) {
                    for (int i = 0; i < WIDE; i++) {
                        sums[i] = fma(weight, load_floats(values + i * TILE), sums[i]);
                    }
                } else {
                    for (int i = 0; i < here; i++) {
                        sums[i] = fma(weight, load_floats(values + i * TILE), sums[i]);
                    }
                }
            }
        }
        for (int i = 0; i < here; i++) {
            const Floats result = sums[i] * share;
            for (int64_t j = 0; j < TILE && d + i * TILE + j < m.head_dim; j++) {
                out[d + i * TILE + j] = result[j];
            }
        }
    }
}

inline void attend(const Work& w, int thread, int64_t layer) {
    float* scores = w.scores + thread * w.num_scores;
    const int64_t items = int64_t(w.s.num_rows) * w.m.num_heads;
    // Every so-manyth, not a run: later rows look at more positions.
    for (int64_t item = thread; item < items; item += w.s.num_threads) {
        const int row = int(item / w.m.num_heads), head = int(item % w.m.num_heads);
        float* out = w.attended + row * w.wide + int64_t(head) * w.m.head_dim;
        attend_head(w, scores, layer, row, head, out);
    }
    w.pool->barrier();
}

}  // namespace puna
