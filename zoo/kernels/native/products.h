// Products of a few rows with packed panels of columns, which stay in the registers and the nearest caches.
#pragma once

#include <algorithm>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t DEPTH = 1024;  // rows of a panel that are multiplied before the next rows of the batch: they stay in L2
constexpr int WIDTH = 4;         // vectors of columns in a panel

// A matrix whose element (row, depth) stands at from[row * row_step + depth * depth_step].
template <typename T>
struct Left {
    const T* from;
    int64_t row_step, depth_step;
};
// Columns as vectors, side by side: element (depth, vector) stands at from[depth * step + vector * LANES].
template <typename T>
struct Panel {
    const T* from;
    int64_t step;
};
// Where a product goes: vector v of row r to to[r * row_step + v * column_step]; the last vector may be a part of one.
template <typename T>
struct Target {
    T* to;
    int64_t row_step, column_step;
    int lanes, last_lanes;
};

template <typename T, int ROWS, int COLUMNS>
void tile(Left<T> a, Panel<T> b, int64_t depth, Target<T> c, bool add) {
    Vec<T> sum[ROWS][COLUMNS] = {};
    const auto lanes = [&](int v) { return v == COLUMNS - 1 ? c.last_lanes : c.lanes; };
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < COLUMNS; v++) __builtin_prefetch(c.to + r * c.row_step + v * c.column_step, 1);
    for (int64_t k = 0; k < depth; k++) {
        Vec<T> column[COLUMNS];
        for (int v = 0; v < COLUMNS; v++) column[v] = load(b.from + v * LANES<T>, LANES<T>);
        for (int r = 0; r < ROWS; r++) {
            const Vec<T> value = Vec<T>{} + a.from[r * a.row_step];
            for (int v = 0; v < COLUMNS; v++) sum[r][v] += value * column[v];
        }
        a.from += a.depth_step;
        b.from += b.step;
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < COLUMNS; v++) {
            T* to = c.to + r * c.row_step + v * c.column_step;
            store(to, add ? load(to, lanes(v)) + sum[r][v] : sum[r][v], lanes(v));
        }
}

template <typename T, int COLUMNS>
void tile_of(int64_t rows, Left<T> a, Panel<T> b, int64_t depth, Target<T> c, bool add) {
    switch (rows) {
        case 1: return tile<T, 1, COLUMNS>(a, b, depth, c, add);
        case 2: return tile<T, 2, COLUMNS>(a, b, depth, c, add);
        case 3: return tile<T, 3, COLUMNS>(a, b, depth, c, add);
        case 4: return tile<T, std::min(4, MAX_ROWS), COLUMNS>(a, b, depth, c, add);
        case 5: return tile<T, std::min(5, MAX_ROWS), COLUMNS>(a, b, depth, c, add);
        case 6: return tile<T, std::min(6, MAX_ROWS), COLUMNS>(a, b, depth, c, add);
    }
}

template <typename T>
void product(int64_t rows, int columns, Left<T> a, Panel<T> b, int64_t depth, Target<T> c, bool add = false) {
    const int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t k = 0; k < depth; k += DEPTH) {
        const int64_t some = std::min(DEPTH, depth - k);
        for (int64_t n = 0; n < tiles; n++) {
            const Range r = share(rows, (int)tiles, (int)n);
            const Left<T> from{a.from + r.first * a.row_step + k * a.depth_step, a.row_step, a.depth_step};
            const Panel<T> with{b.from + k * b.step, b.step};
            Target<T> to = c;
            to.to += r.first * c.row_step;
            const int64_t count = r.last - r.first;
            switch (columns) {
                case 1: tile_of<T, 1>(count, from, with, some, to, add || k); break;
                case 2: tile_of<T, 2>(count, from, with, some, to, add || k); break;
                case 3: tile_of<T, 3>(count, from, with, some, to, add || k); break;
                case 4: tile_of<T, 4>(count, from, with, some, to, add || k); break;
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
