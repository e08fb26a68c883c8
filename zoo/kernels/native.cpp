// One LSTM layer over a sequence on the CPU, forward and backward, products with the inputs included.
// The equations, and the meaning of every buffer, are those of zoo/functional.py and zoo/kernels/loops.py.
//
// W and R are packed once a sequence into panels whose columns are one vector of units of each gate, so that the thread that
// owns a block of units multiplies, opens the gates and updates the state while all of it is in the nearest cache. Threads
// share the units and meet once a step; where the weights are small they share the batch instead and never meet. The
// products that do not wait for the recurrence go a chunk of steps at a time, beside the steps whose data they use.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

// ---------------------------------------------------------------- vectors

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MAX_ROWS = 6;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MAX_ROWS = 3;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 6;
#else
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 3;
#endif
constexpr int GATES = 4;
constexpr int64_t DEPTH = 1024;  // rows of a panel that are multiplied before the next rows of the batch: they stay in L2
constexpr int64_t CHUNK = 256;   // rows, steps times batch, whose products with and for the inputs are taken together
constexpr int64_t GATHER = 768;  // rows that one product of the weights' gradients sums over
constexpr int64_t PANELS = 3;    // panels of the other factor that such a product takes at a time: they fill half of L2
constexpr int64_t NARROW = 4;    // inputs of no more columns are multiplied within the step
constexpr int WIDTH = 4;         // vectors of columns in a panel

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

template <typename T>
inline Vec<T> load(const T* from, int lanes) {
    Vec<T> value;
    if (__builtin_expect(lanes == LANES<T>, 1)) {
        memcpy(&value, from, sizeof value);
        return value;
    }
#ifdef __AVX512F__
    if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm512_maskz_loadu_ps((1u << lanes) - 1, from);
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
#endif
    memcpy(to, &value, lanes * sizeof(T));
}

inline Vec<float> exponential(Vec<float> x) {
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
    p = p * x * x + x + 1.0f;
    const Integer power = (((Integer)shifted) << 23) + (Integer)p;
    return (Vec<float>)power;
}
inline Vec<double> exponential(Vec<double> x) {
    for (int k = 0; k < LANES<double>; k++) x[k] = std::exp(x[k]);
    return x;
}
inline Vec<float> reciprocal(Vec<float> x) {
#ifdef __AVX512F__
    const Vec<float> guess = (Vec<float>)_mm512_rcp14_ps((__m512)x);
    return guess * (2 - x * guess);
#else
    return 1 / x;
#endif
}
inline Vec<double> reciprocal(Vec<double> x) { return 1 / x; }
template <typename V>
inline V sigmoid(V x) {
    return reciprocal(1 + exponential(-x));
}
template <typename V>
inline V hyperbolic_tangent(V x) {
    return 2 * reciprocal(1 + exponential(-2 * x)) - 1;
}

// ---------------------------------------------------------------- arguments

struct Mask {  // broadcast over time, batch or units by a stride of 0; units have stride 0 or 1
    const void* values;
    int64_t kind;  // 0 none, 1 of the sequence's type, 2 bool
    int64_t time, gate, batch, unit;
};

enum Norm { BATCH = 1, LAYER = 2 };
enum Site { REC, UPD, CMUL, CKEEP, HKEEP, OUT, SITES };

struct Arguments {
    int64_t time, batch, width, hidden, threads, keep, per_gate;
    const void *inputs, *h, *c, *w_input, *w_hidden, *bias;
    void *gates, *outputs, *cells;
    const void *doutputs, *dcells;
    void *dh, *dc, *dinputs, *dw_input, *dw_hidden, *dbias;
    Mask masks[SITES];
    // Of the normalised LSTM, whose gates come in holding the inputs' part:
    int64_t norm, population;  // a Norm; whether the moments are given
    double eps;
    const void *gain_hidden, *gain_cell, *bias_cell;
    void *normal_hidden, *normal_cell;                      // R h becomes a gradient on the way back
    void *hidden_mean, *hidden_var, *cell_mean, *cell_var;  // by layer no mean, and the reciprocal deviation for var
    void *dgain_hidden, *dgain_cell, *dbias_cell;
};

template <typename T>
inline Vec<T> mask_at(const Mask& mask, int64_t t, int64_t gate, int64_t b, int64_t unit, int lanes) {
    const int64_t offset = t * mask.time + gate * mask.gate + b * mask.batch + unit * mask.unit;
    if (mask.kind == 2) {
        const uint8_t* values = (const uint8_t*)mask.values + offset;
        if (mask.unit == 0) return Vec<T>{} + T(*values);
        typename Vector<T>::bytes bytes{};
        if (lanes == LANES<T>) memcpy(&bytes, values, sizeof bytes);
        else memcpy(&bytes, values, lanes);
        return __builtin_convertvector(bytes, Vec<T>);
    }
    const T* values = (const T*)mask.values + offset;
    return mask.unit == 0 ? Vec<T>{} + *values : load(values, lanes);
}

// ---------------------------------------------------------------- threads

class Barrier {
    std::atomic<int> arrived{0}, generation{0};

   public:
    void wait(int threads) {
        if (threads == 1) return;
        const int mine = generation.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            generation.store(mine + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; generation.load(std::memory_order_acquire) == mine; spins++) {
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
#if defined(__unix__) || defined(__APPLE__)
            if (spins > 20000) sched_yield();  // somebody else has the other core
#endif
        }
    }
};

struct Range {
    int64_t first, last;
};
inline Range share(int64_t count, int parts, int part) { return {count * part / parts, count * (part + 1) / parts}; }

