// Activations as the products want them: normalised, and also in 8 bits.
#pragma once

#include <cmath>

#include "step.h"

namespace puna {

inline void quantize_group(const float* x, Group& group) {
    Floats a = load_floats(x), b = load_floats(x + TILE);
    const Floats magnitude = maximum(maximum(a, -a), maximum(b, -b));
    const float largest = largest_of(magnitude);
    group.scale = largest / 127;
    const float by = group.scale > 1e-30f ? 127 / largest : 0;
    int half = 0;
    for (const Floats v : {a, b}) {
        const Ints codes = (Ints)(v * by + splat(0x1.8p23f)) - 0x4b400000;
        store_small(group.codes + TILE * half, codes);
        group.sums[half++] = sum_of(codes);
    }
}

inline float inverse_rms(const float* x, int64_t dim, float eps) {
    Floats squares[2] = {};
    int64_t i = 0;
    for (; i + 2 * TILE <= dim; i += 2 * TILE) {
        for (int j = 0; j < 2; j++) {
            const Floats v = load_floats(x + i + TILE * j);
            squares[j] = fma(v, v, squares[j]);
        }
    }
    float rest = 0;
    for (; i < dim; i++) rest += x[i] * x[i];
    return 1 / std::sqrt((sum_of(squares[0] + squares[1]) + rest) / float(dim) + eps);
}

// What a product's rows are made of: row r is row chosen[r] of x, its column k is column order[k].
struct Source {
    const float* x;
    int64_t stride, length;
    const float* norm;  // if not null, rows are divided by their root mean square and multiplied
    const int32_t *order, *chosen;
};

// The 32 columns of a row from `first` on, as floats.
inline void fill_group(const Source& source, const float* in, float scale, int64_t first,
                       float* to) {
    const float* norm = source.norm;
    if (source.order == nullptr && first + GROUP <= source.length) {
        for (int i = 0; i < GROUP; i++) {
            to[i] = norm ? in[first + i] * scale * norm[first + i] : in[first + i];
        }
        return;
    }
    for (int i = 0; i < GROUP; i++) {
        const int64_t k = first + i, from = source.order && k < source.length ? source.order[k] : k;
        to[i] = k >= source.length ? 0 : norm ? in[from] * scale * norm[from] : in[from];
    }
}

// Rows as floats and as codes; where there are fewer rows than threads, these share each row.
inline void prepare(const Work& w, int thread, const Source& source, int rows) {
    const int threads = w.s.num_threads;
    const int64_t num_groups = padded(source.length, GROUP) / GROUP;
    const bool shared = rows < threads;
    const Share own(shared ? num_groups : rows, thread, threads);
    const Share all(shared ? rows : num_groups, 0, 1);
    const Share& by_row = shared ? all : own;
    const Share& by_group = shared ? own : all;
    for (int64_t r = by_row.begin; r < by_row.end; r++) {
        const float* in = source.x + (source.chosen ? source.chosen[r] : r) * source.stride;
        const float scale = source.norm ? inverse_rms(in, source.length, w.m.eps) : 1;
        for (int64_t g = by_group.begin; g < by_group.end; g++) {
            float* to = w.normed + r * w.wide + g * GROUP;
            fill_group(source, in, scale, g * GROUP, to);
            quantize_group(to, w.groups[r * num_groups + g]);
        }
    }
    w.pool->barrier();
}

inline Rows rows_of(const Work& w, int thread, int64_t length, int count) {
    uint8_t* scratch = w.scratch + thread * w.scratch_bytes;
    return {w.normed, w.groups, w.wide, padded(length, GROUP) / GROUP, count, scratch};
}

inline void keep(float* out, const Matrix& m, int64_t first, Floats values) {
    if (first + TILE <= m.rows) return store_floats(out + first, values);
    for (int64_t i = first; i < m.rows; i++) out[i] = values[i - first];
}

inline void add(float* out, const Matrix& m, int64_t first, Floats values) {
    if (first + TILE <= m.rows) {
        return store_floats(out + first, load_floats(out + first) + values);
    }
    for (int64_t i = first; i < m.rows; i++) out[i] += values[i - first];
}

}  // namespace puna
