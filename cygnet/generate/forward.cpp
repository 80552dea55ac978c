// The model's forward pass over the slots of a key/value cache, on a processor.
//
// One call takes M tokens, each with its slot and its position: the next token of every running
// request (decoding), stretches of prompts (prefill), or both. Between the layers' steps there is
// no Python, no allocation and no thread to be woken, which is most of what a small model's step
// costs elsewhere; each weight is read once for all tokens.
//
// Every number is computed in the same order whatever other tokens there are, so that the bits
// of an answer do not depend on its company.
//
// Arithmetic: matrices in bfloat16, float32, or 8 or 4 bits; products summed in float32; the
// residual stream, norms, rotations and softmax in float32. The inputs of products and the cache
// have the type T (bfloat16 or float32).

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define BF16_INSTRUCTIONS 1
#endif

namespace {

constexpr int LANES = 16;  // numbers in one vector
constexpr int STEP = 32;   // inputs that one step of a product takes
constexpr int BLOCK = 16;  // outputs that are computed together
constexpr int QUERIES = 8;   // tokens whose queries read the same keys together
constexpr int TOGETHER = 64;  // tokens that one visit to a block of weights serves

using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));
using Bytes = uint8_t __attribute__((vector_size(LANES)));
using SignedBytes = int8_t __attribute__((vector_size(LANES)));
using bf16 = uint16_t;

template <class Vector>
Vector load(const void* from) {
    Vector found;
    std::memcpy(&found, from, sizeof(Vector));
    return found;
}

Floats wide(const bf16* from) {
    return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16);
}
Floats wide(const float* from) { return load<Floats>(from); }

float to_float(float value) { return value; }
float to_float(bf16 value) {
    const uint32_t bits = uint32_t(value) << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}

template <class T>
T rounded(float value);
template <>
float rounded<float>(float value) {
    return value;
}
template <>
bf16 rounded<bf16>(float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 32 numbers as a product takes them.
template <class T>
struct Pack {
    Floats low, high;
};

template <class T>
Pack<T> pack(const T* from) {
    return {wide(from), wide(from + LANES)};
}
template <class T>
Floats multiply_add(Floats sum, const Pack<T>& a, const Pack<T>& b) {
    return sum + a.low * b.low + a.high * b.high;
}
template <class T>
Pack<T> packed(Floats low, Floats high) {
    return {low, high};
}

#ifdef BF16_INSTRUCTIONS
template <>
struct Pack<bf16> {
    __m512bh all;
};
template <>
Pack<bf16> pack<bf16>(const bf16* from) {
    return {(__m512bh)_mm512_loadu_si512(from)};
}
template <>
Floats multiply_add<bf16>(Floats sum, const Pack<bf16>& a, const Pack<bf16>& b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, a.all, b.all);
}
template <>
Pack<bf16> packed<bf16>(Floats low, Floats high) {
    return {_mm512_cvtne2ps_pbh((__m512)high, (__m512)low)};
}
#endif

// Words hold two bfloat16 or one float32: sum + words * word.
template <class T>
Floats multiply_add_words(Floats sum, Words words, uint32_t word);
template <>
Floats multiply_add_words<float>(Floats sum, Words words, uint32_t word) {
    float value;
    std::memcpy(&value, &word, 4);
    return sum + (Floats)words * value;
}
template <>
Floats multiply_add_words<bf16>(Floats sum, Words words, uint32_t word) {
#ifdef BF16_INSTRUCTIONS
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)words, (__m512bh)_mm512_set1_epi32(word));
#else
    const Floats low = (Floats)(words << 16), high = (Floats)(words & 0xffff0000);
    return sum + low * to_float(bf16(word)) + high * to_float(bf16(word >> 16));
#endif
}