// Large new memory costs less to touch in large pages.
inline void in_large_pages([[maybe_unused]] void* from, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
    const uintptr_t page = 2 << 20, first = ((uintptr_t)from + page - 1) / page * page, last = ((uintptr_t)from + bytes) / page * page;
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// Workspace, kept for the next call: new memory has to be cleared by the system first.
class Pool {
    struct Block {
        void* memory;
        int64_t bytes;
    };
    static constexpr int64_t LIMIT = 256 << 20;  // bytes kept
    std::mutex mutex;
    std::vector<Block> unused;
    int64_t kept = 0;

   public:
    void* take(int64_t& bytes) {
        bytes = (bytes + 63) / 64 * 64;
        {
            std::lock_guard<std::mutex> lock(mutex);
            auto best = unused.end();
            for (auto block = unused.begin(); block != unused.end(); ++block)
                if (block->bytes >= bytes && block->bytes <= 2 * bytes && (best == unused.end() || block->bytes < best->bytes))
                    best = block;
            if (best != unused.end()) {
                const Block found = *best;
                unused.erase(best);
                kept -= found.bytes;
                bytes = found.bytes;
                return found.memory;
            }
        }
        void* memory = std::aligned_alloc(64, bytes);
        if (!memory) throw std::bad_alloc();
        in_large_pages(memory, bytes);
        return memory;
    }
    void give(void* memory, int64_t bytes) {
        std::lock_guard<std::mutex> lock(mutex);
        unused.push_back({memory, bytes});
        kept += bytes;
        while (kept > LIMIT) {  // the oldest go first
            free(unused.front().memory);
            kept -= unused.front().bytes;
            unused.erase(unused.begin());
        }
    }
};
Pool pool;

template <typename T>
class Buffer {
    int64_t bytes;
    T* memory;

   public:
    explicit Buffer(int64_t count) : bytes(count * sizeof(T)), memory(count ? (T*)pool.take(bytes) : nullptr) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        if (memory) pool.give(memory, bytes);
    }
    T* get() const { return memory; }
    T& operator[](int64_t at) const { return memory[at]; }
};
template <typename T>
Buffer<T> allocate(int64_t count) {
    return Buffer<T>(count);
}

// ---------------------------------------------------------------- products

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
    Vec<T> sum[ROWS][COLUMNS];
    const auto lanes = [&](int v) { return v == COLUMNS - 1 ? c.last_lanes : c.lanes; };
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < COLUMNS; v++)
            sum[r][v] = add ? load(c.to + r * c.row_step + v * c.column_step, lanes(v)) : Vec<T>{};
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
        for (int v = 0; v < COLUMNS; v++) store(c.to + r * c.row_step + v * c.column_step, sum[r][v], lanes(v));
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

// ---------------------------------------------------------------- the layer

template <typename T>
struct Lstm {
    static constexpr int N = LANES<T>;
    const Arguments& x;
    const int64_t batch, width, hidden, blocks;
    T *const gates, *const outputs, *const cells;
    const bool split_batch;
    Barrier barrier;

