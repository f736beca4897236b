// Choosing the next token from its logits, as `puna/engine/sampling.py` defines it.
#pragma once

#include <cstdint>

namespace puna {

// How one token is drawn, with a random number in [0, 1). Temperature 0 takes the likeliest; ids
// from `vocab_size` on cannot be chosen.
struct Draw {
    double temperature;
    int64_t top_k;
    double top_p, min_p, uniform;
    int64_t vocab_size;
};

// Bytes that `choose` needs to work in, aligned to 64.
int64_t choose_bytes(int64_t vocab_size);

// The token's id; -1 where the highest of the logits is not finite.
int32_t choose(const float* logits, const Draw& draw, uint8_t* scratch);

}  // namespace puna
