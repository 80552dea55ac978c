// Products of matrices, whole or in 8 or 4 bits, with the inputs of several tokens.

#pragma once

#include <vector>

#include "numbers.h"

extern "C" {
enum Kind : int64_t { FLOAT = 0, INT8 = 1, INT4 = 2 };

struct Matrix {
    Kind kind;
    int64_t outputs, inputs;
    const void* weights;  // (outputs, inputs) of T, int8, or 4 bits
    const float* scale;   // INT8: (outputs); INT4: (outputs, inputs / 32)
    const float* zero;    // INT4: (outputs, inputs / 32)
    const float* bias;    // (outputs), or null
};
}

namespace {

// How a row of a matrix becomes packs.
template <class T>
struct FloatRow {
    const T* weights;
    FloatRow() = default;
    FloatRow(const Matrix& m, int64_t row) : weights((const T*)m.weights + row * m.inputs) {}
    Pack<T> at(int64_t k) const { return pack<T>(weights + k); }
    Pack<T> rest(int64_t k, int64_t count) const {
        T padded[STEP] = {};
        std::memcpy(padded, weights + k, count * sizeof(T));
        return pack<T>(padded);
    }
};

Floats decoded(Bytes codes) {
    return __builtin_convertvector(__builtin_convertvector(codes, Ints), Floats);
}
Floats decoded(SignedBytes codes) {
#ifdef __AVX512F__  // which the compiler does not find by itself
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
#else
    return __builtin_convertvector(__builtin_convertvector(codes, Ints), Floats);
#endif
}

// Codes are whole numbers that bfloat16 holds exactly; `finish` multiplies by the scale.
template <class T>
struct Int8Row {
    const int8_t* codes;
    Int8Row() = default;
    Int8Row(const Matrix& m, int64_t row) : codes((const int8_t*)m.weights + row * m.inputs) {}
    static Pack<T> decode(const int8_t* from) {
        return packed<T>(decoded(load<SignedBytes>(from)), decoded(load<SignedBytes>(from + LANES)));
    }
    Pack<T> at(int64_t k) const { return decode(codes + k); }
    Pack<T> rest(int64_t k, int64_t count) const {
        int8_t padded[STEP] = {};
        std::memcpy(padded, codes + k, count);
        return decode(padded);
    }
};

// Groups of 32 codes in 16 bytes, the first 16 in the low halves; w = code * scale + zero.
template <class T>
struct Int4Row {
    const uint8_t* codes;
    const float *scale, *zero;
    Int4Row() = default;
    Int4Row(const Matrix& m, int64_t row)
        : codes((const uint8_t*)m.weights + row * m.inputs / 2),
          scale(m.scale + row * m.inputs / STEP),
          zero(m.zero + row * m.inputs / STEP) {}
    Pack<T> at(int64_t k) const {
        const Bytes both = load<Bytes>(codes + k / 2);
        const float by = scale[k / STEP], plus = zero[k / STEP];
        return packed<T>(decoded(both & 15) * by + plus, decoded(both >> 4) * by + plus);
    }
    Pack<T> rest(int64_t k, int64_t) const { return at(k); }  // groups are whole
};

// The inputs of ROWS tokens, a step's worth at a time.
template <int ROWS, class T>
struct Inputs {
    const T* x;
    int64_t width;
    void take(int64_t k, Pack<T> (&packs)[ROWS]) const {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) packs[r] = pack<T>(x + r * width + k);
    }
    void take_rest(int64_t k, Pack<T> (&packs)[ROWS]) const {
        for (int r = 0; r < ROWS; r++) {
            T padded[STEP] = {};
            std::memcpy(padded, x + r * width + k, (width - k) * sizeof(T));
            packs[r] = pack<T>(padded);
        }
    }
};

// sum[r * OUTPUTS + o] = row `first + o` of the matrix times input r, still in lanes.
template <class Row, int OUTPUTS, int ROWS, bool HAS_REST, class T>
void multiply_lanes(const Matrix& m, int64_t first, const T* x, Floats* sum) {
    Row rows[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) rows[o] = Row(m, std::min(first + o, m.outputs - 1));
    Floats own[OUTPUTS * ROWS] = {};
    const auto add = [&](const Pack<T>(&packs)[ROWS], auto weights_of) {
#pragma GCC unroll 4
        for (int o = 0; o < OUTPUTS; o++) {
            const Pack<T> weights = weights_of(rows[o]);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
                own[r * OUTPUTS + o] = multiply_add<T>(own[r * OUTPUTS + o], weights, packs[r]);
        }
    };
    const Inputs<ROWS, T> inputs{x, m.inputs};
    const int64_t whole = m.inputs / STEP * STEP;
    Pack<T> packs[ROWS];
    for (int64_t k = 0; k < whole; k += STEP) {
        inputs.take(k, packs);
        add(packs, [&](const Row& row) { return row.at(k); });
    }
    if constexpr (HAS_REST) {
        inputs.take_rest(whole, packs);
        add(packs, [&](const Row& row) { return row.rest(whole, m.inputs - whole); });
    }
    for (int i = 0; i < OUTPUTS * ROWS; i++) sum[i] = own[i];
}

