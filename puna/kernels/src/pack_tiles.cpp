// Stored rows to tiles, as `puna/kernels/tiles.py` defines them.

#include "abi.h"
#include "k_layout.h"
#include "tiles.h"

namespace puna {
namespace {

// What a block of one row holds, in the terms of a kind of tile.
struct Block {
    uint8_t codes[256];
    uint8_t scales[16], minimums[16];
    uint16_t d, dmin;
};

void nibbles(const uint8_t* low, const uint8_t* high, Block& block) {
    for (int i = 0; i < 16; i++) {
        block.codes[i] = low[i] & 15;
        block.codes[i + 16] = low[i] >> 4;
    }
    for (int i = 0; high && i < 32; i++) block.codes[i] |= (high[i / 8] >> i % 8 & 1) << 4;
}

void read_block(int32_t type, const uint8_t* in, Block& block) {
    std::memset(block.codes, 0, sizeof block.codes);
    switch (type) {
        case Q4_0:
            block.d = load_u16(in);
            return nibbles(in + 2, nullptr, block);
        case Q4_1:
            block.d = load_u16(in), block.dmin = load_u16(in + 2);
            return nibbles(in + 4, nullptr, block);
        case Q5_0:
            block.d = load_u16(in);
            return nibbles(in + 6, in + 2, block);
        case Q5_1:
            block.d = load_u16(in), block.dmin = load_u16(in + 2);
            return nibbles(in + 8, in + 4, block);
        case Q8_0:
            block.d = load_u16(in);
            for (int i = 0; i < 32; i++) block.codes[i] = in[2 + i] ^ 128;
            return;
        case Q2_K:
            for (int i = 0; i < 16; i++) {
                block.scales[i] = in[i] & 15;
                block.minimums[i] = in[i] >> 4;
            }
            unpack<2, 32>(in + 16, 256, 0, block.codes);
            block.d = load_u16(in + 80), block.dmin = load_u16(in + 82);
            return;
        case Q4_K:
        case Q5_K:
            block.d = load_u16(in), block.dmin = load_u16(in + 2);
            unpack_scales(in + 4, block.scales, block.minimums);
            unpack<4, 32>(in + (type == Q4_K ? 16 : 48), 256, 0, block.codes);
            if (type == Q5_K) unpack<1, 32>(in + 16, 256, 4, block.codes);
            return;
        case Q6_K:
            unpack<4, 64>(in, 256, 0, block.codes);
            unpack<2, 32>(in + 128, 256, 4, block.codes);
            std::memcpy(block.scales, in + 192, 16);
            block.d = load_u16(in + 208);
            return;
        default: {  // Q3_K, as Q6_K's tiles: its zero is 4
            std::memset(block.scales, 0, 16);
            unpack<4, 8>(in + 96, 16, 0, block.scales);
            unpack<2, 4>(in + 104, 16, 4, block.scales);
            for (auto& scale : block.scales) scale = uint8_t(scale - 32);
            unpack<2, 32>(in + 32, 256, 0, block.codes);
            unpack<1, 32>(in, 256, 2, block.codes);
            for (auto& code : block.codes) code = uint8_t(code + 28);
            block.d = load_u16(in + 108);
        }
    }
}

// The 32 codes of a row in a group: word j holds columns 4j to 4j + 3.
template <int HIGH>
void place(uint8_t* group, int row, const uint8_t* codes) {
    uint32_t words[8];
    std::memcpy(words, codes, sizeof words);
    const auto store = [&](int line, uint32_t word) {
        std::memcpy(group + 64 * line + 4 * row, &word, sizeof word);
    };
    if constexpr (HIGH == 4) {
        for (int j = 0; j < 8; j++) store(j, words[j]);
        return;
    }
    constexpr uint32_t LOW = 0x0f0f0f0f, HIGHEST = 0x01010101 * ((1 << HIGH) - 1);
    for (int j = 0; j < 4; j++) store(j, (words[j] & LOW) | (words[j + 4] & LOW) << 4);
    for (int plane = 0; plane < HIGH; plane++) {
        uint32_t bits = 0;
        constexpr int EACH = HIGH ? 8 / (HIGH ? HIGH : 1) : 1;  // words whose high bits fill one
        for (int j = 0; j < EACH; j++) {
            bits |= (words[EACH * plane + j] >> 4 & HIGHEST) << HIGH * j;
        }
        store(4 + plane, bits);
    }
}

template <class K>
void place_head(uint8_t* at, int row, const Block& block) {
    store_u16(at + 2 * row, block.d);
    if constexpr (K::MINIMUM) store_u16(at + 32 + 2 * row, block.dmin);
    if constexpr (K::BLOCK == 256) {
        uint8_t* scales = at + (K::MINIMUM ? 64 : 32) + row;
        for (int s = 0; s < 256 / K::SUB; s++) {
            scales[TILE * s] = block.scales[s];
            if constexpr (K::MINIMUM) scales[TILE * (256 / K::SUB + s)] = block.minimums[s];
        }
    }
}

template <class K>
void pack(int32_t type, const uint8_t* in, int64_t rows, int64_t columns, int64_t block_bytes,
          uint8_t* out) {
    const int64_t blocks = columns / K::BLOCK;
    for (int64_t r = 0; r < rows; r++) {
        uint8_t* at = out + r / TILE * blocks * BLOCK_BYTES<K>;
        for (int64_t b = 0; b < blocks; b++, in += block_bytes, at += BLOCK_BYTES<K>) {
            Block block;
            read_block(type, in, block);
            place_head<K>(at, int(r % TILE), block);
            for (int g = 0; g < K::BLOCK / GROUP; g++) {
                uint8_t* group = at + K::HEAD + g * GROUP_BYTES<K::HIGH>;
                place<K::HIGH>(group, int(r % TILE), block.codes + g * GROUP);
            }
        }
    }
}

// A tile at a time, and of it as many columns as stay in the nearest cache.
template <int SIZE>
void transpose(const uint8_t* in, int64_t rows, int64_t columns, uint8_t* out) {
    constexpr int64_t WIDTH = 128;
    for (int64_t top = 0; top < rows; top += TILE) {
        const int64_t height = rows - top < TILE ? rows - top : TILE;
        for (int64_t left = 0; left < columns; left += WIDTH) {
            const int64_t right = left + WIDTH < columns ? left + WIDTH : columns;
            for (int64_t r = 0; r < height; r++) {
                const uint8_t* from = in + (top + r) * columns * SIZE;
                uint8_t* to = out + (top * columns + r) * SIZE;
                for (int64_t k = left; k < right; k++) {
                    std::memcpy(to + k * TILE * SIZE, from + k * SIZE, SIZE);
                }
            }
        }
    }
}

}  // namespace

// Bytes of one tile of a kind with so many columns.
PUNA_EXPORT int64_t puna_tile_bytes(int32_t kind, int64_t columns) {
    if (kind <= BF16) return columns * (kind == F32 ? 64 : 32);
    int64_t bytes = 0;
    with_kind(kind, [&]<class K>() { bytes = columns / K::BLOCK * BLOCK_BYTES<K>; });
    return bytes;
}

// Rows of a block type to tiles; what lacks to the last tile must be zeros before. `type` is the
// kind, or -1 for Q3_K.
PUNA_EXPORT void puna_pack_blocks(int32_t type, const uint8_t* in, int64_t rows, int64_t columns,
                                  int64_t block_bytes, uint8_t* out) {
    with_kind(type < 0 ? int32_t(Q6_K) : type,
              [&]<class K>() { pack<K>(type, in, rows, columns, block_bytes, out); });
}

// Rows of numbers of 2 or 4 bytes to tiles; what lacks to the last tile must be zeros before.
PUNA_EXPORT void puna_pack_numbers(int32_t size, const uint8_t* in, int64_t rows, int64_t columns,
                                   uint8_t* out) {
    (size == 2 ? transpose<2> : transpose<4>)(in, rows, columns, out);
}

// Integers in groups to tiles: a byte each, and f16 scales and uint8 zeros (rows, groups) of
// `group_size` columns, a multiple of 32.
PUNA_EXPORT void puna_pack_grouped(int32_t kind, const uint8_t* codes, const uint8_t* scales,
                                   const uint8_t* zeros, int64_t rows, int64_t columns,
                                   int64_t group_size, uint8_t* out) {
    const int64_t groups = (columns + group_size - 1) / group_size;
    with_kind(kind, [&]<class K>() {
        for (int64_t r = 0; r < rows; r++) {
            const int row = int(r % TILE);
            uint8_t* at = out + r / TILE * (columns / GROUP) * BLOCK_BYTES<K>;
            for (int64_t k = 0; k < columns; k += GROUP, at += BLOCK_BYTES<K>) {
                const int64_t group = r * groups + k / group_size;
                std::memcpy(at + 2 * row, scales + 2 * group, 2);
                if constexpr (K::HEAD == 32 + TILE) at[32 + row] = zeros[group];
                place<K::HIGH>(at + K::HEAD, row, codes + r * columns + k);
            }
        }
    });
}

}  // namespace puna