// Turn 16 rows of words, `width` each, into columns: out (width, 16).
void transpose(const uint32_t* rows, int64_t width, uint32_t* out) {
    int64_t at = 0;
#ifdef __AVX512F__
    for (; at + LANES <= width; at += LANES) {
        __m512i a[LANES], b[LANES];
        for (int i = 0; i < LANES; i++) a[i] = _mm512_loadu_si512(rows + i * width + at);
        for (int i = 0; i < LANES; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        for (int i = 0; i < LANES; i += 4)
            for (int j = 0; j < 2; j++) {
                a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
                a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
            }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < LANES; j += 8) {
                b[j + i] = _mm512_shuffle_i32x4(a[j + i], a[j + 4 + i], 0x88);
                b[j + 4 + i] = _mm512_shuffle_i32x4(a[j + i], a[j + 4 + i], 0xdd);
            }
        for (int i = 0; i < 8; i++) {
            uint32_t* column = out + (at + i) * LANES;
            _mm512_storeu_si512(column, _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88));
            _mm512_storeu_si512(column + 8 * LANES, _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd));
        }
    }
#endif
    for (; at < width; at++)
        for (int i = 0; i < LANES; i++) out[at * LANES + i] = rows[i * width + at];
}

// The sums of the lanes of 16 vectors, as one vector.
Floats sums(const Floats (&v)[LANES]) {
#ifdef __AVX512F__
    __m512 pairs[8], fours[4];
    for (int i = 0; i < 8; i++) {
        const __m512 a = (__m512)v[2 * i], b = (__m512)v[2 * i + 1];
        pairs[i] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    }
    for (int i = 0; i < 4; i++) {
        const __m512d a = (__m512d)pairs[2 * i], b = (__m512d)pairs[2 * i + 1];
        fours[i] = (__m512)_mm512_unpacklo_pd(a, b) + (__m512)_mm512_unpackhi_pd(a, b);
    }
    const auto join = [](__m512 a, __m512 b) {
        return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
    };
    return (Floats)join(join(fours[0], fours[1]), join(fours[2], fours[3]));
#else
    Floats found;
    for (int i = 0; i < LANES; i++) {
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += v[i][lane];
        found[i] = sum;
    }
    return found;
#endif
}

}  // namespace

// What Python hands over; `native.py` has the same fields.
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

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two may be null
    void *keys, *values;  // (slots, key/value heads, max_len, head size) of T
};

struct Model {
    int64_t is_bf16;
    int64_t hidden_size, num_heads, num_kv_heads, head_size, intermediate_size, max_len;
    int64_t num_layers;
    float norm_epsilon, score_scale;
    const Layer* layers;
    const void* embeddings;  // (vocabulary, hidden size) of T
    const float* final_norm;
    const float *cosines, *sines;  // (max_len, head size / 2), of every position
    Matrix output;
};

struct Tokens {
    int64_t count;
    const int64_t *ids, *slots, *positions;  // (count)
    int64_t num_wanted;
    const int64_t* wanted;  // (num_wanted), the tokens behind which logits are asked for
    float* logits;          // (num_wanted, vocabulary)
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
    const void* address(int64_t k) const { return weights + k; }
    Pack<T> rest(int64_t k, int64_t count) const {
        T padded[STEP] = {};
        std::memcpy(padded, weights + k, count * sizeof(T));
        return pack<T>(padded);
    }
};

template <class Codes>
Floats decoded(Codes codes) {
    return __builtin_convertvector(__builtin_convertvector(codes, Ints), Floats);
}