    explicit Lstm(const Arguments& x)
        : Lstm(x, x.batch >= 4 * x.threads && GATES * x.hidden * (x.hidden + x.width) * sizeof(T) < 500'000) {}
    Lstm(const Arguments& x, bool split_batch)
        : x(x),
          batch(x.batch),
          width(x.width),
          hidden(x.hidden),
          blocks(vectors(x.hidden)),
          gates((T*)x.gates),
          outputs((T*)x.outputs),
          cells((T*)x.cells),
          split_batch(x.threads > 1 && split_batch) {}

    static int64_t vectors(int64_t columns) { return (columns + N - 1) / N; }
    int lanes(int64_t block) const { return (int)std::min<int64_t>(N, hidden - block * N); }
    Vec<T> mask(Site site, int64_t t, int64_t b, int64_t block, int64_t gate = 0) const {
        return mask_at<T>(x.masks[site], t, gate, b, block * N, lanes(block));
    }
    bool has(Site site) const { return x.masks[site].kind != 0; }
    int64_t copies() const { return has(REC) && x.per_gate ? GATES : 1; }  // of h, one for each mask on its way to a gate

    // What a thread does: its rows of the batch and its units, one of them all there are.
    struct Part {
        int threads, thread;
        Range rows, units;
        int64_t count() const { return rows.last - rows.first; }
    };

    template <typename Body>
    void in_parallel(Body body) {
        const auto part = [&](int threads, int thread) {
            return Part{threads, thread, split_batch ? share(batch, threads, thread) : Range{0, batch},
                        split_batch ? Range{0, blocks} : share(blocks, threads, thread)};
        };
#ifdef _OPENMP
#pragma omp parallel num_threads((int)x.threads)
        body(part(omp_get_num_threads(), omp_get_thread_num()));
#else
        body(part(1, 0));
#endif
    }

    int64_t chunk_steps(const Part& p) const { return std::max<int64_t>(1, CHUNK / p.count()); }

    // ------------------------------------------------ forward

    // Turns N vectors of N lanes about, exchanging blocks of HALF lanes, then of twice as many.
    template <int HALF = 1>
    static void transpose(Vec<T>* rows) {
        if constexpr (HALF < N) {
            typename Vector<T>::integer low, high;
#pragma GCC unroll 16
            for (int lane = 0; lane < N; lane++) {
                low[lane] = lane & HALF ? N + lane - HALF : lane;
                high[lane] = lane & HALF ? N + lane : lane + HALF;
            }
#pragma GCC unroll 16
            for (int row = 0; row < N; row++) {
                if (row & HALF) continue;
                const Vec<T> a = rows[row], b = rows[row + HALF];
                rows[row] = __builtin_shuffle(a, b, low);
                rows[row + HALF] = __builtin_shuffle(a, b, high);
            }
            transpose<2 * HALF>(rows);
        }
    }

    // One panel a block of units, [k][gate][lane] = weight[gate H + unit][k]
    void pack_gates(const T* weight, int64_t depth, T* panels, int64_t block) const {
        T* panel = panels + block * depth * GATES * N;
        for (int gate = 0; gate < GATES; gate++) {
            const T* from = weight + (gate * hidden + block * N) * depth;
            for (int64_t k = 0; k < depth; k += N) {
                const int columns = (int)std::min<int64_t>(N, depth - k), units = lanes(block);
                Vec<T> rows[N];
#pragma GCC unroll 16
                for (int lane = 0; lane < N; lane++) rows[lane] = lane < units ? load(from + lane * depth + k, columns) : Vec<T>{};
                transpose(rows);
#pragma GCC unroll 16
                for (int column = 0; column < N; column++)
                    if (column < columns) store(panel + (k + column) * GATES * N + gate * N, rows[column], N);
            }
        }
    }

    void forward() {
        const int64_t masks = has(REC) ? copies() : 0;
        auto w_panels = allocate<T>(blocks * width * GATES * N), r_panels = allocate<T>(blocks * hidden * GATES * N);
        auto masked = allocate<T>(2 * masks * batch * hidden);  // rec * h, of this step and of the next
        const int64_t state = batch * hidden * sizeof(T);
        in_large_pages(gates, x.time * GATES * state);
        in_large_pages(outputs, x.time * state);
        in_large_pages(cells, (x.keep ? x.time : 1) * state);
        in_parallel([&](Part p) {
            for (int64_t u = p.thread; u < blocks; u += p.threads) {
                pack_gates((const T*)x.w_input, width, w_panels.get(), u);
                pack_gates((const T*)x.w_hidden, hidden, r_panels.get(), u);
            }
            auto scratch = allocate<T>(p.count() * GATES * N);
            const T *h = (const T*)x.h, *c = (const T*)x.c;
            for (int64_t u = p.units.first; u < p.units.last; u++) mask_hidden(h, masked.get(), 0, p.rows, u);
            barrier.wait(p.threads);
            for (int64_t t = 0; t < x.time; t++) {
                if (width > NARROW && t % chunk_steps(p) == 0) project(t, std::min(t + chunk_steps(p), x.time), p, w_panels.get());
                T *const h_out = outputs + t * batch * hidden, *const c_out = cells + (x.keep ? t * batch * hidden : 0);
                const T* from = (masks ? masked.get() + (t % 2) * masks * batch * hidden : h) + p.rows.first * hidden;
                for (int64_t u = p.units.first; u < p.units.last; u++) {
                    from_state(p, from, r_panels.get(), u, scratch.get(), GATES * N);
                    for (int64_t b = p.rows.first; b < p.rows.last; b++)
                        step(t, b, u, scratch.get() + (b - p.rows.first) * GATES * N,
                             width > NARROW ? nullptr : w_panels.get() + u * width * GATES * N, h, c, h_out, c_out);
                    if (t + 1 < x.time) mask_hidden(h_out, masked.get(), t + 1, p.rows, u);
                }
                h = h_out;
                c = c_out;
                if (!split_batch) barrier.wait(p.threads);
            }
        });
    }

    // R (rec * h) for a block of units; `from` holds a copy of rec * h for each gate where they differ.
    void from_state(const Part& p, const T* from, const T* panels, int64_t block, T* to, int64_t row_step) const {
        const T* panel = panels + block * hidden * GATES * N;
        const int64_t count = copies(), wide = GATES / count;
        for (int64_t k = 0; k < count; k++)
            product<T>(p.count(), (int)wide, {from + k * batch * hidden, hidden, 1}, {panel + k * wide * N, GATES * N}, hidden,
                       {to + k * wide * N, row_step, N, N, N});
    }

    // W x(t) of some steps into the gates.
    void project(int64_t first, int64_t last, const Part& p, const T* panels) const {
        const bool whole = p.count() == batch;  // then the rows of all steps follow each other
        for (int64_t u = p.units.first; u < p.units.last; u++)
            for (int64_t t = first; t < last; t += whole ? last - first : 1) {
                const int64_t row = t * batch + p.rows.first, rows = whole ? (last - first) * batch : p.count();
                product<T>(rows, GATES, {(const T*)x.inputs + row * width, width, 1},
                           {panels + u * width * GATES * N, GATES * N}, width,
                           {gates + row * GATES * hidden + u * N, GATES * hidden, hidden, lanes(u), lanes(u)});
            }
    }

    void mask_hidden(const T* h, T* masked, int64_t t, Range rows, int64_t block) const {
        if (!has(REC)) return;
        const int n = lanes(block);
        for (int64_t k = 0; k < copies(); k++)
            for (int64_t b = rows.first; b < rows.last; b++) {
                const int64_t at = b * hidden + block * N;
                store(masked + ((t % 2) * copies() + k) * batch * hidden + at, load(h + at, n) * mask(REC, t, b, block, k), n);
            }
    }

    // `narrow`: the panel of W, where the inputs are not projected yet.
    inline void step(int64_t t, int64_t b, int64_t block, const T* product, const T* narrow, const T* h, const T* c, T* h_out,
                     T* c_out) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, row = t * batch + b;
        T* gate = gates + row * GATES * hidden + block * N;
        const auto before = [&](int k) {
            Vec<T> value = load(product + k * N, N);
            if (!narrow) value += load(gate + k * hidden, n);
            for (int64_t i = 0; narrow && i < width; i++)
                value += ((const T*)x.inputs)[row * width + i] * load(narrow + (i * GATES + k) * N, N);
            return x.bias ? value + load((const T*)x.bias + k * hidden + block * N, n) : value;
        };
        const Vec<T> i = sigmoid(before(0)), f = sigmoid(before(1));
        const Vec<T> g = hyperbolic_tangent(before(2)), o = sigmoid(before(3));
        if (x.keep) {
            store(gate, i, n);
            store(gate + hidden, f, n);
            store(gate + 2 * hidden, g, n);
            store(gate + 3 * hidden, o, n);
        }
        const Vec<T> c_old = load(c + at, n);
        Vec<T> c_new = new_cell(t, b, block, i, f, g, c_old);
        Vec<T> h_new = o * hyperbolic_tangent(c_new);
        if (has(CKEEP)) c_new = c_old + mask(CKEEP, t, b, block) * (c_new - c_old);
        if (has(HKEEP)) {
            const Vec<T> h_old = load(h + at, n);
            h_new = h_old + mask(HKEEP, t, b, block) * (h_new - h_old);
        }
        if (has(OUT)) h_new *= mask(OUT, t, b, block);
        store(c_out + at, c_new, n);
        store(h_out + at, h_new, n);
    }

    inline Vec<T> new_cell(int64_t t, int64_t b, int64_t block, Vec<T> i, Vec<T> f, Vec<T> g, Vec<T> c) const {
        Vec<T> update = i * g;
        if (has(UPD)) update *= mask(UPD, t, b, block);
        update += f * c;
        if (has(CMUL)) update *= mask(CMUL, t, b, block);
        return update;
    }

    // ------------------------------------------------ backward

    // The columns of a weight as they are, [row][lane], zeros beyond the last.
    static void pack_columns(const T* weight, int64_t rows, int64_t columns, int64_t first, int wide, T* to) {
        const int64_t count = std::min<int64_t>(wide * N, columns - first);
        for (int64_t row = 0; row < rows; row++, to += wide * N) {
            memcpy(to, weight + row * columns + first, count * sizeof(T));
            memset(to + count, 0, (wide * N - count) * sizeof(T));
        }
    }

    // Gradients of the gates, gathered until there are enough for the product that sums the weights' gradients.
    struct Gathered {
        T *left, *right;   // [gate][tile of units][row][unit], and a panel of the other factor
        int64_t *step, *row;
        int64_t count, capacity;
        bool fresh;  // the first of all
    };

