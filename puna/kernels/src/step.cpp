// A whole forward pass over the rows of a batch, in one parallel region.

#include <cmath>

#include "abi.h"
#include "multiply.h"
#include "pool.h"

namespace puna {
namespace {

struct Layer {
    const float* attention_norm;
    const float* ffn_norm;
    Matrix wq, wk, wv, wo, w1, w2, w3;
};

struct Model {
    int32_t num_layers, dim, num_heads, num_kv_heads, head_dim, ffn_dim, vocab_size;
    float eps;
    const Layer* layers;
    const float* norm;
    Matrix output;
    const float* cosines;  // (context, head_dim / 2)
    const float* sines;
    float* keys;    // (layers, pages, kv heads, head_dim, TILE positions)
    float* values;  // (layers, pages, kv heads, TILE positions, padded head_dim)
    int64_t num_pages;
};

struct Step {
    int32_t num_rows, num_outputs, table_width, num_threads;
    const int32_t* positions;  // (rows)
    const int32_t* sequences;  // (rows)
    const int32_t* tables;     // (sequences, table_width)
    const int32_t* outputs;    // (outputs)
    float* x;                  // (rows, dim), the embeddings; changed
    float* logits;             // (outputs, vocab_size)
    uint8_t* workspace;
};

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where things lie in the workspace; the same layout, with no memory, says how much is needed.
struct Space {
    uint8_t* base;
    int64_t used = 0;

    template <class T>
    T* take(int64_t count) {
        T* at = reinterpret_cast<T*>(base + used);
        used += padded(count * int64_t(sizeof(T)), 64);
        return at;
    }
};

struct Work {
    const Model& m;
    const Step& s;
    Pool* pool;
    int64_t wide, head_stride;  // floats of a row of activations, of a head
    float *normed, *q, *k, *v, *attended, *hidden, *scores;
    Group* groups;
    int64_t num_scores, bytes;

