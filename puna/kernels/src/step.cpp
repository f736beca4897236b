// A whole forward pass over the rows of a batch, in one parallel region.

#include "abi.h"
#include "activations.h"
#include "attention.h"
#include "lora.h"

namespace puna {
namespace {

void embed(const Work& w, int thread) {
    const Share own(w.s.num_rows, thread, w.s.num_threads);
    for (int64_t r = own.begin; r < own.end; r++) {
        const uint8_t* stored = w.m.embeddings + w.s.tokens[r] * w.m.row_bytes;
        float* x = w.x + r * w.m.dim;
        w.m.dequantize(stored, w.m.num_blocks, x);
        if (w.s.added == nullptr || w.s.adapters[w.s.sequences[r]] == nullptr) continue;
        for (int64_t i = 0; i < w.m.dim; i++) x[i] += w.s.added[r * w.m.dim + i];
    }
    w.pool->barrier();
}

void project_heads(const Work& w, int thread, const Layer& layer) {
    const Matrix* matrices[3] = {&layer.wq, &layer.wk, &layer.wv};
    float* outs[3] = {w.q, w.k, w.v};
    const Rows x = rows_of(w, thread, w.m.dim, w.s.num_rows);
    const Additions added(w, thread, pairs_of(w, layer) + WQ, 3, x);
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
            keep(outs[i] + row * stride, m, first, added(i, row, first, values));
        });
        before += m.num_tiles();
    }
    w.pool->barrier();
}

void project_back(const Work& w, int thread, const Matrix& m, int64_t pair) {
    const Share own(m.num_tiles(), thread, w.s.num_threads);
    const Rows x = rows_of(w, thread, m.columns, w.s.num_rows);
    const Additions added(w, thread, pair, 1, x);
    multiply(m, own.begin, own.end, x, [&](int row, int64_t first, Floats values) {
        add(w.x + int64_t(row) * w.m.dim, m, first, added(0, row, first, values));
    });
    w.pool->barrier();
}

void gate(const Work& w, int thread, const Layer& layer) {
    const Rows x = rows_of(w, thread, w.m.dim, w.s.num_rows);
    const Share own(layer.w1.num_tiles(), thread, w.s.num_threads);
    const Additions added(w, thread, pairs_of(w, layer) + W1, 2, x);
    for (int64_t tile = own.begin; tile < own.end; tile += SIDES) {
        const int64_t end = tile + SIDES < own.end ? tile + SIDES : own.end;
        multiply(layer.w1, tile, end, x, [&](int row, int64_t first, Floats values) {
            values = added(0, row, first, values);
            const Floats silu = values / (1.0f + exponential(-values));
            keep(w.hidden + row * w.wide, layer.w1, first, silu);
        });
        multiply(layer.w3, tile, end, x, [&](int row, int64_t first, Floats values) {
            float* out = w.hidden + row * w.wide;  // its padding is never read
            values = added(1, row, first, values);
            keep(out, layer.w3, first, load_floats(out + first) * values);
        });
    }
    w.pool->barrier();
}

void place_states(const Work& w, int thread) {
    const Share own(w.s.num_hidden, thread, w.s.num_threads);
    for (int64_t i = own.begin; i < own.end; i++) {
        const float* x = w.x + w.s.hidden[i] * int64_t(w.m.dim);
        const float scale = inverse_rms(x, w.m.dim, w.m.eps);
        for (int64_t k = 0; k < w.m.dim; k++) {
            w.s.states[i * w.m.dim + k] = x[k] * scale * w.m.norm[k];
        }
    }
}

void find_logits(const Work& w, int thread) {
    const Matrix& m = w.m.output;
    const Share own(m.num_tiles(), thread, w.s.num_threads);
    const Rows x = rows_of(w, thread, w.m.dim, w.s.num_outputs);
    const Additions added(w, thread, w.m.num_layers * PAIRS_PER_LAYER, 1, x, w.s.outputs);
    multiply(m, own.begin, own.end, x, [&](int row, int64_t first, Floats values) {
        keep(w.found[row], m, first, added(0, row, first, values));
    });
}

void draw_tokens(const Work& w, int thread) {
    if (w.s.num_draws == 0) return;
    w.pool->barrier();
    const Share own(w.s.num_outputs, thread, w.s.num_threads);
    for (int64_t i = own.begin; i < own.end; i++) {
        if (w.s.draws[i].vocab_size == 0) continue;
        w.s.chosen[i] = choose(w.found[i], w.s.draws[i], w.scratch + thread * w.scratch_bytes);
    }
}

// The logits of outputs with a draw stay in the workspace.
void place_logits(const Work& w) {
    int64_t num_drawn = 0;
    for (int64_t i = 0; i < w.s.num_outputs; i++) {
        const bool is_drawn = w.s.draws[i].vocab_size > 0;
        w.found[i] = (is_drawn ? w.drawn + num_drawn * w.m.vocab_size
                               : w.s.logits + (i - num_drawn) * w.m.vocab_size);
        num_drawn += is_drawn;
        w.s.chosen[i] = -1;
    }
}

void run(void* argument, int thread) {
    const Work& w = *static_cast<const Work*>(argument);
    const Model& m = w.m;
    const Step& s = w.s;
    embed(w, thread);
    for (int64_t i = 0; i < m.num_layers; i++) {
        const Layer& l = m.layers[i];
        const Source normed{w.x, m.dim, m.dim, l.attention_norm, l.attention_order, nullptr};
        prepare(w, thread, normed, s.num_rows);
        project_heads(w, thread, l);
        with_kv_type(m.kv_type, [&]<class T>() {
            place_heads<T>(w, thread, i);
            attend<T>(w, thread, i);
        });
        prepare(w, thread, {w.attended, w.wide, m.dim, nullptr, l.wo_order, nullptr}, s.num_rows);
        project_back(w, thread, l.wo, pairs_of(w, l) + WO);
        prepare(w, thread, {w.x, m.dim, m.dim, l.ffn_norm, l.ffn_order, nullptr}, s.num_rows);
        gate(w, thread, l);
        prepare(w, thread, {w.hidden, w.wide, m.ffn_dim, nullptr, l.w2_order, nullptr}, s.num_rows);
        project_back(w, thread, l.w2, pairs_of(w, l) + W2);
    }
    place_states(w, thread);
    if (s.num_outputs == 0) return;
    prepare(w, thread, {w.x, m.dim, m.dim, m.norm, nullptr, s.outputs}, s.num_outputs);
    find_logits(w, thread);
    draw_tokens(w, thread);
}

}  // namespace

PUNA_EXPORT int64_t puna_workspace_bytes(const Model* model, const Step* step) {
    return Work(*model, *step, nullptr).bytes;
}

PUNA_EXPORT void puna_step(const Model* model, const Step* step) {
    const std::lock_guard<std::mutex> lock(step_mutex());
    Pool& pool = pool_of(step->num_threads);
    Work work(*model, *step, &pool);
    place_logits(work);
    pool.run(run, &work);
}

}  // namespace puna