    void backward() {
        const int64_t deep = GATES * hidden, x_blocks = vectors(width), joint = width + hidden + 1;
        if (x.dinputs) in_large_pages(x.dinputs, x.time * batch * width * sizeof(T));
        if (x.dw_input) in_large_pages(x.dw_input, deep * width * sizeof(T));
        if (x.dw_hidden) in_large_pages(x.dw_hidden, deep * hidden * sizeof(T));
        auto r_panels = allocate<T>(blocks * N * deep), w_panels = allocate<T>(x.dinputs ? x_blocks * N * deep : 0);
        auto parts = allocate<T>(split_batch ? x.threads * deep * joint : 0);  // the threads' sums for [W, R, bias]
        auto shared = allocate<T>(split_batch ? 0 : std::max(CHUNK, batch) * deep);
        in_parallel([&](Part p) {
            const Range x_units = split_batch ? Range{0, x_blocks} : share(x_blocks, p.threads, p.thread);
            const auto pack = [&](const T* weight, int64_t columns, Range own, T* panels) {
                int64_t turn = 0;
                for_panels<T>(own, columns, [&](int64_t first, int wide, int) {
                    if (!split_batch || turn++ % p.threads == p.thread)
                        pack_columns(weight, deep, columns, first, wide, panels + first * deep);
                });
            };
            pack((const T*)x.w_hidden, hidden, p.units, r_panels.get());
            if (x.dinputs) pack((const T*)x.w_input, width, x_units, w_panels.get());
            const int64_t steps = chunk_steps(p), tiles = (own_units(p) + MAX_ROWS - 1) / MAX_ROWS;
            const int64_t capacity = std::max(GATHER, steps * p.count());
            auto mine = allocate<T>(split_batch ? steps * p.count() * deep : 0), scratch = allocate<T>(p.count() * WIDTH * N);
            auto left = allocate<T>(GATES * tiles * MAX_ROWS * capacity), right = allocate<T>(PANELS * capacity * WIDTH * N);
            auto places = allocate<int64_t>(2 * capacity);
            Gathered gathered{left.get(), right.get(), places.get(), places.get() + capacity, 0, capacity, true};
            T* const dgates = split_batch ? mine.get() : shared.get();
            for (int64_t last = x.time, first; last > 0; last = first) {
                first = std::max<int64_t>(0, last - steps);
                // The panels are there and, where they are shared, nobody needs the last chunk's gradients any more.
                if (!split_batch || last == x.time) barrier.wait(p.threads);
                for (int64_t t = last - 1; t >= first; t--) {
                    T* const now = dgates + (t - first) * p.count() * deep;
                    for (int64_t b = p.rows.first; b < p.rows.last; b++)
                        for (int64_t u = p.units.first; u < p.units.last; u++)
                            step_backward(t, b, u, now + (b - p.rows.first) * deep);
                    if (!split_batch) barrier.wait(p.threads);
                    to_state(t, p, now, r_panels.get(), scratch.get());
                }
                if (x.dinputs) to_inputs(first, last, p, dgates, x_units, w_panels.get());
                if (gathered.count + (last - first) * p.count() > capacity) weight_gradients(p, gathered, parts.get());
                gather(first, last, p, dgates, gathered);
            }
            weight_gradients(p, gathered, parts.get());
            if (!split_batch) return;
            barrier.wait(p.threads);
            const Range own = share(deep, p.threads, p.thread);
            const auto add_up = [&](void* to, int64_t from, int64_t columns) {
                for (int64_t n = own.first * columns; to && n < own.last * columns; n++) {
                    T sum = 0;
                    for (int thread = 0; thread < p.threads; thread++)
                        sum += parts[(thread * deep + n / columns) * joint + from + n % columns];
                    ((T*)to)[n] = sum;
                }
            };
            add_up(x.dw_input, 0, width);
            add_up(x.dw_hidden, width, hidden);
            add_up(x.dbias, width + hidden, 1);
        });
    }

    int64_t own_units(const Part& p) const { return std::min(p.units.last * N, hidden) - p.units.first * N; }

    // dh += rec * (R' dgates)
    void to_state(int64_t t, const Part& p, const T* dgates, const T* panels, T* scratch) const {
        for_panels<T>(p.units, hidden, [&](int64_t first, int wide, int) {
            for (int64_t k = 0; k < copies(); k++) {
                const int64_t deep = GATES * hidden / copies();
                product<T>(p.count(), wide, {dgates + k * deep, GATES * hidden, 1},
                           {panels + first * GATES * hidden + k * deep * wide * N, wide * N}, deep,
                           {scratch, wide * N, N, N, N});
                for (int64_t b = p.rows.first; b < p.rows.last; b++)
                    for (int v = 0; v < wide; v++) {
                        const int64_t u = first / N + v;
                        T* dh = (T*)x.dh + b * hidden + u * N;
                        Vec<T> more = load(scratch + (b - p.rows.first) * wide * N + v * N, N);
                        if (has(REC)) more *= mask(REC, t, b, u, k);
                        store(dh, load(dh, lanes(u)) + more, lanes(u));
                    }
            }
        });
    }

    // dx(t) = W' dgates of some steps
    void to_inputs(int64_t first_step, int64_t last_step, const Part& p, const T* dgates, Range units, const T* panels) const {
        const bool whole = p.count() == batch;  // then the rows of all steps follow each other
        for_panels<T>(units, width, [&](int64_t first, int wide, int tail) {
            for (int64_t t = first_step; t < last_step; t += whole ? last_step - first_step : 1)
                product<T>(whole ? (last_step - first_step) * batch : p.count(), wide,
                           {dgates + (t - first_step) * p.count() * GATES * hidden, GATES * hidden, 1},
                           {panels + first * GATES * hidden, wide * N}, GATES * hidden,
                           {(T*)x.dinputs + (t * batch + p.rows.first) * width + first, width, N, N, tail});
        });
    }

    // Puts this thread's units of some steps' gradients with those that wait.
    void gather(int64_t first, int64_t last, const Part& p, const T* dgates, Gathered& to) const {
        if (!x.dw_input && !x.dw_hidden && !x.dbias) return;
        const int64_t unit = p.units.first * N, units = own_units(p), tiles = (units + MAX_ROWS - 1) / MAX_ROWS;
        const int64_t start = to.count;
        for (int64_t t = first; t < last; t++)
            for (int64_t b = p.rows.first; b < p.rows.last; b++, to.count++) {
                to.step[to.count] = t;
                to.row[to.count] = b;
            }
        for (int gate = 0; gate < GATES; gate++)
            for (int64_t k = start; k < to.count; k++) {
                const T* from = dgates + (k - start) * GATES * hidden + gate * hidden + unit;
                T* left = to.left + (gate * tiles * to.capacity + k) * MAX_ROWS;
                const int64_t whole = units / MAX_ROWS;
                for (int64_t tile = 0; tile < whole; tile++, left += to.capacity * MAX_ROWS)
                    memcpy(left, from + tile * MAX_ROWS, MAX_ROWS * sizeof(T));
                if (whole < tiles) memcpy(left, from + whole * MAX_ROWS, (units - whole * MAX_ROWS) * sizeof(T));
            }
    }

