#include "choose.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "abi.h"
#include "registers.h"

namespace puna {
namespace {

typedef double Doubles __attribute__((vector_size(WIDTH * 4)));
typedef int64_t Longs __attribute__((vector_size(WIDTH * 4)));
constexpr int64_t LANES = WIDTH / 2;
constexpr int64_t BLOCK = 16;  // logits of which the highest is found first

// e to the x, for x up to 0, within 3e-16 of it. Without fma: the same on any processor.
Doubles exponential(Doubles x) {
    const Longs none = x < -745.2;
    x = none ? Doubles{} - 745.2 : x;
    const Doubles n = (x * 0x1.71547652b82fep0 + 0x1.8p52) - 0x1.8p52;
    const Doubles r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    Doubles p = Doubles{} + 1.0 / 6227020800;
    for (const double c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                           1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5,
                           1.0, 1.0}) {
        p = p * r + c;
    }
    // In two steps: the smallest results are below what one power of 2 reaches.
    const auto power = [](Doubles i) { return (Doubles)(((Longs)(i + 0x1.8p52) + 1023) << 52); };
    const Doubles first = n > -600.0 ? n : Doubles{} - 600.0;
    return none ? Doubles{} : p * power(first) * power(n - first);
}

// The highest of the logits; NaN if one is.
float highest(const float* logits, int64_t size) {
    Lanes most = fill(-std::numeric_limits<float>::infinity());
    IntLanes nan = {};
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH) {
        const Lanes v = load(logits + i);
        most = larger(v, most);
        nan |= v != v;
    }
    float found = -std::numeric_limits<float>::infinity();
    bool is_nan = false;
    const auto take = [&](float value) {
        found = std::max(found, value);
        is_nan |= value != value;
    };
    for (; i < size; i++) take(logits[i]);
    for (int lane = 0; lane < WIDTH; lane++) {
        take(most[lane]);
        is_nan |= nan[lane] != 0;
    }
    return is_nan ? std::numeric_limits<float>::quiet_NaN() : found;
}

// By weight: a power of 2 has 32 buckets, and what is below 2 ** -64 is all in the last.
constexpr int64_t BUCKETS = 2048;

int64_t bucket(double weight) {
    const int64_t below = std::bit_cast<int64_t>(1.0) - std::bit_cast<int64_t>(weight);
    return std::min(below >> 47, BUCKETS - 1);
}

struct Entry {
    double value;
    int32_t id;

    bool operator<(const Entry& other) const {  // the higher first; of equals the lower id
        return value > other.value || (value == other.value && id < other.id);
    }
};

// Tokens that may still be chosen, by id: first with their logits, then with their weights.
struct Candidates {
    double* values;
    int32_t* ids;
    Entry* entries;  // to be put in another order
    float* most;     // of blocks of logits
    int64_t count = 0;

    template <class Keep>
    void keep(Keep keep) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++) {
            const Entry entry{values[i], ids[i]};
            values[kept] = entry.value;
            ids[kept] = entry.id;
            kept += keep(entry);
        }
        count = kept;
    }

    void keep_highest(int64_t number) {
        if (number >= count) return;
        for (int64_t i = 0; i < count; i++) entries[i] = {values[i], ids[i]};
        std::nth_element(entries, entries + number - 1, entries + count);
        const Entry last = entries[number - 1];
        keep([&](const Entry& entry) { return !(last < entry); });
    }

    // Keeps the highest, up to and including the one with which they reach `mass`. Only those are
    // put in order that weigh about as much as that one.
    void keep_reaching(double mass) {
        double masses[BUCKETS] = {};
        for (int64_t i = 0; i < count; i++) masses[bucket(values[i])] += values[i];
        int64_t around = 0, number = 0;
        double before = 0;
        while (around < BUCKETS - 1 && before + masses[around] < mass) before += masses[around++];
        for (int64_t i = 0; i < count; i++) {
            entries[number] = {values[i], ids[i]};
            number += bucket(values[i]) == around;
        }
        if (number == 0) return;  // rounded, all together are less
        int64_t begin = 0, end = number;  // its place is between; `before` is summed up before it
        while (begin < end) {
            const int64_t middle = begin + (end - begin) / 2;
            std::nth_element(entries + begin, entries + middle, entries + end);
            double sum = before;
            for (int64_t i = begin; i <= middle; i++) sum += entries[i].value;
            if (sum >= mass) {
                end = middle;
            } else {
                before = sum;
                begin = middle + 1;
            }
        }
        const Entry last = entries[std::min(begin, number - 1)];
        keep([&](const Entry& entry) { return !(last < entry); });
    }

    double total() const {
        Doubles sums = {};
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) sums += bits_at<Doubles>(values + i);
        for (; i < count; i++) sums[0] += values[i];
        double sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
        return sum;
    }
};

