// Calls a library of native code as a file says: driver LIBRARY INPUT OUTPUT.
//
// The input is a row of commands: an int32, then what it takes (see `COMMANDS` in test_aarch64.py).
// Arrays come as an int64 of their bytes, then these. What the functions give is the output.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "step.h"

namespace {

using puna::Layer, puna::Matrix, puna::Model, puna::Step;

void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

void* library;

template <class Function>
Function* find(const std::string& name) {
    void* found = dlsym(library, name.c_str());
    if (!found) fail(dlerror());
    return reinterpret_cast<Function*>(found);
}

FILE *input, *output;

template <class T>
T take() {
    T value;
    if (std::fread(&value, sizeof value, 1, input) != 1) fail("the input ends too early");
    return value;
}

int32_t number() { return take<int32_t>(); }

// Arrays stay: matrices and steps point at them.
template <class T>
T* array() {
    const auto bytes = size_t(take<int64_t>());
    void* at = std::aligned_alloc(64, bytes / 64 * 64 + 64);
    if (std::fread(at, 1, bytes, input) != bytes) fail("the input ends too early");
    return static_cast<T*>(at);
}

template <class T>
T* zeros(int64_t count) {
    const size_t bytes = size_t(count) * sizeof(T) / 64 * 64 + 64;
    return static_cast<T*>(std::memset(std::aligned_alloc(64, bytes), 0, bytes));
}

std::string text() {
    const auto bytes = size_t(take<int64_t>());
    std::string found(bytes, ' ');
    if (std::fread(found.data(), 1, bytes, input) != bytes) fail("the input ends too early");
    return found;
}

void give(const void* at, int64_t bytes) { std::fwrite(at, 1, size_t(bytes), output); }

void tell() {
    const int32_t level = find<int()>("puna_level")();
    give(&level, 4);
    const std::string digest = find<const char*()>("puna_digest")();
    give(digest.data(), int64_t(digest.size()));
}

void dequantize() {
    auto* function = find<void(const uint8_t*, int64_t, float*)>("puna_dequantize_" + text());
    const int64_t blocks = number(), size = number();
    float* out = zeros<float>(blocks * size);
    function(array<uint8_t>(), blocks, out);
    give(out, blocks * size * 4);
}

void quantize() {
    auto* function = find<void(const float*, int64_t, int64_t, const float*, uint8_t*)>(
        "puna_quantize_" + text());
    const int64_t rows = number(), length = number(), row_bytes = number();
    const float* x = array<float>();
    const float* importance = number() ? array<float>() : nullptr;
    auto* out = zeros<uint8_t>(rows * row_bytes);
    function(x, rows, length, importance, out);
    give(out, rows * row_bytes);
}

void largest() {
    const int64_t count = number();
    const uint32_t bits = find<uint32_t(const uint32_t*, int64_t)>("puna_largest")(
        array<uint32_t>(), count);
    give(&bits, 4);
}

Matrix matrix() {
    const int32_t type = number(), rows = number(), columns = number(), block_bytes = number();
    const int32_t kind = type < 0 ? int32_t(puna::Q6_K) : type;
    const auto* stored = array<uint8_t>();
    const int64_t bytes = find<int64_t(int32_t, int64_t)>("puna_tile_bytes")(kind, columns);
    auto* tiles = zeros<uint8_t>(bytes * ((rows + puna::TILE - 1) / puna::TILE));
    if (kind <= puna::BF16) {
        find<void(int32_t, const uint8_t*, int64_t, int64_t, uint8_t*)>("puna_pack_numbers")(
            kind == puna::F32 ? 4 : 2, stored, rows, columns, tiles);
    } else {
        find<void(int32_t, const uint8_t*, int64_t, int64_t, int64_t, uint8_t*)>(
            "puna_pack_blocks")(type, stored, rows, columns, block_bytes, tiles);
    }
    return {.tiles = tiles, .kind = kind, .rows = rows, .columns = columns};
}

// A model, then steps that share its pages.
void steps() {
    const int32_t num_layers = number(), dim = number(), num_heads = number();
    const int32_t num_kv_heads = number(), head_dim = number(), ffn_dim = number();
    const int32_t vocab_size = number(), num_pages = number();
    const int32_t kv_type = number(), key_bytes = number(), value_bytes = number();
    const float eps = take<float>();
    std::vector<Layer> layers;
    for (int i = 0; i < num_layers; i++) {
        layers.push_back({.attention_norm = array<float>(),
                          .ffn_norm = array<float>(),
                          .wq = matrix(),
                          .wk = matrix(),
                          .wv = matrix(),
                          .wo = matrix(),
                          .w1 = matrix(),
                          .w2 = matrix(),
                          .w3 = matrix()});
    }
    const int64_t heads = int64_t(num_layers) * num_pages * num_kv_heads;
    const Model model = {.num_layers = num_layers,
                         .dim = dim,
                         .num_heads = num_heads,
                         .num_kv_heads = num_kv_heads,
                         .head_dim = head_dim,
                         .ffn_dim = ffn_dim,
                         .vocab_size = vocab_size,
                         .eps = eps,
                         .layers = layers.data(),
                         .norm = array<float>(),
                         .output = matrix(),
                         .cosines = array<float>(),
                         .sines = array<float>(),
                         .keys = zeros<uint8_t>(heads * key_bytes),
                         .values = zeros<uint8_t>(heads * value_bytes),
                         .num_pages = num_pages,
                         .kv_type = kv_type,
                         .embeddings = array<uint8_t>(),
                         .row_bytes = number(),
                         .num_blocks = number(),
                         .dequantize = find<void(const uint8_t*, int64_t, float*)>(
                             "puna_dequantize_" + text())};
    for (int left = number(); left > 0; left--) {
        const int32_t num_rows = number(), num_outputs = number();
        const int32_t table_width = number(), num_threads = number();
        float* logits = zeros<float>(int64_t(num_outputs) * vocab_size);
        Step step = {.num_rows = num_rows,
                     .num_outputs = num_outputs,
                     .num_draws = 0,
                     .table_width = table_width,
                     .num_threads = num_threads,
                     .tokens = array<int32_t>(),
                     .positions = array<int32_t>(),
                     .sequences = array<int32_t>(),
                     .tables = array<int32_t>(),
                     .outputs = array<int32_t>(),
                     .draws = zeros<puna::Draw>(num_outputs),
                     .chosen = zeros<int32_t>(num_outputs),
                     .logits = logits};
        step.workspace = zeros<uint8_t>(
            find<int64_t(const Model*, const Step*)>("puna_workspace_bytes")(&model, &step));
        find<void(const Model*, const Step*)>("puna_step")(&model, &step);
        give(logits, int64_t(num_outputs) * vocab_size * 4);
    }
}

}  // namespace

int main(int, char** arguments) {
    library = dlopen(arguments[1], RTLD_NOW);
    if (!library) fail(dlerror());
    input = std::fopen(arguments[2], "rb");
    output = std::fopen(arguments[3], "wb");
    if (!input || !output) fail("cannot open the files");
    void (*const commands[])() = {tell, dequantize, quantize, largest, steps};
    for (int command; std::fread(&command, sizeof command, 1, input) == 1;) commands[command]();
    return std::fclose(output);
}