    // The gradients of W, R and the bias for this thread's units from what is gathered: dgates' [x, rec * h(t-1), 1]
    void weight_gradients(const Part& p, Gathered& from, T* parts) const {
        if (from.count == 0) return;
        const int64_t joint = width + hidden + 1;
        const auto previous = [&](int64_t t, int64_t b) {
            return (t ? outputs + (t - 1) * batch * hidden : (const T*)x.h) + b * hidden;
        };
        const auto masked = [&](int64_t t, int64_t b, int64_t block, int64_t k) {
            const Vec<T> value = load(previous(t, b) + block * N, lanes(block));
            return has(REC) ? value * mask(REC, t, b, block, k) : value;
        };
        if (split_batch) {
            auto row = allocate<T>(joint + N);
            for (int64_t k = 0; k < copies(); k++)
                sum(p, from, k, GATES / copies(), joint, parts + p.thread * GATES * hidden * joint,
                    [&](int64_t n, int64_t column, int wide, T* to) {
                        const int64_t t = from.step[n], b = from.row[n];
                        memcpy(row.get(), (const T*)x.inputs + (t * batch + b) * width, width * sizeof(T));
                        for (int64_t u = 0; u < blocks; u++) store(row.get() + width + u * N, masked(t, b, u, k), lanes(u));
                        row[width + hidden] = 1;
                        memset(row.get() + joint, 0, N * sizeof(T));
                        memcpy(to, row.get() + column, wide * N * sizeof(T));
                    });
        } else {
            if (x.dw_input)
                sum(p, from, 0, GATES, width, (T*)x.dw_input, [&](int64_t n, int64_t column, int wide, T* to) {
                    const T* row = (const T*)x.inputs + (from.step[n] * batch + from.row[n]) * width;
                    for (int v = 0; v < wide; v++, column += N)
                        store(to + v * N, load(row + column, (int)std::min<int64_t>(N, width - column)), N);
                });
            for (int64_t k = 0; x.dw_hidden && k < copies(); k++)
                sum(p, from, k, GATES / copies(), hidden, (T*)x.dw_hidden, [&](int64_t n, int64_t column, int wide, T* to) {
                    for (int v = 0; v < wide; v++)
                        store(to + v * N, masked(from.step[n], from.row[n], column / N + v, k), N);
                });
            if (x.dbias) sum_bias(p, from);
        }
        from.count = 0;
        from.fresh = false;
    }

    // target (+)= left' right, for some gates; `fill` writes some columns of one row of the right factor.
    template <typename Fill>
    void sum(const Part& p, const Gathered& from, int64_t gate, int64_t gates, int64_t columns, T* target, Fill fill) const {
        const int64_t unit = p.units.first * N, units = own_units(p), tiles = (units + MAX_ROWS - 1) / MAX_ROWS;
        struct {
            int64_t first;
            int wide, tail;
            T* right;
        } panels[PANELS];
        int64_t count = 0;
        const auto multiply = [&] {
            for (int64_t g = gate; g < gate + gates; g++)
                for (int64_t tile = 0; tile < tiles; tile++)
                    for (int64_t n = 0; n < count; n++)
                        product<T>(std::min<int64_t>(MAX_ROWS, units - tile * MAX_ROWS), panels[n].wide,
                                   {from.left + (g * tiles + tile) * MAX_ROWS * from.capacity, 1, MAX_ROWS},
                                   {panels[n].right, panels[n].wide * N}, from.count,
                                   {target + (g * hidden + unit + tile * MAX_ROWS) * columns + panels[n].first, columns, N, N,
                                    panels[n].tail},
                                   !from.fresh);
            count = 0;
        };
        for_panels<T>({0, vectors(columns)}, columns, [&](int64_t first, int wide, int tail) {
            T* right = from.right + count * from.capacity * WIDTH * N;
            for (int64_t n = 0; n < from.count; n++) fill(n, first, wide, right + n * wide * N);
            panels[count++] = {first, wide, tail, right};
            if (count == PANELS) multiply();
        });
        multiply();
    }

    void sum_bias(const Part& p, const Gathered& from) const {
        const int64_t unit = p.units.first * N, units = own_units(p), tiles = (units + MAX_ROWS - 1) / MAX_ROWS;
        for (int gate = 0; gate < GATES; gate++)
            for (int64_t tile = 0; tile < tiles; tile++) {
                const T* left = from.left + (gate * tiles + tile) * MAX_ROWS * from.capacity;
                T sum[MAX_ROWS] = {};
                for (int64_t k = 0; k < from.count; k++)
                    for (int r = 0; r < MAX_ROWS; r++) sum[r] += left[k * MAX_ROWS + r];
                T* to = (T*)x.dbias + gate * hidden + unit + tile * MAX_ROWS;
                for (int64_t r = 0; r < std::min<int64_t>(MAX_ROWS, units - tile * MAX_ROWS); r++)
                    to[r] = sum[r] + (from.fresh ? 0 : to[r]);
            }
    }

    // `dgates`: those of the row
    inline void step_backward(int64_t t, int64_t b, int64_t block, T* dgates) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        const T* gate = gates + (t * batch + b) * GATES * hidden + block * N;
        T* const dgate = dgates + block * N;
        T *const dh = (T*)x.dh + at, *const dc = (T*)x.dc + at;
        const Vec<T> i = load(gate, n), f = load(gate + hidden, n), g = load(gate + 2 * hidden, n);
        const Vec<T> o = load(gate + 3 * hidden, n);
        const Vec<T> c = load(t ? cells + now - batch * hidden : (const T*)x.c + at, n);
        const Vec<T> tanh = hyperbolic_tangent(new_cell(t, b, block, i, f, g, c));
        Vec<T> dnew_h = load(dh, n), dnew_c = load(dc, n);
        if (x.doutputs) dnew_h += load((const T*)x.doutputs + now, n);
        if (x.dcells) dnew_c += load((const T*)x.dcells + now, n);
        if (has(OUT)) dnew_h *= mask(OUT, t, b, block);
        Vec<T> dold_h{}, dold_c{};
        if (has(HKEEP)) {
            const Vec<T> all = dnew_h;
            dnew_h *= mask(HKEEP, t, b, block);
            dold_h = all - dnew_h;
        }
        if (has(CKEEP)) {
            const Vec<T> all = dnew_c;
            dnew_c *= mask(CKEEP, t, b, block);
            dold_c = all - dnew_c;
        }
        dnew_c += dnew_h * o * (1 - tanh * tanh);
        if (has(CMUL)) dnew_c *= mask(CMUL, t, b, block);
        Vec<T> dupdate = dnew_c;
        if (has(UPD)) dupdate *= mask(UPD, t, b, block);
        store(dgate, dupdate * g * i * (1 - i), n);
        store(dgate + hidden, dnew_c * c * f * (1 - f), n);
        store(dgate + 2 * hidden, dupdate * i * (1 - g * g), n);
        store(dgate + 3 * hidden, dnew_h * tanh * o * (1 - o), n);
        store(dh, dold_h, n);
        store(dc, dold_c + dnew_c * f, n);
    }
};

