// Vectors of the widest registers there are, and the functions that open gates.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MAX_ROWS = 6;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MAX_ROWS = 3;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 5;
#else
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 3;
#endif

template <typename T>
struct Vector;
template <>
struct Vector<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t integer __attribute__((vector_size(VECTOR_BYTES)));
    typedef uint8_t bytes __attribute__((vector_size(VECTOR_BYTES / 4)));
};
template <>
struct Vector<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t integer __attribute__((vector_size(VECTOR_BYTES)));
    typedef uint8_t bytes __attribute__((vector_size(VECTOR_BYTES / 8)));
};
template <typename T>
using Vec = typename Vector<T>::type;
template <typename T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

#if defined(__AVX__) && !defined(__AVX512F__)
inline __m256i first_lanes(int count) {
    static constexpr int32_t edge[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i*)(edge + 8 - count));
}
#endif

template <typename T>
inline Vec<T> load(const T* from, int lanes) {
    Vec<T> value;
    if (__builtin_expect(lanes == LANES<T>, 1)) {
        memcpy(&value, from, sizeof value);
        return value;
    }
#ifdef __AVX512F__
    if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm512_maskz_loadu_ps((1u << lanes) - 1, from);
#elif defined(__AVX__)
    if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm256_maskload_ps(from, first_lanes(lanes));
#endif
    value = Vec<T>{};
    memcpy(&value, from, lanes * sizeof(T));
    return value;
}

template <typename T>
inline void store(T* to, Vec<T> value, int lanes) {
    if (__builtin_expect(lanes == LANES<T>, 1)) {
        memcpy(to, &value, sizeof value);
        return;
    }
#ifdef __AVX512F__
    if constexpr (std::is_same_v<T, float>) {
        _mm512_mask_storeu_ps(to, (1u << lanes) - 1, (__m512)value);
        return;
    }
#elif defined(__AVX__)
    if constexpr (std::is_same_v<T, float>) return _mm256_maskstore_ps(to, first_lanes(lanes), (__m256)value);
#endif
    memcpy(to, &value, lanes * sizeof(T));
}

// e^x as (1 + q) 2^n, |q| < 0.42
struct Power {
    Vec<float> q, two_n;
};
inline Power power(Vec<float> x) {
    typedef Vector<float>::integer Integer;
    const Vec<float> low = Vec<float>{} - 87.0f, high = Vec<float>{} + 87.0f;
#ifdef __AVX512F__
    x = (Vec<float>)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));  // lets NaN through
#else
    x = x < low ? low : x;
    x = x > high ? high : x;
#endif
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Vec<float> shifted = x * 1.44269504088896341f + round;
    const Vec<float> n = shifted - round;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec<float> p = Vec<float>{} + 1.9875691500e-4f;
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    return {p * x * x + x, (Vec<float>)((((Integer)shifted) << 23) + 0x3F800000)};
}
inline Vec<float> exponential(Vec<float> x) {
    const Power e = power(x);
    return (1 + e.q) * e.two_n;
}
inline Vec<double> exponential(Vec<double> x) {
    for (int k = 0; k < LANES<double>; k++) x[k] = std::exp(x[k]);
    return x;
}
inline Vec<float> reciprocal(Vec<float> x) {
#ifdef __AVX512F__
    const Vec<float> guess = (Vec<float>)_mm512_rcp14_ps((__m512)x);
    return guess + guess * (1 - x * guess);
#else
    return 1 / x;
#endif
}
inline Vec<double> reciprocal(Vec<double> x) { return 1 / x; }
template <typename V>
inline V sigmoid(V x) {
    return reciprocal(1 + exponential(-x));
}
inline Vec<double> hyperbolic_tangent(Vec<double> x) { return 2 * sigmoid(2 * x) - 1; }
inline Vec<float> hyperbolic_tangent(Vec<float> x) {
    const Power e = power(-2 * x);
    const Vec<float> m = e.q * e.two_n + (e.two_n - 1);  // e^-2x - 1, exact to the last bits where x is small
    return -m * reciprocal(2 + m);
}

// The lanes of a, but where the lane number has the bit HALF those of b half a block earlier; and the other way round.
template <typename T, int HALF, int... LANE>
inline void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, LANE...>) {
    const Vec<T> first = a, second = b;
#if defined(__clang__)
    a = __builtin_shufflevector(first, second, (LANE & HALF ? LANES<T> + LANE - HALF : LANE)...);
    b = __builtin_shufflevector(first, second, (LANE & HALF ? LANES<T> + LANE : LANE + HALF)...);
#else
    typedef typename Vector<T>::integer Integer;
    a = __builtin_shuffle(first, second, Integer{(LANE & HALF ? LANES<T> + LANE - HALF : LANE)...});
    b = __builtin_shuffle(first, second, Integer{(LANE & HALF ? LANES<T> + LANE : LANE + HALF)...});
#endif
}

// Turns as many vectors as each has lanes about, exchanging blocks of HALF lanes, then of twice as many.
template <typename T, int HALF = 1>
inline void transpose(Vec<T>* rows) {
    if constexpr (HALF < LANES<T>) {
#pragma GCC unroll 16
        for (int row = 0; row < LANES<T>; row++)
            if (!(row & HALF))
                exchange<T, HALF>(rows[row], rows[row + HALF], std::make_integer_sequence<int, LANES<T>>());
        transpose<T, 2 * HALF>(rows);
    }
}

}  // namespace
