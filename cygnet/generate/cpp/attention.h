// What queries read from keys and values.

#pragma once

#include "numbers.h"

namespace {

// Products of 16 columns of words with ROWS queries, each into 16 floats.
template <int ROWS, class T>
void multiply_columns(const uint32_t* columns, int64_t width, const T* queries, int64_t stride,
                      float* out, int64_t out_stride) {
    Floats even[ROWS] = {}, odd[ROWS] = {};  // two, for the next need not wait for the last
    const auto add = [&](Floats(&sum)[ROWS], int64_t at) {
        const Words words = load<Words>(columns + at * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const auto* query = (const uint32_t*)(queries + r * stride);
            sum[r] = multiply_add_words<T>(sum[r], words, query[at]);
        }
    };
    int64_t at = 0;
    for (; at + 2 <= width; at += 2) add(even, at), add(odd, at + 1);
    if (at < width) add(even, at);
    for (int r = 0; r < ROWS; r++) {
        const Floats sum = even[r] + odd[r];
        std::memcpy(out + r * out_stride, &sum, sizeof(sum));
    }
}

// sum over positions of weight * value, for HEADS queries and VECTORS vectors of the head.
template <int HEADS, int VECTORS, class T>
void weigh_vectors(const T* weights, int64_t stride, const T* values, int64_t head_size,
                   int64_t length, float* out) {
    Floats sum[HEADS][VECTORS] = {};
    for (int64_t position = 0; position < length; position++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const Floats value = wide(values + position * head_size + v * LANES);
#pragma GCC unroll 4
            for (int g = 0; g < HEADS; g++) sum[g][v] += to_float(weights[g * stride + position]) * value;
        }
    }
    for (int g = 0; g < HEADS; g++) std::memcpy(out + g * head_size, sum[g], sizeof(sum[g]));
}

// Weigh as far as whole groups of vectors go; return how much of the head that is.
template <int HEADS, class T>
int64_t weigh_whole(const T* weights, int64_t stride, const T* values, int64_t head_size,
                    int64_t length, float* out) {
    int64_t h = 0;
    for (; h + 4 * LANES <= head_size; h += 4 * LANES)
        weigh_vectors<HEADS, 4, T>(weights, stride, values + h, head_size, length, out + h);
    for (; h + LANES <= head_size; h += LANES)
        weigh_vectors<HEADS, 1, T>(weights, stride, values + h, head_size, length, out + h);
    return h;
}

#ifdef BF16_INSTRUCTIONS
// Two positions at a time.
template <int HEADS, int PAIRS>
void weigh_pairs(const bf16* weights, int64_t stride, const bf16* values, int64_t head_size,
                 int64_t length, float* out) {
    __m512 sum[HEADS][PAIRS][2] = {};
    const auto add = [&](int64_t position, bool has_second) {
        __m512bh both[HEADS];
#pragma GCC unroll 4
        for (int g = 0; g < HEADS; g++) {
            const bf16* at = weights + g * stride + position;
            both[g] = (__m512bh)_mm512_set1_epi32(has_second ? load<uint32_t>(at) : *at);
        }
#pragma GCC unroll 2
        for (int v = 0; v < PAIRS; v++) {
            const bf16* from = values + position * head_size + v * STEP;
            const __m512i a = _mm512_loadu_si512(from);
            const __m512i b =
                has_second ? _mm512_loadu_si512(from + head_size) : _mm512_setzero_si512();
            const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(a, b);
            const __m512bh high = (__m512bh)_mm512_unpackhi_epi16(a, b);
#pragma GCC unroll 4
            for (int g = 0; g < HEADS; g++) {
                sum[g][v][0] = _mm512_dpbf16_ps(sum[g][v][0], low, both[g]);
                sum[g][v][1] = _mm512_dpbf16_ps(sum[g][v][1], high, both[g]);
            }
        }
    };
    int64_t position = 0;
    for (; position + 2 <= length; position += 2) add(position, true);
    if (position < length) add(position, false);
    for (int g = 0; g < HEADS; g++)
        for (int v = 0; v < PAIRS; v++)
            for (int i = 0; i < STEP; i++)  // the order in which unpacking leaves them
                out[g * head_size + v * STEP + i] =
                    ((const float*)&sum[g][v][i / 4 % 2])[i / 8 * 4 + i % 4];
}

template <int HEADS>
int64_t weigh_whole(const bf16* weights, int64_t stride, const bf16* values, int64_t head_size,
                    int64_t length, float* out) {
    int64_t h = 0;
    for (; h + 2 * STEP <= head_size; h += 2 * STEP)
        weigh_pairs<HEADS, 2>(weights, stride, values + h, head_size, length, out + h);
    for (; h + STEP <= head_size; h += STEP)
        weigh_pairs<HEADS, 1>(weights, stride, values + h, head_size, length, out + h);
    return h;
}
#endif

}  // namespace