// ---------------------------------------------------------------- the normalised layer

inline double square_root(double x) { return std::sqrt(x); }
inline float square_root(float x) { return std::sqrt(x); }
template <typename V>
inline V square_root(V x) {
    for (size_t k = 0; k < sizeof x / sizeof x[0]; k++) x[k] = std::sqrt(x[k]);
    return x;
}

// Batch normalisation wants all rows of a unit in one thread, layer normalisation all units of a row: the threads share
// the units in the one, the rows in the other, and a set of numbers that is normalised together is called a group.
template <typename T>
struct NormalisedLstm : Lstm<T> {
    using Base = Lstm<T>;
    using typename Base::Part;
    using Base::barrier, Base::batch, Base::blocks, Base::cells, Base::gates, Base::has, Base::hidden,
        Base::lanes, Base::mask, Base::N, Base::outputs, Base::split_batch, Base::x;
    const bool by_batch;

    explicit NormalisedLstm(const Arguments& x) : Base(x, x.norm == LAYER), by_batch(x.norm == BATCH) {}

    // Values of a thread's rows and units: (row, unit block) at from[row * row_step + block * WIDE * N], WIDE vectors each.
    struct Grid {
        T* from;
        int64_t row_step, wide;
        T* at(int64_t row, int64_t block, int64_t vector) const { return from + row * row_step + (block * wide + vector) * N; }
    };

    // For every group: `of` adds each vector to two sums, `means` makes something of their means, `then` takes it to each.
    template <typename Of, typename Means, typename Then>
    void by_group(const Part& p, int64_t wide, Of of, Means means, Then then) const {
        const int64_t own = p.units.last - p.units.first;
        if (by_batch) {
            for (int64_t u = 0; u < own; u++)
                for (int64_t v = 0; v < wide; v++) {
                    Vec<T> first{}, second{};
                    for (int64_t b = 0; b < p.count(); b++) of(b, u, v, first, second);
                    const auto found = means(u, v, first / T(p.count()), second / T(p.count()));
                    for (int64_t b = 0; b < p.count(); b++) then(b, u, v, found);
                }
            return;
        }
        const T count = T(wide * hidden);
        for (int64_t b = 0; b < p.count(); b++) {
            Vec<T> first{}, second{};
            for (int64_t u = 0; u < own; u++)
                for (int64_t v = 0; v < wide; v++) of(b, u, v, first, second);
            T sums[2] = {};
            for (int k = 0; k < N; k++) {
                sums[0] += first[k];
                sums[1] += second[k];
            }
            const auto found = means(b, 0, Vec<T>{} + sums[0] / count, Vec<T>{} + sums[1] / count);
            for (int64_t u = 0; u < own; u++)
                for (int64_t v = 0; v < wide; v++) then(b, u, v, found);
        }
    }

    int lanes_of(const Part& p, int64_t u) const { return lanes(p.units.first + u); }

    // Normalises the grid of a step in place. `mean` and `var`: of the step, by [vector][unit] or by row.
    void normalise(const Part& p, Grid grid, T* mean, T* var) const {
        struct Found {
            Vec<T> mean, reciprocal;
        };
        const auto place = [&](int64_t u, int64_t v) { return v * hidden + (p.units.first + u) * N; };
        const auto scale = [&](Vec<T> value) { return 1 / square_root(value + T(x.eps)); };
        const auto apply = [&](int64_t b, int64_t u, int64_t v, const Found& f) {
            T* at = grid.at(b, u, v);
            store(at, (load(at, N) - f.mean) * f.reciprocal, N);
        };
        if (x.population) {
            for (int64_t u = 0; u < p.units.last - p.units.first; u++)
                for (int64_t v = 0; v < grid.wide; v++) {
                    const int n = lanes_of(p, u);
                    const Found found{load(mean + place(u, v), n), scale(load(var + place(u, v), n))};
                    for (int64_t b = 0; b < p.count(); b++) apply(b, u, v, found);
                }
            return;
        }
        // Twice: the variance from the differences to the mean, of which the lanes past the last unit have none.
        by_group(
            p, grid.wide,
            [&](int64_t b, int64_t u, int64_t v, Vec<T>& sum, Vec<T>&) { sum += load(grid.at(b, u, v), N); },
            [&](int64_t u, int64_t v, Vec<T> found, Vec<T>) {
                if (by_batch) store(mean + place(u, v), found, lanes_of(p, u));
                return found;
            },
            [&](int64_t b, int64_t u, int64_t v, Vec<T> found) {
                T* at = grid.at(b, u, v);
                const Vec<T> centred = load(at, N) - found;
                store(at, Vec<T>{}, N);
                store(at, centred, lanes_of(p, u));
            });
        by_group(
            p, grid.wide,
            [&](int64_t b, int64_t u, int64_t v, Vec<T>& sum, Vec<T>&) {
                const Vec<T> value = load(grid.at(b, u, v), N);
                sum += value * value;
            },
            [&](int64_t u, int64_t v, Vec<T> found, Vec<T>) {
                const Vec<T> reciprocal = scale(found);
                if (by_batch) store(var + place(u, v), found, lanes_of(p, u));
                else var[p.rows.first + u] = reciprocal[0];
                return reciprocal;
            },
            [&](int64_t b, int64_t u, int64_t v, Vec<T> reciprocal) {
                T* at = grid.at(b, u, v);
                store(at, load(at, N) * reciprocal, N);
            });
    }

    // The gradient of what was normalised, in place of that of the result; `normal(b, u, v)` is the result.
    template <typename Normal>
    void normalise_backward(const Part& p, Grid grid, const T* var, Normal normal) const {
        struct Found {
            Vec<T> mean, product, reciprocal;
        };
        by_group(
            p, grid.wide,
            [&](int64_t b, int64_t u, int64_t v, Vec<T>& sum, Vec<T>& product) {
                const Vec<T> value = load(grid.at(b, u, v), N);
                sum += value;
                product += value * normal(b, u, v);
            },
            [&](int64_t u, int64_t v, Vec<T> mean, Vec<T> product) {
                if (!by_batch) return Found{mean, product, Vec<T>{} + var[p.rows.first + u]};
                const Vec<T> own = load(var + v * hidden + (p.units.first + u) * N, lanes_of(p, u));
                const Vec<T> reciprocal = 1 / square_root(own + T(x.eps));
                return x.population ? Found{Vec<T>{}, Vec<T>{}, reciprocal} : Found{mean, product, reciprocal};
            },
            [&](int64_t b, int64_t u, int64_t v, const Found& f) {
                T* at = grid.at(b, u, v);
                store(at, f.reciprocal * (load(at, N) - f.mean - normal(b, u, v) * f.product), N);
            });
    }

