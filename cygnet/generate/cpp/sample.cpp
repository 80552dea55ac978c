// Drawing each row's next token: what `sampling.py` defines, without ordering the vocabulary.
//
// top-k and top-p keep the likeliest tokens. Those are found by sorting probabilities into buckets
// by their leading bits, from which the bucket where the cut falls follows in one walk; only that
// bucket is ordered.

#include <omp.h>

#include <functional>
#include <vector>

#include "numbers.h"

extern "C" {
struct Choice {
    double temperature, top_p, min_p, draw;
    int64_t top_k;
};
}

namespace {

constexpr int BUCKET_BITS = 19;  // of the 31 of a probability's float, those that are left out
constexpr int BUCKETS = 1 << (31 - BUCKET_BITS);

struct Buckets {
    double mass[BUCKETS];
    int64_t count[BUCKETS];
};

int64_t bucket(float probability) {
    uint32_t bits;
    std::memcpy(&bits, &probability, 4);
    return bits >> BUCKET_BITS;
}

// The smallest value of those that `goes_on` takes, from the largest down. It is told how much lies
// above: mass and number of values; asked first for whole buckets, then for values.
template <class GoesOn>
float smallest_kept(const std::vector<float>& p, const Buckets& buckets, GoesOn goes_on) {
    double mass = 0;
    int64_t count = 0, at = BUCKETS - 1;
    // A bucket is kept whole if even its last value would be: if what follows it is.
    for (; at > 0; at--) {
        if (!goes_on(mass + buckets.mass[at], count + buckets.count[at])) break;
        mass += buckets.mass[at];
        count += buckets.count[at];
    }
    std::vector<float> inside;
    for (const float value : p)
        if (bucket(value) == at) inside.push_back(value);
    std::sort(inside.begin(), inside.end(), std::greater<float>());
    float smallest = INFINITY;
    for (const float value : inside) {
        if (!goes_on(mass, count)) break;
        smallest = value;
        mass += value;
        count++;
    }
    if (std::isinf(smallest))  // the cut lies between two buckets
        for (const float value : p)
            if (bucket(value) > at) smallest = std::min(smallest, value);
    return smallest;
}

// The smallest probability that top-k and then top-p keep; the k likeliest count as the whole.
float threshold(const std::vector<float>& p, const Choice& choice, double whole) {
    static thread_local Buckets buckets;
    std::memset(&buckets, 0, sizeof(buckets));
    for (const float value : p) {
        buckets.mass[bucket(value)] += value;
        buckets.count[bucket(value)]++;
    }
    float lowest = 0;
    if (choice.top_k > 0 && choice.top_k < int64_t(p.size())) {
        lowest = smallest_kept(p, buckets, [&](double, int64_t count) { return count < choice.top_k; });
        whole = 0;
        int64_t above = 0;
        for (const float value : p)
            if (value > lowest) whole += value, above++;
        whole += double(lowest) * double(choice.top_k - above);
    }
    if (choice.top_p < 1) {
        const double target = choice.top_p * whole;
        const float nucleus =
            smallest_kept(p, buckets, [&](double mass, int64_t) { return mass < target; });
        lowest = std::max(lowest, nucleus);
    }
    return lowest;
}

// The token, or -1 where the logits are no distribution.
int64_t choose(const float* logits, int64_t size, const Choice& choice) {
    const int64_t likeliest = std::max_element(logits, logits + size) - logits;
    if (!std::isfinite(logits[likeliest])) return -1;
    if (choice.temperature == 0) return likeliest;
    static thread_local std::vector<float> p;
    p.resize(size);
    const double highest = logits[likeliest];
    for (int64_t i = 0; i < size; i++) {
        // Differences are taken first, so that a temperature near zero cannot overflow.
        const float exponent = float((logits[i] - highest) / choice.temperature);
        p[i] = exponent < -87.0f ? 0.0f : exponential(exponent);
    }
    double whole = 0;
    for (int64_t i = 0; i < size; i++) whole += p[i];
    if (!std::isfinite(whole)) return -1;
    float lowest = float(choice.min_p);  // the likeliest has 1
    if (choice.top_p < 1 || choice.top_k > 0)
        lowest = std::max(lowest, threshold(p, choice, whole));
    double kept = 0;
    for (int64_t i = 0; i < size; i++) kept += p[i] >= lowest ? p[i] : 0.0f;
    const double target = choice.draw * kept;
    double sum = 0;
    int64_t last = likeliest;
    for (int64_t i = 0; i < size; i++) {
        if (p[i] < lowest || p[i] == 0) continue;
        sum += p[i];
        last = i;
        if (sum > target) break;
    }
    return last;
}

}  // namespace

// Choose a token for each of `count` rows of float32 logits that lie `stride` apart.
extern "C" void cygnet_sample(const float* logits, int64_t count, int64_t size, int64_t stride,
                              const Choice* choices, int64_t* tokens, int64_t num_threads) {
#pragma omp parallel for num_threads(int(num_threads)) if (count > 1)
    for (int64_t i = 0; i < count; i++) tokens[i] = choose(logits + i * stride, size, choices[i]);
}