    Work(const Model& m, const Step& s, Pool* pool) : m(m), s(s), pool(pool) {
        const int64_t rows = s.num_rows;
        Space space{s.workspace};
        wide = padded(m.dim > m.ffn_dim ? m.dim : m.ffn_dim, GROUP);
        head_stride = padded(m.head_dim, TILE);
        num_scores = int64_t(s.table_width) * TILE;
        normed = space.take<float>(rows * wide);
        q = space.take<float>(rows * padded(m.dim, TILE));
        k = space.take<float>(rows * padded(int64_t(m.num_kv_heads) * m.head_dim, TILE));
        v = space.take<float>(rows * padded(int64_t(m.num_kv_heads) * m.head_dim, TILE));
        attended = space.take<float>(rows * wide);
        hidden = space.take<float>(rows * wide);
        scores = space.take<float>(num_scores * s.num_threads);
        groups = space.take<Group>(rows * wide / GROUP);
        bytes = space.used;
    }
};

// The part of `count` things that is this thread's.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int thread, int threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

void quantize_group(const float* x, Group& group) {
    Floats a = load_floats(x), b = load_floats(x + TILE);
    const Floats magnitude = maximum(maximum(a, -a), maximum(b, -b));
    const float largest = largest_of(magnitude);
    group.scale = largest / 127;
    const float by = group.scale > 1e-30f ? 127 / largest : 0;
    typedef int8_t Small __attribute__((vector_size(16)));
    int half = 0;
    for (const Floats v : {a, b}) {
        const Ints codes = (Ints)(v * by + splat(0x1.8p23f)) - 0x4b400000;
        const Small small = __builtin_convertvector(codes, Small);
        std::memcpy(group.codes + TILE * half, &small, sizeof small);
        int32_t sum = 0;
        for (int i = 0; i < TILE; i++) sum += codes[i];
        group.sums[half++] = sum;
    }
}

float inverse_rms(const float* x, int64_t dim, float eps) {
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

// Rows as floats -> also as codes; where there are fewer rows than threads, these share each row.
// With `norm`, rows of x are first divided by their root mean square and multiplied with it.
void prepare(const Work& w, int thread, const float* x, int64_t stride, const float* norm,
             int64_t length, int rows, const int32_t* chosen) {
    const int threads = w.s.num_threads;
    const int64_t num_groups = padded(length, GROUP) / GROUP;
    const bool shared = rows < threads;
    const Share own(shared ? num_groups : rows, thread, threads);
    const Share all(shared ? rows : num_groups, 0, 1);
    const Share& by_row = shared ? all : own;
    const Share& by_group = shared ? own : all;
    for (int64_t r = by_row.begin; r < by_row.end; r++) {
        const float* in = x + (chosen ? chosen[r] : r) * stride;
        const float scale = norm ? inverse_rms(in, length, w.m.eps) : 1;
        for (int64_t g = by_group.begin; g < by_group.end; g++) {
            const float* from = in + g * GROUP;
            float* to = w.normed + r * w.wide + g * GROUP;
            const int64_t left = length - g * GROUP;
            for (int i = 0; i < GROUP; i++) {
                to[i] = i >= left ? 0 : norm ? from[i] * scale * norm[g * GROUP + i] : from[i];
            }
            quantize_group(to, w.groups[r * num_groups + g]);
        }
    }
    w.pool->barrier();
}

Rows rows_of(const Work& w, int64_t length, int count) {
    return {w.normed, w.groups, w.wide, padded(length, GROUP) / GROUP, count};
}

void keep(float* out, const Matrix& m, int64_t first, Floats values) {
    if (first + TILE <= m.rows) return store_floats(out + first, values);
    for (int64_t i = first; i < m.rows; i++) out[i] = values[i - first];
}

void add(float* out, const Matrix& m, int64_t first, Floats values) {
    if (first + TILE <= m.rows) {
        return store_floats(out + first, load_floats(out + first) + values);
    }
    for (int64_t i = first; i < m.rows; i++) out[i] += values[i - first];
}

void project_heads(const Work& w, int thread, const Layer& layer) {
    const Matrix* matrices[3] = {&layer.wq, &layer.wk, &layer.wv};
    float* outs[3] = {w.q, w.k, w.v};
    const Rows x = rows_of(w, w.m.dim, w.s.num_rows);
    int64_t total = 0;
    for (const Matrix* m : matrices) total += m->num_tiles();
    const Share own(total, thread, w.s.num_threads);
    int64_t before = 0;
    for (int i = 0; i < 3; i++) {
        const Matrix& m = *matrices[i];
        const int64_t begin = own.begin > before ? own.begin - before : 0;
        const int64_t end = own.end - before < m.num_tiles() ? own.end - before : m.num_tiles();
        const int64_t stride = padded(m.rows, TILE);
        multiply(m, begin, end, x, [&](int row, int64_t first, Floats values) {
            keep(outs[i] + row * stride, m, first, values);
        });
        before += m.num_tiles();
    }
    w.pool->barrier();
}

int64_t page_of(const Work& w, int64_t layer, int row, int64_t block, int64_t kv_head) {
    const int64_t page = w.s.tables[int64_t(w.s.sequences[row]) * w.s.table_width + block];
    return ((layer * w.m.num_pages + page) * w.m.num_kv_heads + kv_head) * TILE;
}

// Turns queries and keys by their positions' angles; keys and values go to their pages.
void place_heads(const Work& w, int thread, int64_t layer) {
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
void attend_head(const Work& w, float* scores, int64_t layer, int row, int head, float* out) {
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
        score = lanes + b * TILE < length ? score : splat(-INFINITY);
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

void attend(const Work& w, int thread, int64_t layer) {
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

void project_back(const Work& w, int thread, const Matrix& m) {
    const Share own(m.num_tiles(), thread, w.s.num_threads);
    const Rows x = rows_of(w, m.columns, w.s.num_rows);
    multiply(m, own.begin, own.end, x, [&](int row, int64_t first, Floats values) {
        add(w.s.x + int64_t(row) * w.m.dim, m, first, values);
    });
    w.pool->barrier();
}

void gate(const Work& w, int thread, const Layer& layer) {
    const Rows x = rows_of(w, w.m.dim, w.s.num_rows);
    const Share own(layer.w1.num_tiles(), thread, w.s.num_threads);
    for (int64_t tile = own.begin; tile < own.end; tile++) {
        multiply(layer.w1, tile, tile + 1, x, [&](int row, int64_t first, Floats values) {
            const Floats silu = values / (1.0f + exponential(-values));
            keep(w.hidden + row * w.wide, layer.w1, first, silu);
        });
        multiply(layer.w3, tile, tile + 1, x, [&](int row, int64_t first, Floats values) {
            float* out = w.hidden + row * w.wide;  // its padding is never read
            keep(out, layer.w3, first, load_floats(out + first) * values);
        });
    }
    w.pool->barrier();
}

void run(void* argument, int thread) {
    const Work& w = *static_cast<const Work*>(argument);
    const Model& m = w.m;
    const Step& s = w.s;
    for (int64_t i = 0; i < m.num_layers; i++) {
        const Layer& layer = m.layers[i];
        prepare(w, thread, s.x, m.dim, layer.attention_norm, m.dim, s.num_rows, nullptr);
        project_heads(w, thread, layer);
        place_heads(w, thread, i);
        attend(w, thread, i);
        prepare(w, thread, w.attended, w.wide, nullptr, m.dim, s.num_rows, nullptr);
        project_back(w, thread, layer.wo);
        prepare(w, thread, s.x, m.dim, layer.ffn_norm, m.dim, s.num_rows, nullptr);
        gate(w, thread, layer);
        prepare(w, thread, w.hidden, w.wide, nullptr, m.ffn_dim, s.num_rows, nullptr);
        project_back(w, thread, layer.w2);
    }
    prepare(w, thread, s.x, m.dim, m.norm, m.dim, s.num_outputs, s.outputs);
    const Share own(m.output.num_tiles(), thread, s.num_threads);
    const Rows x = rows_of(w, m.dim, s.num_outputs);
    multiply(m.output, own.begin, own.end, x, [&](int row, int64_t first, Floats values) {
        keep(s.logits + int64_t(row) * m.vocab_size, m.output, first, values);
    });
}

}  // namespace

PUNA_EXPORT int64_t puna_workspace_bytes(const Model* model, const Step* step) {
    return Work(*model, *step, nullptr).bytes;
}

PUNA_EXPORT void puna_step(const Model* model, const Step* step) {
    const std::lock_guard<std::mutex> lock(step_mutex());
    Pool& pool = pool_of(step->num_threads);
    Work work(*model, *step, &pool);
    pool.run(run, &work);
}

}  // namespace puna
