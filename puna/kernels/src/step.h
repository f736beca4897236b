// What one step is given, and where its intermediate results lie.
#pragma once

#include "multiply.h"
#include "pool.h"

namespace puna {

struct LowRank;  // lora.h

constexpr int LOW_RANKS = 3;  // matrices that share their input, at most

struct Layer {
    const float* attention_norm;
    const float* ffn_norm;
    Matrix wq, wk, wv, wo, w1, w2, w3;
    // Which column each of the inputs is, of the matrices of a kind (null: its own); for weights
    // that were quantized in order of activation.
    const int32_t *attention_order, *wo_order, *ffn_order, *w2_order;
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
    const LowRank* const* adapters;  // (sequences), null without one; null where none has one
    int64_t rank;                    // the largest of these adapters
};

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
    float *normed, *q, *k, *v, *attended, *hidden, *low, *scores;
    Group* groups;
    uint8_t* scratch;  // of each thread: scratch_bytes
    int64_t num_scores, scratch_bytes, bytes;

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
        low = space.take<float>(rows * LOW_RANKS * padded(s.rank, TILE));
        scores = space.take<float>(num_scores * s.num_threads);
        groups = space.take<Group>(rows * wide / GROUP);
        scratch_bytes = panel_bytes(rows);
        scratch = space.take<uint8_t>(scratch_bytes * s.num_threads);
        bytes = space.used;
    }
};

// The part of `count` things that is this thread's.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int thread, int threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

}  // namespace puna