    T* of_step(void* moments, int64_t t, int64_t vectors) const {
        return (T*)moments + t * (by_batch ? vectors * hidden : batch);
    }

    void forward() {
        const int64_t masks = has(REC) ? Base::copies() : 0, state = batch * hidden * sizeof(T);
        auto panels = allocate<T>(blocks * hidden * GATES * N), masked = allocate<T>(2 * masks * batch * hidden);
        for (void* made : {x.normal_hidden, x.gates}) in_large_pages(made, x.time * GATES * state);
        for (void* made : {x.outputs, x.cells, x.normal_cell}) in_large_pages(made, x.time * state);
        Base::in_parallel([&](Part p) {
            for (int64_t u = p.thread; u < blocks; u += p.threads)
                Base::pack_gates((const T*)x.w_hidden, hidden, panels.get(), u);
            const int64_t own = p.units.last - p.units.first, first = p.units.first;
            auto sums = allocate<T>(p.count() * own * GATES * N), fresh = allocate<T>(p.count() * own * N);
            const Grid recurrent{sums.get(), own * GATES * N, GATES}, cell{fresh.get(), own * N, 1};
            const T *h = (const T*)x.h, *c = (const T*)x.c;
            for (int64_t u = first; u < p.units.last; u++) Base::mask_hidden(h, masked.get(), 0, p.rows, u);
            barrier.wait(p.threads);
            for (int64_t t = 0; t < x.time; t++) {
                T *const h_out = outputs + t * batch * hidden, *const c_out = cells + t * batch * hidden;
                const T* from = (masks ? masked.get() + (t % 2) * masks * batch * hidden : h) + p.rows.first * hidden;
                for (int64_t u = 0; u < own; u++)
                    Base::from_state(p, from, panels.get(), first + u, recurrent.at(0, u, 0), recurrent.row_step);
                normalise(p, recurrent, of_step(x.hidden_mean, t, GATES), of_step(x.hidden_var, t, GATES));
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++) open(t, p.rows.first + b, first + u, recurrent.at(b, u, 0), c, c_out, cell.at(b, u, 0));
                normalise(p, cell, of_step(x.cell_mean, t, 1), of_step(x.cell_var, t, 1));
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++) show(t, p.rows.first + b, first + u, cell.at(b, u, 0), h, h_out);
                for (int64_t u = first; t + 1 < x.time && u < p.units.last; u++)
                    Base::mask_hidden(h_out, masked.get(), t + 1, p.rows, u);
                h = h_out;
                c = c_out;
                if (!split_batch) barrier.wait(p.threads);
            }
        });
    }

    // Opens the gates of some units of one row, writes what is carried on of the new cell, and the new cell.
    inline void open(int64_t t, int64_t b, int64_t block, const T* normal, const T* c, T* c_out, T* fresh) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, wide = (t * batch + b) * GATES * hidden + block * N;
        Vec<T> gate[GATES];
        for (int k = 0; k < GATES; k++) {
            const Vec<T> value = load(normal + k * N, N);
            store((T*)x.normal_hidden + wide + k * hidden, value, n);
            gate[k] = load(gates + wide + k * hidden, n) + load((const T*)x.gain_hidden + k * hidden + block * N, n) * value;
            gate[k] = k == 2 ? hyperbolic_tangent(gate[k]) : sigmoid(gate[k]);
            store(gates + wide + k * hidden, gate[k], n);
        }
        const Vec<T> c_old = load(c + at, n);
        Vec<T> c_new = Base::new_cell(t, b, block, gate[0], gate[1], gate[2], c_old);
        store(fresh, Vec<T>{}, N);
        store(fresh, c_new, n);
        if (has(CKEEP)) c_new = c_old + mask(CKEEP, t, b, block) * (c_new - c_old);
        store(c_out + at, c_new, n);
    }

    // Writes the hidden state of some units of one row from the normalised new cell.
    inline void show(int64_t t, int64_t b, int64_t block, const T* normal, const T* h, T* h_out) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        const Vec<T> value = load(normal, N), o = load(gates + (t * batch + b) * GATES * hidden + 3 * hidden + block * N, n);
        store((T*)x.normal_cell + now, value, n);
        Vec<T> h_new = o * squashed(block, value);
        if (has(HKEEP)) {
            const Vec<T> h_old = load(h + at, n);
            h_new = h_old + mask(HKEEP, t, b, block) * (h_new - h_old);
        }
        if (has(OUT)) h_new *= mask(OUT, t, b, block);
        store(h_out + at, h_new, n);
    }

    inline Vec<T> squashed(int64_t block, Vec<T> normal) const {
        const int n = lanes(block);
        const T *gain = (const T*)x.gain_cell + block * N, *bias = (const T*)x.bias_cell + block * N;
        return hyperbolic_tangent(load(gain, n) * normal + load(bias, n));
    }

    void backward() {
        const int64_t deep = GATES * hidden, parameters = deep + 2 * hidden;
        auto panels = allocate<T>(blocks * N * deep), parts = allocate<T>(x.threads * parameters);
        Base::in_parallel([&](Part p) {
            int64_t turn = 0;
            for_panels<T>(p.units, hidden, [&](int64_t first, int wide, int) {
                if (!split_batch || turn++ % p.threads == p.thread)
                    Base::pack_columns((const T*)x.w_hidden, deep, hidden, first, wide, panels.get() + first * deep);
            });
            T* const mine = parts.get() + p.thread * parameters;  // gradients of gain_hidden, gain_cell, bias_cell
            memset(mine, 0, parameters * sizeof(T));
            const int64_t own = p.units.last - p.units.first, first = p.units.first;
            auto wide_grid = allocate<T>(p.count() * own * GATES * N), narrow_grid = allocate<T>(p.count() * own * N);
            auto scratch = allocate<T>(p.count() * WIDTH * N);
            const Grid recurrent{wide_grid.get(), own * GATES * N, GATES}, cell{narrow_grid.get(), own * N, 1};
            barrier.wait(p.threads);
            for (int64_t t = x.time - 1; t >= 0; t--) {
                const auto row = [&](int64_t b) { return t * batch + p.rows.first + b; };
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++) hide(t, p.rows.first + b, first + u, cell.at(b, u, 0), mine + deep);
                normalise_backward(p, cell, of_step(x.cell_var, t, 1), [&](int64_t b, int64_t u, int64_t) {
                    return load((const T*)x.normal_cell + row(b) * hidden + (first + u) * N, lanes(first + u));
                });
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++)
                        close(t, p.rows.first + b, first + u, cell.at(b, u, 0), recurrent.at(b, u, 0), mine);
                const auto normal = [&](int64_t b, int64_t u, int64_t k) {
                    return (T*)x.normal_hidden + row(b) * deep + k * hidden + (first + u) * N;
                };
                normalise_backward(p, recurrent, of_step(x.hidden_var, t, GATES), [&](int64_t b, int64_t u, int64_t k) {
                    return load(normal(b, u, k), lanes(first + u));
                });
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++)
                        for (int64_t k = 0; k < GATES; k++)
                            store(normal(b, u, k), load(recurrent.at(b, u, k), N), lanes(first + u));
                if (!split_batch) barrier.wait(p.threads);
                Base::to_state(t, p, (const T*)x.normal_hidden + row(0) * deep, panels.get(), scratch.get());
            }
            barrier.wait(p.threads);
            const Range share_of = share(parameters, p.threads, p.thread);
            for (int64_t n = share_of.first; n < share_of.last; n++) {
                T sum = 0;
                for (int thread = 0; thread < p.threads; thread++) sum += parts[thread * parameters + n];
                T* to = (T*)(n < deep ? x.dgain_hidden : n < deep + hidden ? x.dgain_cell : x.dbias_cell);
                to[n < deep ? n : (n - deep) % hidden] = sum;
            }
        });
    }

    // From dh to the gradients of the output gate, over the gate, and of the normalised cell; sums those of its gain and bias.
    inline void hide(int64_t t, int64_t b, int64_t block, T* dnormal, T* sums) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        T *const dh = (T*)x.dh + at, *const gate = gates + (t * batch + b) * GATES * hidden + 3 * hidden + block * N;
        Vec<T> dnew_h = load(dh, n), dold_h{};
        if (x.doutputs) dnew_h += load((const T*)x.doutputs + now, n);
        if (has(OUT)) dnew_h *= mask(OUT, t, b, block);
        if (has(HKEEP)) {
            const Vec<T> all = dnew_h;
            dnew_h *= mask(HKEEP, t, b, block);
            dold_h = all - dnew_h;
        }
        const Vec<T> normal = load((const T*)x.normal_cell + now, n), o = load(gate, n), tanh = squashed(block, normal);
        store(dh, dold_h, n);
        store(gate, dnew_h * tanh * o * (1 - o), n);
        const Vec<T> shown = dnew_h * o * (1 - tanh * tanh);
        T *const gain = sums + block * N, *const bias = gain + hidden;
        store(gain, load(gain, n) + shown * normal, n);
        store(bias, load(bias, n) + shown, n);
        store(dnormal, Vec<T>{}, N);
        store(dnormal, shown * load((const T*)x.gain_cell + block * N, n), n);
    }

    // From the gradient of the new cell's way into the output to those of the gates, in their place, and, scaled, of R h.
    inline void close(int64_t t, int64_t b, int64_t block, const T* dshown, T* dnormal, T* sums) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        const int64_t wide = (t * batch + b) * GATES * hidden + block * N;
        T *const gate = gates + wide, *const dc = (T*)x.dc + at;
        const Vec<T> i = load(gate, n), f = load(gate + hidden, n), g = load(gate + 2 * hidden, n);
        const Vec<T> c = load(t ? cells + now - batch * hidden : (const T*)x.c + at, n);
        Vec<T> dnew_c = load(dc, n), dold_c{};
        if (x.dcells) dnew_c += load((const T*)x.dcells + now, n);
        if (has(CKEEP)) {
            const Vec<T> all = dnew_c;
            dnew_c *= mask(CKEEP, t, b, block);
            dold_c = all - dnew_c;
        }
        dnew_c += load(dshown, N);
        if (has(CMUL)) dnew_c *= mask(CMUL, t, b, block);
        Vec<T> dupdate = dnew_c;
        if (has(UPD)) dupdate *= mask(UPD, t, b, block);
        store(dc, dold_c + dnew_c * f, n);
        store(gate, dupdate * g * i * (1 - i), n);
        store(gate + hidden, dnew_c * c * f * (1 - f), n);
        store(gate + 2 * hidden, dupdate * i * (1 - g * g), n);
        for (int k = 0; k < GATES; k++) {
            const Vec<T> dgate = load(gate + k * hidden, n);
            T* const sum = sums + k * hidden + block * N;
            store(sum, load(sum, n) + dgate * load((const T*)x.normal_hidden + wide + k * hidden, n), n);
            store(dnormal + k * N, dgate * load((const T*)x.gain_hidden + k * hidden + block * N, n), N);
        }
    }
};

}  // namespace