// A logit that at least `number` reach: that many blocks have one.
float bound_of_highest(const float* logits, int64_t size, int64_t number, float* most) {
    const int64_t blocks = size / (BLOCK * WIDTH) * WIDTH;
    if (number > blocks) return -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < blocks; i += WIDTH) {
        const float* at = logits + i * BLOCK;
        Lanes found = load(at);
        for (int j = 1; j < BLOCK; j++) found = larger(load(at + j * WIDTH), found);
        store(most + i, found);
    }
    std::nth_element(most, most + number - 1, most + blocks, std::greater<float>());
    return most[number - 1];
}

Candidates candidates(int64_t size, uint8_t* scratch) {
    const int64_t padded = (size + BLOCK - 1) / BLOCK * BLOCK;
    Candidates found{};
    found.values = reinterpret_cast<double*>(scratch);
    found.entries = reinterpret_cast<Entry*>(found.values + padded);
    found.ids = reinterpret_cast<int32_t*>(found.entries + padded);
    found.most = reinterpret_cast<float*>(found.ids + padded);
    return found;
}

}  // namespace

int64_t choose_bytes(int64_t vocab_size) {
    const int64_t padded = (vocab_size + BLOCK - 1) / BLOCK * BLOCK;
    return padded * int64_t(sizeof(double) + sizeof(Entry) + sizeof(int32_t) + sizeof(float));
}

int32_t choose(const float* logits, const Draw& draw, uint8_t* scratch) {
    const int64_t size = draw.vocab_size;
    const float peak = highest(logits, size);
    if (!std::isfinite(peak)) return -1;
    if (draw.temperature == 0) return int32_t(std::find(logits, logits + size, peak) - logits);

    // What is lighter than min-p, or than any weight, is not looked at; -1 is for rounding.
    Candidates c = candidates(size, scratch);
    const double least = std::max(draw.min_p, std::numeric_limits<double>::denorm_min());
    double bound = peak + draw.temperature * (std::log(least) - 1);
    const bool cuts = draw.top_k > 0 && draw.top_k < size;
    if (cuts) {
        bound = std::max<double>(bound, bound_of_highest(logits, size, draw.top_k, c.most));
    }
    for (int32_t i = 0; i < size; i++) {
        c.values[c.count] = logits[i];
        c.ids[c.count] = i;
        c.count += c.values[c.count] >= bound;
    }
    if (cuts) c.keep_highest(draw.top_k);

    for (int64_t i = 0; i < c.count; i += LANES) {
        const Doubles x = bits_at<Doubles>(c.values + i);
        const Doubles weights = exponential((x - double(peak)) / draw.temperature);
        std::memcpy(c.values + i, &weights, sizeof weights);
    }
    if (draw.min_p > 0) c.keep([&](const Entry& e) { return e.value >= draw.min_p; });
    if (draw.top_p < 1) {
        const double total = c.total();
        // All that are lighter weigh less than 1 - p together; half of that is for rounding.
        const double light = 0.5 * (1 - draw.top_p) * total / double(c.count);
        c.keep([&](const Entry& e) { return e.value >= light; });
        c.keep_reaching(draw.top_p * total);
    }
    double mass = 0;
    for (int64_t i = 0; i < c.count; i++) c.values[i] = mass += c.values[i];
    const double* place = std::upper_bound(c.values, c.values + c.count, draw.uniform * mass);
    return c.ids[place - c.values];
}

PUNA_EXPORT int32_t puna_choose(const float* logits, const Draw* draw) {
    const std::unique_ptr<Doubles[]> scratch(
        new Doubles[size_t(choose_bytes(draw->vocab_size)) / sizeof(Doubles)]);
    return choose(logits, *draw, reinterpret_cast<uint8_t*>(scratch.get()));
}

}  // namespace puna
