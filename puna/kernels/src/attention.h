// Attention over pages of keys and values, as they are kept there.
//
// Each span of positions has a softmax and a weighted sum of its own; a query's are merged from the
// first to the last, whichever threads computed them.
#pragma once

#include "attend_span.h"

namespace puna {

// One KV head of one layer, in all pages.
template <class T>
struct KvHead {
    uint8_t *keys, *values;
    int64_t key_step, value_step;  // from page to page

    KvHead(const Model& m, int64_t layer, int64_t head) {
        const int64_t key_bytes = kv_bytes<T>(m.head_dim);
        const int64_t value_bytes = kv_bytes<T>(padded(m.head_dim, TILE));
        const int64_t first = layer * m.num_pages * m.num_kv_heads + head;
        keys = m.keys + first * key_bytes;
        values = m.values + first * value_bytes;
        key_step = m.num_kv_heads * key_bytes;
        value_step = m.num_kv_heads * value_bytes;
    }
};

inline int64_t page_of(const Step& s, int row, int64_t block) {
    return s.tables[int64_t(s.sequences[row]) * s.table_width + block];
}

// The halves of a head turned by a position's angles.
inline void rotate(float* x, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i++) {
        const float low = x[i], high = x[i + half];
        x[i] = low * cosines[i] - high * sines[i];
        x[i + half] = high * cosines[i] + low * sines[i];
    }
}

// Turns queries and keys by their positions' angles; keys and values go to their pages.
template <class T>
inline void place_heads(const Work& w, int thread, int64_t layer) {
    const Model& m = w.m;
    const int half = m.head_dim / 2, kinds = m.num_heads + 2 * m.num_kv_heads;
    const int64_t q_stride = padded(m.dim, TILE), width = padded(m.head_dim, TILE);
    const int64_t kv_stride = padded(int64_t(m.num_kv_heads) * m.head_dim, TILE);
    const Share own(int64_t(w.s.num_rows) * kinds, thread, w.s.num_threads);
    for (int64_t item = own.begin; item < own.end; item++) {
        const int row = int(item / kinds), position = w.s.positions[row];
        const float* cosines = m.cosines + int64_t(position) * half;
        const float* sines = m.sines + int64_t(position) * half;
        int head = int(item % kinds);
        if (head < m.num_heads) {
            rotate(w.q + row * q_stride + int64_t(head) * m.head_dim, cosines, sines, half);
            continue;
        }
        head -= m.num_heads;
        const bool is_key = head < m.num_kv_heads;
        if (!is_key) head -= m.num_kv_heads;
        const KvHead<T> kv(m, layer, head);
        const int64_t page = page_of(w.s, row, position / TILE);
        const int64_t slot = position % TILE, from = row * kv_stride + int64_t(head) * m.head_dim;
        if (is_key) {
            rotate(w.k + from, cosines, sines, half);
            uint8_t* to = kv.keys + page * kv.key_step;
            uint8_t* scales = to + m.head_dim * TILE * T::SIZE;
            keep_head<T>(w.k + from, m.head_dim, to + slot * T::SIZE, TILE * T::SIZE,
                         scales + slot * T::SCALE);
        } else {
            uint8_t* to = kv.values + page * kv.value_step;
            uint8_t* scales = to + width * TILE * T::SIZE;
            keep_head<T>(w.v + from, m.head_dim, to + slot * width * T::SIZE, T::SIZE,
                         scales + slot * T::SCALE);
        }
    }
    w.pool->barrier();
}

// Adds what a query has of the next positions.
inline void merge(const Work& w, Part into, Part next) {
    const float top = next.top > into.top ? next.top : into.top;
    const float by = exponential(splat(into.top - top))[0];
    const float next_by = exponential(splat(next.top - top))[0];
    into.top = top;
    into.total = into.total * by + next.total * next_by;
    for (int64_t i = 0; i < w.head_stride; i += TILE) {
        const Floats before = load_floats(into.sums + i) * by;
        store_floats(into.sums + i, fma(load_floats(next.sums + i), splat(next_by), before));
    }
}

inline void clear(const Work& w, Part part) {
    for (int64_t i = 0; i < w.head_stride; i++) part.sums[i] = 0;
    part.top = -HUGE_VALF;
    part.total = 0;
}

inline void finish(const Work& w, int row, int64_t head, Part part) {
    float* out = w.attended + row * w.wide + head * w.m.head_dim;
    const float by = 1 / part.total;
    for (int64_t i = 0; i < w.m.head_dim; i += TILE) {
        store_part(out + i, load_floats(part.sums + i) * by, w.m.head_dim - i);
    }
}

// call<N>(first) for queries, N at a time.
template <class Call>
inline void in_groups(int64_t count, Call&& call) {
    int64_t first = 0;
    if constexpr (SUMS > 8) {
        for (; first + 8 <= count; first += 8) call.template operator()<8>(first);
    }
    for (; first + 4 <= count; first += 4) call.template operator()<4>(first);
    for (; first < count; first++) call.template operator()<1>(first);
}

