// Vectors of numbers, for any processor; AVX-512 and its bfloat16 instructions where it has them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define BF16_INSTRUCTIONS 1
#endif
#ifdef __AVX512F__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // in the compiler's own header
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace {

constexpr int LANES = 16;  // numbers in one vector
constexpr int STEP = 32;   // inputs that one step of a product takes
constexpr int BLOCK = 16;  // outputs that are computed together

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

[[maybe_unused]] Floats wide(const bf16* from) {
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

template <class T>
void unpack(const Pack<T>& from, T* to) {
    for (int i = 0; i < LANES; i++) {
        to[i] = rounded<T>(from.low[i]);
        to[LANES + i] = rounded<T>(from.high[i]);
    }
}

#ifndef BF16_INSTRUCTIONS
Floats as_bf16(Floats values) {  // to the nearest, ties to even
    const Words bits = (Words)values;
    return (Floats)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}
template <>
Pack<bf16> packed<bf16>(Floats low, Floats high) {
    return {as_bf16(low), as_bf16(high)};
}
#else
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
template <>
void unpack<bf16>(const Pack<bf16>& from, bf16* to) {
    std::memcpy(to, &from, sizeof(from));
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

}  // namespace
