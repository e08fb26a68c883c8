// Products of a few rows with packed panels of columns, which stay in the registers and the nearest caches.
#pragma once

#include <algorithm>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t DEPTH = 1024;  // rows of a panel that are multiplied before the next rows of the batch: they stay in L2
constexpr int WIDTH = 4;         // vectors of columns in a panel

// Two neighbours in depth as bfloat16, the first in the low half: what a processor with AVX512-BF16 multiplies and adds at once.
struct Pair {
    uint16_t low, high;
};

// What the elements of factors are: how many numbers of depth each holds, and what their products are summed in.
template <typename F>
struct Factor {
    typedef F sum;
    typedef Vec<F> vector;
    static constexpr int DEEP = 1;
    static vector spread(F value) { return value - vector{}; }  // a sum with 0 would be taken, for the sake of -0
    static vector plus_product(vector sum, vector a, vector b) { return sum + a * b; }
};
template <>
struct Factor<Pair> {
    typedef float sum;
    typedef Vector<float>::integer vector;
    static constexpr int DEEP = 2;
#ifdef __AVX512BF16__
    static vector spread(Pair value) {
        int32_t both;
        memcpy(&both, &value, sizeof both);
        return vector{} + both;
    }
    static Vec<float> plus_product(Vec<float> sum, vector a, vector b) {
        return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
#endif
};
template <typename F>
constexpr int64_t elements(int64_t depth) {
    return (depth + Factor<F>::DEEP - 1) / Factor<F>::DEEP;
}

// Writes numbers that follow each other in depth as elements of a factor.
template <typename T>
inline void store_factor(T* to, Vec<T> value, int lanes) {
    store(to, value, lanes);
}
// A vector of elements from the vectors of numbers at neighbouring depths.
template <typename T>
inline void store_columns(T* to, Vec<T> only, Vec<T>) {
    store(to, only, LANES<T>);
}
#ifdef __AVX512BF16__
inline void store_factor(Pair* to, Vec<float> value, int lanes) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)value);
    _mm256_mask_storeu_epi32(to, (1u << (lanes + 1) / 2) - 1, rounded);
}
inline void store_columns(Pair* to, Vec<float> low, Vec<float> high) {
    const __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
    const __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
    _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
}
#endif

// A matrix whose element (row, depth) stands at from[row * row_step + depth * depth_step].
template <typename F>
struct Left {
    const F* from;
    int64_t row_step, depth_step;
};
// Columns as vectors, side by side: element (depth, vector) stands at from[depth * step + vector * LANES].
template <typename F>
struct Panel {
    const F* from;
    int64_t step;
};
// Where a product goes: vector v of row r to to[r * row_step + v * column_step]; the last vector may be a part of one.
template <typename T>
struct Target {
    T* to;
    int64_t row_step, column_step;
    int lanes, last_lanes;
};

// Loaded once for all who take it: compilers would rather have every product load it anew.
template <typename V>
inline V in_register(V value) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(value));
#elif defined(__AVX__)
    __asm__("" : "+x"(value));
#endif
    return value;
}

template <typename F, int ROWS, int COLUMNS, typename T = typename Factor<F>::sum>
void tile(Left<F> a, Panel<F> b, int64_t depth, Target<T> c, bool add) {
    typedef typename Factor<F>::vector Elements;
    typedef Elements Loose __attribute__((aligned(alignof(F)), may_alias));
    Vec<T> sum[ROWS][COLUMNS] = {};
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < COLUMNS; v++) __builtin_prefetch(c.to + r * c.row_step + v * c.column_step, 1);
    for (int64_t k = 0; k < depth; k++) {
        Elements value[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) value[r] = Factor<F>::spread(a.from[r * a.row_step]);
#pragma GCC unroll 8
        for (int v = 0; v < COLUMNS; v++) {
            const Elements column = in_register(*(const Loose*)(b.from + v * LANES<T>));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sum[r][v] = Factor<F>::plus_product(sum[r][v], value[r], column);
        }
        a.from += a.depth_step;
        b.from += b.step;
    }
    const auto put = [&](int r, int v, int lanes) {
        T* to = c.to + r * c.row_step + v * c.column_step;
        store(to, add ? load(to, lanes) + sum[r][v] : sum[r][v], lanes);
    };
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 8
        for (int v = 0; v < COLUMNS; v++) put(r, v, v == COLUMNS - 1 ? c.last_lanes : c.lanes);
    }
}

template <typename F, int COLUMNS, typename T = typename Factor<F>::sum>
void tile_of(int64_t rows, Left<F> a, Panel<F> b, int64_t depth, Target<T> c, bool add) {
    switch (rows) {
        case 1: return tile<F, 1, COLUMNS>(a, b, depth, c, add);
        case 2: return tile<F, 2, COLUMNS>(a, b, depth, c, add);
        case 3: return tile<F, 3, COLUMNS>(a, b, depth, c, add);
        case 4: return tile<F, std::min(4, MAX_ROWS), COLUMNS>(a, b, depth, c, add);
        case 5: return tile<F, std::min(5, MAX_ROWS), COLUMNS>(a, b, depth, c, add);
        case 6: return tile<F, std::min(6, MAX_ROWS), COLUMNS>(a, b, depth, c, add);
    }
}

// `depth` counts elements.
template <typename F, typename T = typename Factor<F>::sum>
void product(int64_t rows, int columns, Left<F> a, Panel<F> b, int64_t depth, Target<T> c, bool add = false) {
    const int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t k = 0; k < depth; k += DEPTH) {
        const int64_t some = std::min(DEPTH, depth - k);
        for (int64_t n = 0; n < tiles; n++) {
            const Range r = share(rows, (int)tiles, (int)n);
            const Left<F> from{a.from + r.first * a.row_step + k * a.depth_step, a.row_step, a.depth_step};
            const Panel<F> with{b.from + k * b.step, b.step};
            Target<T> to = c;
            to.to += r.first * c.row_step;
            const int64_t count = r.last - r.first;
            switch (columns) {
                case 1: tile_of<F, 1>(count, from, with, some, to, add || k); break;
                case 2: tile_of<F, 2>(count, from, with, some, to, add || k); break;
                case 3: tile_of<F, 3>(count, from, with, some, to, add || k); break;
                case 4: tile_of<F, 4>(count, from, with, some, to, add || k); break;
            }
        }
    }
}

// The columns of a matrix, shared into panels of nearly equal width, at most WIDTH vectors each.
template <typename T, typename Use>
void for_panels(Range vectors, int64_t columns, Use use) {
    const int64_t own = vectors.last - vectors.first, count = (own + WIDTH - 1) / WIDTH;
    for (int64_t n = 0; n < count; n++) {
        const Range part = share(own, (int)count, (int)n);
        const int64_t first = (vectors.first + part.first) * LANES<T>;
        const int wide = (int)(part.last - part.first);
        use(first, wide, (int)std::min<int64_t>(LANES<T>, columns - first - (wide - 1) * LANES<T>));
    }
}

}  // namespace