// Packs the queries of a run that share a KV head, interleaved by groups: of query n, row and head
// are n / G and n % G, with G query heads for each KV head.
inline void pack_queries(const Work& w, const Run& run, int64_t kv_head, const AttentionSpace& a) {
    const int64_t group = w.m.num_heads / w.m.num_kv_heads, head_dim = w.m.head_dim;
    const float by = 1 / std::sqrt(float(head_dim));
    in_groups(run.count * group, [&]<int N>(int64_t first) {
        for (int64_t n = first; n < first + N; n++) {
            const int64_t row = run.first + n / group, head = kv_head * group + n % group;
            a.lengths[n] = w.s.positions[row] + 1;
            const float* q = w.q + row * padded(w.m.dim, TILE) + head * head_dim;
            float* to = a.packed + first * head_dim + n - first;
            for (int64_t i = 0; i < head_dim; i++) to[i * N] = q[i] * by;
        }
    });
}

// keep(query, part) for the packed queries of a run that look at a span.
template <class T, class Keep>
inline void attend_run(const Work& w, const Run& run, const KvHead<T>& kv, int64_t begin,
                       const AttentionSpace& a, Keep keep) {
    Span span;
    span.begin = begin;
    for (int64_t b = 0; b < SPAN / TILE && begin + b * TILE < run.length; b++) {
        const int64_t page = page_of(w.s, run.first, begin / TILE + b);
        span.keys[b] = kv.keys + page * kv.key_step;
        span.values[b] = kv.values + page * kv.value_step;
    }
    in_groups(run.count * (w.m.num_heads / w.m.num_kv_heads), [&]<int N>(int64_t first) {
        int64_t longest = 0;
        for (int n = 0; n < N; n++) longest = std::max(longest, a.lengths[first + n]);
        if (longest <= begin) return;
        const float* q = a.packed + first * w.m.head_dim;
        attend_span<T, N>(w, span, q, a.lengths + first, a.scores, a.parts);
        for (int n = 0; n < N; n++) {
            if (a.lengths[first + n] <= begin) continue;
            keep(first + n, Part(w, a.parts + n * w.attention.part_floats));
        }
    });
}

template <class T>
inline void attend(const Work& w, int thread, int64_t layer) {
    const Model& m = w.m;
    const int64_t group = m.num_heads / m.num_kv_heads, stride = w.attention.part_floats;
    const AttentionSpace a = w.attention.of_thread(thread);
    int64_t total = 0, done = 0;  // positions that queries look at
    for_runs(m, w.s, [&](const Run& run) { total += run.work * m.num_kv_heads; });
    // Shares by work: later rows look at more positions.
    const auto is_own = [&](int64_t work) {
        const int64_t middle = 2 * done + work;
        done += work;
        return middle * w.s.num_threads / (2 * total) == thread;
    };
    for (int64_t head = 0; head < m.num_kv_heads; head++) {
        const KvHead<T> kv(m, layer, head);
        for_runs(m, w.s, [&](const Run& run) {
            const int64_t spans = (run.length + SPAN - 1) / SPAN;
            if (w.attention.split) {
                for (int64_t i = 0; i < spans; i++) {
                    if (!is_own(run.work / spans)) continue;
                    pack_queries(w, run, head, a);
                    attend_run(w, run, kv, i * SPAN, a, [&](int64_t n, Part part) {
                        const int64_t row = run.first + n / group, at = head * group + n % group;
                        std::memcpy(w.attention.split_part(row, at, i), part.sums,
                                    sizeof(float) * stride);
                    });
                }
                return;
            }
            if (!is_own(run.work)) return;
            pack_queries(w, run, head, a);
            for (int64_t n = 0; n < run.count * group; n++) {
                clear(w, Part(w, a.states + n * stride));
            }
            for (int64_t i = 0; i < spans; i++) {
                attend_run(w, run, kv, i * SPAN, a, [&](int64_t n, Part part) {
                    merge(w, Part(w, a.states + n * stride), part);
                });
            }
            for (int64_t n = 0; n < run.count * group; n++) {
                const int row = run.first + int(n / group);
                finish(w, row, head * group + n % group, Part(w, a.states + n * stride));
            }
        });
    }
    w.pool->barrier();
    if (!w.attention.split) return;
    const Share own(int64_t(w.s.num_rows) * m.num_heads, thread, w.s.num_threads);
    for (int64_t item = own.begin; item < own.end; item++) {
        const int row = int(item / m.num_heads), head = int(item % m.num_heads);
        const Part state(w, a.states);
        clear(w, state);
        for (int64_t i = 0; i * SPAN <= w.s.positions[row]; i++) {
            merge(w, state, Part(w, w.attention.split_part(row, head, i)));
        }
        finish(w, row, head, state);
    }
    w.pool->barrier();
}

}  // namespace puna
