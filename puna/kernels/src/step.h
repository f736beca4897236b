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
    uint8_t* keys;  // (layers, pages, kv heads) of what `kv_types.h` lays out
    uint8_t* values;
    int64_t num_pages;
    int32_t kv_type, padding;
    const uint8_t* embeddings;  // (vocab_size, row_bytes), as stored: rows of num_blocks blocks
    int64_t row_bytes, num_blocks;
    void (*dequantize)(const uint8_t* blocks, int64_t num_blocks, float* out);
};

struct Step {
    int32_t num_rows, num_outputs, num_draws, table_width, num_threads, num_hidden;
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
    const int32_t* hidden;           // (hidden), rows whose state is wanted
    float* states;                   // (hidden, dim), after the last norm
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

constexpr int SPAN = 256;    // positions that attention sums up together
constexpr int QUERIES = 64;  // that are taken through pages together

// Rows of one sequence, one after another.
struct Run {
    int first, count;
    int64_t length, work;  // positions that any looks at, that each looks at in sum
};

template <class Call>
inline void for_runs(const Model& m, const Step& s, Call&& call) {
    const int group = m.num_heads / m.num_kv_heads, most = group < QUERIES ? QUERIES / group : 1;
    for (int row = 0; row < s.num_rows;) {
        Run run{row, 0, 0, 0};
        for (; row < s.num_rows && row - run.first < most; row++) {
            if (s.sequences[row] != s.sequences[run.first]) break;
            const int64_t length = s.positions[row] + 1;
            run.length = length > run.length ? length : run.length;
            run.work += length;
        }
        run.count = row - run.first;
        call(run);
    }
}

// Where attention keeps what it computes; all of it but `whole` is there for each thread.
struct AttentionSpace {
    float *packed, *scores, *parts, *states, *whole;
    int64_t* lengths;
    int64_t num_heads, head_dim, most, part_floats, spans;
    bool split;  // whether threads share the spans of a head, so that there is work for all

    AttentionSpace(const Model& m, const Step& s, Space& space)
        : num_heads(m.num_heads), head_dim(m.head_dim) {
        const int64_t group = m.num_heads / m.num_kv_heads, threads = s.num_threads;
        most = group > QUERIES ? group : QUERIES;
        part_floats = padded(m.head_dim, TILE) + TILE;
        spans = (int64_t(s.table_width) * TILE + SPAN - 1) / SPAN;
        int64_t items = 0;
        for_runs(m, s, [&](const Run&) { items += m.num_kv_heads; });
        split = spans > 1 && threads > 1 && items < 2 * threads;
        packed = space.take<float>(threads * most * head_dim);
        scores = space.take<float>(threads * 8 * SPAN);
        parts = space.take<float>(threads * 8 * part_floats);
        states = space.take<float>(threads * most * part_floats);
        lengths = space.take<int64_t>(threads * most);
        whole = space.take<float>(split ? s.num_rows * num_heads * spans * part_floats : 0);
    }

    AttentionSpace of_thread(int64_t thread) const {
        AttentionSpace own = *this;
        own.packed += thread * most * head_dim;
        own.scores += thread * 8 * SPAN;
        own.parts += thread * 8 * part_floats;
        own.states += thread * most * part_floats;
        own.lengths += thread * most;
        return own;
    }

    float* split_part(int64_t row, int64_t head, int64_t span) const {
        return whole + ((row * num_heads + head) * spans + span) * part_floats;
    }
};

struct Work {
    const Model& m;
    const Step& s;
    Pool* pool;
    int64_t wide, head_stride;  // floats of a row of activations, of a head
    float *x, *normed, *q, *k, *v, *attended, *hidden, *low;
    float* drawn;   // (draws, vocab_size), logits that stay here
    float** found;  // (outputs), where the logits of each go
    Group* groups;
    uint8_t* scratch;  // of each thread: scratch_bytes
    Space space;
    AttentionSpace attention;
    int64_t scratch_bytes, bytes;

    Work(const Model& m, const Step& s, Pool* pool)
        : m(m), s(s), pool(pool), space{s.workspace}, attention(m, s, space) {
        const int64_t rows = s.num_rows;
        wide = padded(m.dim > m.ffn_dim ? m.dim : m.ffn_dim, GROUP);
        head_stride = padded(m.head_dim, TILE);
        x = space.take<float>(rows * m.dim);
        normed = space.take<float>(rows * wide);
        q = space.take<float>(rows * padded(m.dim, TILE));
        k = space.take<float>(rows * padded(int64_t(m.num_kv_heads) * m.head_dim, TILE));
        v = space.take<float>(rows * padded(int64_t(m.num_kv_heads) * m.head_dim, TILE));
        attended = space.take<float>(rows * wide);
        hidden = space.take<float>(rows * wide);
        low = space.take<float>(rows * LOW_RANKS * padded(s.rank, TILE));
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
