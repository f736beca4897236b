// What one step is given, and where its intermediate results lie.
#pragma once

#include <algorithm>

#include "choose.h"
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
    const uint8_t* embeddings;  // (vocab_size, row_bytes), as stored: rows of num_blocks blocks
    int64_t row_bytes, num_blocks;
    void (*dequantize)(const uint8_t* blocks, int64_t num_blocks, float* out);
};

struct Step {
    int32_t num_rows, num_outputs, num_draws, table_width, num_threads, padding;
    const int32_t* tokens;     // (rows)
    const int32_t* positions;  // (rows)
    const int32_t* sequences;  // (rows)
    const int32_t* tables;     // (sequences, table_width)
    const int32_t* outputs;    // (outputs)
    const Draw* draws;         // (outputs), those without have 0 for vocab_size
    int32_t* chosen;           // (outputs), the tokens that are drawn, else -1
    float* logits;             // (outputs - draws, vocab_size)
    uint8_t* workspace;
    const LowRank* const* adapters;  // (sequences), null without one; null where none has one
    const float* added;              // (rows, dim), to embeddings; null where nothing is
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
    float *x, *normed, *q, *k, *v, *attended, *hidden, *low, *scores;
    float* drawn;   // (draws, vocab_size), logits that stay here
    float** found;  // (outputs), where the logits of each go
    Group* groups;
    uint8_t* scratch;  // of each thread: scratch_bytes
    int64_t num_scores, scratch_bytes, bytes;

    Work(const Model& m, const Step& s, Pool* pool) : m(m), s(s), pool(pool) {
        const int64_t rows = s.num_rows;
        Space space{s.workspace};
        wide = padded(m.dim > m.ffn_dim ? m.dim : m.ffn_dim, GROUP);
        head_stride = padded(m.head_dim, TILE);
        num_scores = int64_t(s.table_width) * TILE;
        x = space.take<float>(rows * m.dim);
        normed = space.take<float>(rows * wide);
        q = space.take<float>(rows * padded(m.dim, TILE));
        k = space.take<float>(rows * padded(int64_t(m.num_kv_heads) * m.head_dim, TILE));
        v = space.take<float>(rows * padded(int64_t(m.num_kv_heads) * m.head_dim, TILE));
        attended = space.take<float>(rows * wide);
        hidden = space.take<float>(rows * wide);
        low = space.take<float>(rows * LOW_RANKS * padded(s.rank, TILE));
        scores = space.take<float>(num_scores * s.num_threads);
        groups = space.take<Group>(rows * wide / GROUP);
        found = space.take<float*>(s.num_outputs);
        drawn = space.take<float>(int64_t(s.num_draws) * m.vocab_size);
        scratch_bytes = panel_bytes(rows);
        if (s.num_draws) scratch_bytes = std::max(scratch_bytes, choose_bytes(m.vocab_size));
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