// 16 outputs for 1, 2 or 4 inputs, row after row: what comes from far memory comes fastest in the
// order in which it lies there.
template <class Row, int ROWS, bool HAS_REST, class T>
void multiply_streamed(const Matrix& m, int64_t first, const T* x, float* out) {
    Floats sum[ROWS][BLOCK];
    for (int o = 0; o < BLOCK; o++) {
        Floats own[ROWS];
        multiply_lanes<Row, 1, ROWS, HAS_REST, T>(m, first + o, x, own);
        for (int r = 0; r < ROWS; r++) sum[r][o] = own[r];
    }
    for (int r = 0; r < ROWS; r++) {
        const Floats found = sums(sum[r]);
        std::memcpy(out + r * BLOCK, &found, sizeof(found));
    }
}

// 16 outputs for 4 inputs in squares of 4 x 4, which need the fewest loads: of weights that are
// near already.
template <class Row, bool HAS_REST, class T>
void multiply_squares(const Matrix& m, int64_t first, const T* x, float* out) {
    for (int column = 0; column < BLOCK; column += 4) {
        Floats sum[LANES];
        multiply_lanes<Row, 4, 4, HAS_REST, T>(m, first + column, x, sum);
        const Floats found = sums(sum);
        for (int r = 0; r < 4; r++)
            std::memcpy(out + r * BLOCK + column, (const float*)&found + 4 * r, 4 * sizeof(float));
    }
}

template <class Row, bool HAS_REST, class T>
void multiply_all(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const auto four = i ? multiply_squares<Row, HAS_REST, T> : multiply_streamed<Row, 4, HAS_REST, T>;
        four(m, first, x + i * m.inputs, out + i * BLOCK);
    }
    if (i + 2 <= count) {
        multiply_streamed<Row, 2, HAS_REST, T>(m, first, x + i * m.inputs, out + i * BLOCK);
        i += 2;
    }
    if (i < count) multiply_streamed<Row, 1, HAS_REST, T>(m, first, x + i * m.inputs, out + i * BLOCK);
}

template <class Row, class T>
void multiply(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    const bool has_rest = m.inputs % STEP;
    (has_rest ? multiply_all<Row, true, T> : multiply_all<Row, false, T>)(m, first, x, count, out);
}

// Unpack 16 rows of a matrix once and multiply with all inputs.
template <class Row, class T>
void multiply_unpacked(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    static thread_local std::vector<T> memory;
    memory.resize(BLOCK * m.inputs);
    const Matrix whole{FLOAT, std::min<int64_t>(BLOCK, m.outputs - first), m.inputs,
                       memory.data(), nullptr, nullptr, nullptr};
    for (int64_t o = 0; o < whole.outputs; o++) {
        const Row row(m, first + o);
        T* to = memory.data() + o * m.inputs;
        int64_t k = 0;
        for (; k + STEP <= m.inputs; k += STEP) unpack<T>(row.at(k), to + k);
        if (k < m.inputs) {
            T padded[STEP];
            unpack<T>(row.rest(k, m.inputs - k), padded);
            std::memcpy(to + k, padded, (m.inputs - k) * sizeof(T));
        }
    }
    multiply<FloatRow<T>, T>(whole, 0, x, count, out);
}

template <class Row, class T>
void multiply_packed(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    const bool has_many = count > 4;
    (has_many ? multiply_unpacked<Row, T> : multiply<Row, T>)(m, first, x, count, out);
}

// 16 outputs of a matrix, from `first` on, for `count` inputs (count, m.inputs).
// out: (count, BLOCK); what lies beyond the last output means nothing.
template <class T>
void multiply_block(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    if (m.kind == INT8)
        multiply_packed<Int8Row<T>, T>(m, first, x, count, out);
    else if (m.kind == INT4)
        multiply_packed<Int4Row<T>, T>(m, first, x, count, out);
    else
        multiply<FloatRow<T>, T>(m, first, x, count, out);
    const int64_t width = std::min<int64_t>(BLOCK, m.outputs - first);
    if (m.kind == INT8)
        for (int64_t i = 0; i < count; i++)
            for (int o = 0; o < width; o++) out[i * BLOCK + o] *= m.scale[first + o];
    if (m.bias)
        for (int64_t i = 0; i < count; i++)
            for (int o = 0; o < width; o++) out[i * BLOCK + o] += m.bias[first + o];
}

}  // namespace