// Codes are whole numbers that bfloat16 holds exactly; `finish` multiplies by the scale.
template <class T>
struct Int8Row {
    const int8_t* codes;
    Int8Row() = default;
    Int8Row(const Matrix& m, int64_t row) : codes((const int8_t*)m.weights + row * m.inputs) {}
    static Pack<T> unpack(const int8_t* from) {
        return packed<T>(decoded(load<SignedBytes>(from)), decoded(load<SignedBytes>(from + LANES)));
    }
    Pack<T> at(int64_t k) const { return unpack(codes + k); }
    const void* address(int64_t k) const { return codes + k; }
    Pack<T> rest(int64_t k, int64_t count) const {
        int8_t padded[STEP] = {};
        std::memcpy(padded, codes + k, count);
        return unpack(padded);
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
    const void* address(int64_t k) const { return codes + k / 2; }
    Pack<T> rest(int64_t k, int64_t) const { return at(k); }  // groups are whole
};

// Multiply 16 / ROWS outputs of a matrix, from `first` on, with ROWS inputs (1, 2 or 4).
// `out` is the place of the first output in rows of BLOCK.
template <class Row, int ROWS, bool HAS_REST, class T>
void multiply_tile(const Matrix& m, int64_t first, const T* x, float* out) {
    constexpr int OUTPUTS = LANES / ROWS;
    Row rows[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) rows[o] = Row(m, std::min(first + o, m.outputs - 1));
    Floats sum[LANES] = {};
    const auto add = [&](const Pack<T>(&inputs)[ROWS], auto weights_of) {
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS; o++) {
            const Pack<T> weights = weights_of(rows[o]);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                Floats& own = sum[r * OUTPUTS + o];
                own = multiply_add<T>(own, weights, inputs[r]);
            }
        }
    };
    const int64_t ahead = (const char*)Row(m, OUTPUTS).address(0) - (const char*)m.weights;
    const int64_t whole = m.inputs / STEP * STEP, rest = m.inputs - whole;
    for (int64_t k = 0; k < whole; k += STEP) {
        Pack<T> inputs[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) inputs[r] = pack<T>(x + r * m.inputs + k);
        add(inputs, [&](const Row& row) {
            __builtin_prefetch((const char*)row.address(k) + ahead);
            return row.at(k);
        });
    }
    if constexpr (HAS_REST) {
        Pack<T> inputs[ROWS];
        for (int r = 0; r < ROWS; r++) {
            T padded[STEP] = {};
            std::memcpy(padded, x + r * m.inputs + whole, rest * sizeof(T));
            inputs[r] = pack<T>(padded);
        }
        add(inputs, [&](const Row& row) { return row.rest(whole, rest); });
    }
    const Floats found = sums(sum);
    for (int r = 0; r < ROWS; r++)
        std::memcpy(out + r * BLOCK, (const float*)&found + r * OUTPUTS, OUTPUTS * sizeof(float));
}

template <class Row, int ROWS, bool HAS_REST, class T>
void multiply_rows(const Matrix& m, int64_t first, const T* x, float* out) {
    for (int o = 0; o < BLOCK; o += LANES / ROWS)
        multiply_tile<Row, ROWS, HAS_REST, T>(m, first + o, x, out + o);
}

template <class Row, bool HAS_REST, class T>
void multiply_all(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        multiply_rows<Row, 4, HAS_REST, T>(m, first, x + i * m.inputs, out + i * BLOCK);
    if (i + 2 <= count) {
        multiply_rows<Row, 2, HAS_REST, T>(m, first, x + i * m.inputs, out + i * BLOCK);
        i += 2;
    }
    if (i < count) multiply_rows<Row, 1, HAS_REST, T>(m, first, x + i * m.inputs, out + i * BLOCK);
}

template <class Row, class T>
void multiply(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    const bool has_rest = m.inputs % STEP;
    (has_rest ? multiply_all<Row, true, T> : multiply_all<Row, false, T>)(m, first, x, count, out);
}