extern "C" {

void lstm_forward_float32(const Arguments* x) { Lstm<float>(*x).forward(); }
void lstm_backward_float32(const Arguments* x) { Lstm<float>(*x).backward(); }
void lstm_forward_float64(const Arguments* x) { Lstm<double>(*x).forward(); }
void lstm_backward_float64(const Arguments* x) { Lstm<double>(*x).backward(); }
void normalised_forward_float32(const Arguments* x) { NormalisedLstm<float>(*x).forward(); }
void normalised_backward_float32(const Arguments* x) { NormalisedLstm<float>(*x).backward(); }
void normalised_forward_float64(const Arguments* x) { NormalisedLstm<double>(*x).forward(); }
void normalised_backward_float64(const Arguments* x) { NormalisedLstm<double>(*x).backward(); }

// out[n] = half of splitmix64(seed, n / 2) < threshold
void bernoulli(uint64_t seed, uint64_t threshold, int64_t count, int64_t threads, uint8_t* out) {
    const int64_t pairs = count / 2;
    const auto mix = [seed](int64_t pair) {
        uint64_t z = seed + (uint64_t)(pair + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    };
#pragma omp parallel for simd num_threads((int)threads) if (pairs > 20000)
    for (int64_t pair = 0; pair < pairs; pair++) {
        const uint64_t z = mix(pair);
        out[2 * pair] = (z & 0xFFFFFFFFu) < threshold;
        out[2 * pair + 1] = (z >> 32) < threshold;
    }
    if (count % 2) out[count - 1] = (mix(pairs) & 0xFFFFFFFFu) < threshold;
}
}