// 16 outputs of a matrix, from `first` on, for `count` inputs (count, m.inputs).
// out: (count, BLOCK); what lies beyond the last output means nothing.
template <class T>
void multiply_block(const Matrix& m, int64_t first, const T* x, int64_t count, float* out) {
    if (m.kind == INT8)
        multiply<Int8Row<T>, T>(m, first, x, count, out);
    else if (m.kind == INT4)
        multiply<Int4Row<T>, T>(m, first, x, count, out);
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

// e^x to two units in the last place, for x <= 0 or moderate; written so that it vectorizes.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float turns = std::nearbyint(x * 1.44269504f);
    const float r = (x - turns * 0.693359375f) + turns * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const uint32_t bits = uint32_t(int32_t(turns) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

float mean_square(const float* x, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
    return sum / float(size);
}

template <class T>
void rms_norm(const float* x, const float* weight, int64_t size, float epsilon, T* out) {
    const float by = 1.0f / std::sqrt(mean_square(x, size) + epsilon);
    for (int64_t i = 0; i < size; i++) out[i] = rounded<T>(x[i] * by * weight[i]);
}

// Norm and rotate one head, in place.
void turn(float* head, const float* norm, int64_t size, float epsilon, const float* cosine,
          const float* sine) {
    if (norm) rms_norm<float>(head, norm, size, epsilon, head);
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

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

template <class T>
class Pass {
   public:
    Pass(const Model& model, const Tokens& tokens, int threads)
        : model(model), tokens(tokens), threads(threads), M(tokens.count), D(model.hidden_size),
          H(model.head_size) {
        static thread_local std::vector<float> memory;
        const int64_t queries = model.num_heads * H, kv = model.num_kv_heads * H;
        const int64_t widest = std::max({D, queries, model.intermediate_size});
        group = model.num_heads / model.num_kv_heads;
        scores_stride = (model.max_len + BLOCK - 1) / BLOCK * BLOCK;
        scratch = (QUERIES + 1) * group * scores_stride + std::max<int64_t>(group, 2 * BLOCK) * H +
                  2 * TOGETHER * BLOCK;
        for (int64_t i = 0; i < M; i++) {
            const bool goes_on = i && tokens.slots[i] == tokens.slots[i - 1] &&
                                 i - runs.back().begin < QUERIES;
            if (!goes_on) runs.push_back({i, i});
            runs.back().end = i + 1;
        }
        const int64_t sizes[] = {M * D, M * (queries + 2 * kv), M * widest, M * widest,
                                 threads * scratch};
        int64_t total = 0;
        for (const int64_t size : sizes) total += size + LANES;
        if (int64_t(memory.size()) < total) memory.resize(total);
        float* at = memory.data();
        const auto take = [&](int64_t size) { return std::exchange(at, at + size + LANES); };
        residual = take(sizes[0]);
        qkv = take(sizes[1]);
        inputs = (T*)take(sizes[2]);
        inner = (T*)take(sizes[3]);
        scratches = take(sizes[4]);
    }

    void run() {
#pragma omp parallel num_threads(threads)
        {
            embed();
            for (int64_t i = 0; i < model.num_layers; i++) {
                attention(model.layers[i]);
                feed_forward(model.layers[i]);
            }
            logits();
        }
    }

   private:
    // Tokens of one slot, their positions ascending.
    struct Run {
        int64_t begin, end;
    };

    float* own_scratch() const { return scratches + omp_get_thread_num() * scratch; }

    void embed() {
#pragma omp for
        for (int64_t i = 0; i < M; i++) {
            const T* row = (const T*)model.embeddings + tokens.ids[i] * D;
            for (int64_t d = 0; d < D; d++) residual[i * D + d] = to_float(row[d]);
        }
    }

    void norm(const float* weight) {
#pragma omp for
        for (int64_t i = 0; i < M; i++)
            rms_norm<T>(residual + i * D, weight, D, model.norm_epsilon, inputs + i * D);
    }

    // Share blocks of outputs, each for a part of the tokens that stays in the nearest memory.
    template <class Use>
    void share_blocks(int64_t outputs, int64_t count, Use use) {
#pragma omp for collapse(2)
        for (int64_t begin = 0; begin < count; begin += TOGETHER)
            for (int64_t first = 0; first < outputs; first += BLOCK)
                use(first, std::min<int64_t>(BLOCK, outputs - first), begin,
                    std::min<int64_t>(TOGETHER, count - begin));
    }

    // Hand over each token's products: use(token, first output, number of outputs, products).
    template <class Use>
    void products(const Matrix& m, const T* x, int64_t count, Use use) {
        float* out = own_scratch();
        share_blocks(m.outputs, count, [&](auto first, auto width, auto begin, auto tokens) {
            multiply_block<T>(m, first, x + begin * m.inputs, tokens, out);
            for (int64_t i = 0; i < tokens; i++) use(begin + i, first, width, out + i * BLOCK);
        });
    }

    void add_product(const Matrix& m, const T* x) {
        products(m, x, M, [&](auto token, auto first, auto width, const float* out) {
            float* to = residual + token * D + first;
            for (int64_t o = 0; o < width; o++) to[o] += out[o];
        });
    }

    void copy_products(const Matrix& m, int64_t count, float* to) {
        products(m, inputs, count, [&](auto token, auto first, auto width, const float* out) {
            std::memcpy(to + token * m.outputs + first, out, width * sizeof(float));
        });
    }

    void attention(const Layer& layer) {
        norm(layer.input_norm);
        copy_products(layer.qkv, M, qkv);
        place(layer);
#pragma omp for collapse(2)
        for (size_t run = 0; run < runs.size(); run++)
            for (int64_t head = 0; head < model.num_kv_heads; head++)
                attend(layer, runs[run], head);
        add_product(layer.out, inner);
    }

    // Norm and rotate queries and keys; queries go to `inner`, keys and values to their slots.
    void place(const Layer& layer) {
        const int64_t width = layer.qkv.outputs, half = H / 2, N = model.num_heads;
        const int64_t K = model.num_kv_heads;
#pragma omp for
        for (int64_t i = 0; i < M; i++) {
            const int64_t turns = tokens.positions[i] * half;
            const float *cosine = model.cosines + turns, *sine = model.sines + turns;
            float* head = qkv + i * width;
            T* query = inner + i * N * H;
            for (int64_t n = 0; n < N; n++, head += H) {
                turn(head, layer.q_norm, H, model.norm_epsilon, cosine, sine);
                for (int64_t h = 0; h < H; h++)
                    *query++ = rounded<T>(head[h] * model.score_scale);
            }
            for (int64_t k = 0; k < 2 * K; k++, head += H) {
                const bool is_key = k < K;
                if (is_key) turn(head, layer.k_norm, H, model.norm_epsilon, cosine, sine);
                T* to = (T*)(is_key ? layer.keys : layer.values) + head_start(i, k % K) +
                        tokens.positions[i] * H;
                for (int64_t h = 0; h < H; h++) to[h] = rounded<T>(head[h]);
            }
        }
    }

    int64_t head_start(int64_t token, int64_t head) const {
        return (tokens.slots[token] * model.num_kv_heads + head) * model.max_len * H;
    }

    // Let the queries of a run's tokens, of one key head, read; the results take their places.
    void attend(const Layer& layer, Run run, int64_t head) {
        float* scores = own_scratch();  // (tokens of the run, group, scores_stride)
        float* rest = scores + QUERIES * group * scores_stride;
        T* weights = (T*)rest;  // (group, scores_stride)
        rest += group * scores_stride;
        score(layer, run, head, scores, (uint32_t*)rest);
        const T* values = (const T*)layer.values + head_start(run.begin, head);
        for (int64_t i = run.begin; i < run.end; i++, scores += group * scores_stride) {
            const int64_t length = tokens.positions[i] + 1;
            for (int64_t g = 0; g < group; g++)
                softmax(scores + g * scores_stride, length, weights + g * scores_stride);
            int64_t g = 0;
            for (; g + 4 <= group; g += 4) weigh_heads<4>(weights, g, values, length, rest);
            for (; g < group; g++) weigh_heads<1>(weights, g, values, length, rest);
            T* out = query(i, head);
            for (int64_t h = 0; h < group * H; h++) out[h] = rounded<T>(rest[h]);
        }
    }

    T* query(int64_t token, int64_t head) const {
        return inner + (token * model.num_heads + head * group) * H;
    }

    // Products of queries and keys, 16 keys at a time: (queries, scores_stride).
    void score(const Layer& layer, Run run, int64_t head, float* scores, uint32_t* memory) const {
        const int64_t length = tokens.positions[run.end - 1] + 1;
        const int64_t width = H * sizeof(T) / sizeof(uint32_t);
        uint32_t *columns = memory, *padded = memory + width * BLOCK;
        const auto* keys = (const uint32_t*)((const T*)layer.keys + head_start(run.begin, head));
        const auto* values = (const uint32_t*)((const T*)layer.values + head_start(run.begin, head));
        for (int64_t first = 0; first < length; first += BLOCK) {
            const uint32_t* rows = keys + first * width;
            if (first + BLOCK > length) {  // beyond stand no keys, or no memory
                std::memcpy(padded, rows, (length - first) * width * sizeof(uint32_t));
                rows = padded;
            }
            // The next keys, and the values that are read after all keys.
            for (int64_t at = 0; at < BLOCK * width; at += LANES) {
                __builtin_prefetch(keys + (first + BLOCK) * width + at);
                __builtin_prefetch(values + first * width + at, 0, 2);
            }
            transpose(rows, width, columns);
            for (int64_t i = run.begin; i < run.end; i++, scores += group * scores_stride)
                score_group(columns, width, query(i, head), scores + first);
            scores -= (run.end - run.begin) * group * scores_stride;
        }
    }

    void score_group(const uint32_t* columns, int64_t width, const T* queries, float* out) const {
        int64_t g = 0;
        for (; g + 4 <= group; g += 4)
            multiply_columns<4, T>(columns, width, queries + g * H, H, out + g * scores_stride, scores_stride);
        for (; g < group; g++)
            multiply_columns<1, T>(columns, width, queries + g * H, H, out + g * scores_stride, scores_stride);
    }

    void softmax(float* scores, int64_t length, T* weights) const {
        const float scale = 1.0f / std::sqrt(float(H));
        float highest = scores[0], sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t i = 0; i < length; i++) highest = std::max(highest, scores[i]);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < length; i++) {
            scores[i] = exponential((scores[i] - highest) * scale);
            sum += scores[i];
        }
        const float by = 1.0f / sum;
        for (int64_t i = 0; i < length; i++) weights[i] = rounded<T>(scores[i] * by);
    }

    template <int HEADS>
    void weigh_heads(const T* weights, int64_t g, const T* values, int64_t length,
                     float* out) const {
        weights += g * scores_stride;
        out += g * H;
        int64_t h = weigh_whole<HEADS>(weights, scores_stride, values, H, length, out);
        for (; h < H; h++)
            for (int head = 0; head < HEADS; head++) {
                float sum = 0;
                for (int64_t i = 0; i < length; i++)
                    sum += to_float(weights[head * scores_stride + i]) * to_float(values[i * H + h]);
                out[head * H + h] = sum;
            }
    }

    void feed_forward(const Layer& layer) {
        norm(layer.post_norm);
        const int64_t F = model.intermediate_size;
        float *gate = own_scratch(), *up = gate + TOGETHER * BLOCK;
        share_blocks(F, M, [&](auto first, auto width, auto begin, auto tokens) {
            multiply_block<T>(layer.gate_up, first, inputs + begin * D, tokens, gate);
            multiply_block<T>(layer.gate_up, F + first, inputs + begin * D, tokens, up);
            for (int64_t i = 0; i < tokens; i++) {
                const float *g = gate + i * BLOCK, *u = up + i * BLOCK;
                T* to = inner + (begin + i) * F + first;
                for (int64_t o = 0; o < width; o++)
                    to[o] = rounded<T>(g[o] / (1.0f + exponential(-g[o])) * u[o]);
            }
        });
        add_product(layer.down, inner);
    }

    void logits() {
        const int64_t W = tokens.num_wanted;
#pragma omp for
        for (int64_t w = 0; w < W; w++) {
            const float* row = residual + tokens.wanted[w] * D;
            rms_norm<T>(row, model.final_norm, D, model.norm_epsilon, inputs + w * D);
        }
        copy_products(model.output, W, tokens.logits);
    }

    const Model& model;
    const Tokens& tokens;
    const int threads;
    const int64_t M, D, H;  // tokens, hidden size, head size
    std::vector<Run> runs;
    int64_t group, scores_stride, scratch;
    float *residual;   // (M, D)
    float *qkv;        // (M, queries, keys and values)
    T *inputs, *inner; // what the next product reads: (M, D), and (M, heads * H) or (M, F)
    float *scratches;  // one for each thread
};

}  // namespace

extern "C" void cygnet_forward(const Model* model, const Tokens* tokens, int64_t num_threads) {
    if (model->is_bf16)
        Pass<bf16>(*model, *tokens, int(num_threads)).run();
    else
        Pass<float>(*model, *tokens, int(num_threads)).run();
}
