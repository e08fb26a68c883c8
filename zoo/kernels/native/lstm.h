// One LSTM layer over a sequence on the CPU, forward and backward, products with the inputs included.
// The equations, and the meaning of every buffer, are those of zoo/functional.py and zoo/kernels/loops.py; but the gates stay
// open on the way back.
//
// W and R are packed once a sequence into panels whose columns are one vector of units of each gate, so that the thread that
// owns a block of units multiplies, opens the gates and updates the state while all of it is in the nearest cache. Threads
// share the units and meet once a step; where the weights are small they share the batch instead and never meet. The
// products that do not wait for the recurrence go a chunk of steps at a time, beside the steps whose data they use.
//
// F is what the factors of the products consist of: numbers as they are, or rounded to bfloat16, in pairs. So are the
// gradients of the gates, which every product on the way back takes. All else, sums, states and gates among it, is of type T.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "arguments.h"
#include "products.h"

namespace {

constexpr int64_t CHUNK = 256;   // rows, steps times batch, whose products with and for the inputs are taken together
constexpr int64_t GATHER = 768;  // rows that one product of the weights' gradients sums over
constexpr int64_t PANELS = 3;    // panels of the other factor that such a product takes at a time: they fill half of L2
constexpr int64_t NARROW = 4;    // inputs of no more columns are multiplied within the step
constexpr int64_t AHEAD = 3;     // rows whose gates are fetched ahead of their turn: they have left the caches since

template <typename T, typename F = T>
struct Lstm {
    static constexpr int N = LANES<T>, DEEP = Factor<F>::DEEP;
    static constexpr bool ROUNDED = !std::is_same_v<T, F>;
    const Arguments& x;
    const int64_t batch, width, hidden, blocks;
    const int64_t x_row, h_row;  // elements that hold a row of inputs, and of units
    T *const gates, *const outputs, *const cells;
    const bool split_batch;  // the threads share the batch, else the units
    const bool apart;        // and each sums gradients of the weights of its own, so that they never meet
    Barrier barrier;

    static bool small(const Arguments& x) {
        return x.batch >= 4 * x.threads && GATES * x.hidden * (x.hidden + x.width) * sizeof(T) < 500'000;
    }
    explicit Lstm(const Arguments& x) : Lstm(x, small(x)) {}
    Lstm(const Arguments& x, bool by_rows)
        : x(x),
          batch(x.batch),
          width(x.width),
          hidden(x.hidden),
          blocks(vectors(x.hidden)),
          x_row(elements<F>(x.width)),
          h_row(elements<F>(x.hidden)),
          gates((T*)x.gates),
          outputs((T*)x.outputs),
          cells((T*)x.cells),
          split_batch(x.threads > 1 && by_rows),
          apart(split_batch && small(x)) {}

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
        const auto run = [&](int threads, int thread) {  // no exception may leave the threads
            try {
                body(Part{threads, thread, split_batch ? share(batch, threads, thread) : Range{0, batch},
                          split_batch ? Range{0, blocks} : share(blocks, threads, thread)});
            } catch (const std::bad_alloc&) {
                barrier.desert();
            }
        };
#ifdef _OPENMP
#pragma omp parallel num_threads((int)x.threads)
        {
            const int team = omp_get_num_threads(), threads = split_batch ? team : (int)std::clamp<int64_t>(blocks, 1, team);
            if (omp_get_thread_num() < threads) run(threads, omp_get_thread_num());  // one without units would only wait
        }
#else
        run(1, 0);
#endif
        barrier.check();
    }

    int64_t chunk_steps(const Part& p) const { return std::max<int64_t>(1, CHUNK / p.count()); }

    // ------------------------------------------------ forward

    // Whether the products with the inputs are taken within the step.
    bool narrow() const { return width <= NARROW; }

    // One panel a block of units, [k][gate][lane] = weight[gate H + unit][k]
    template <typename G>
    void pack_gates(const T* weight, int64_t depth, G* panels, int64_t block) const {
        G* panel = panels + block * elements<G>(depth) * GATES * N;
        for (int gate = 0; gate < GATES; gate++) {
            const T* from = weight + (gate * hidden + block * N) * depth;
            for (int64_t k = 0; k < depth; k += N) {
                const int columns = (int)std::min<int64_t>(N, depth - k), units = lanes(block);
                Vec<T> rows[N];
#pragma GCC unroll 16
                for (int lane = 0; lane < N; lane++) rows[lane] = lane < units ? load(from + lane * depth + k, columns) : Vec<T>{};
                transpose<T>(rows);
                constexpr int deep = Factor<G>::DEEP;
#pragma GCC unroll 16
                for (int column = 0; column < N; column += deep)
                    if (column < columns)
                        store_columns(panel + (k + column) / deep * GATES * N + gate * N, rows[column], rows[column + deep - 1]);
            }
        }
    }

    // Rows of numbers as rows of elements.
    void round_rows(const T* from, int64_t columns, F* to, Range rows) const {
        for (int64_t n = rows.first; n < rows.last; n++)
            for (int64_t k = 0; k < columns; k += N) {
                const int count = (int)std::min<int64_t>(N, columns - k);
                store_factor(to + n * elements<F>(columns) + k / DEEP, load(from + n * columns + k, count), count);
            }
    }

    // A step on the way forward: what R is multiplied by, and the states before and after.
    struct Forward {
        int64_t t;
        const F *from, *panels;  // rec * h(t-1) of the thread's rows, and R
        const T *h, *c;
        T *h_out, *c_out;
        F* masked;  // where `mask_hidden` puts what the next step multiplies
    };

    void forward() {
        const Buffer<F> w_panels(narrow() ? 0 : blocks * x_row * GATES * N);
        const Buffer<T> narrow_panels(narrow() ? blocks * width * GATES * N : 0);
        const Buffer<F> rounded(ROUNDED && !narrow() ? x.time * batch * x_row : 0);
        const F* const inputs = ROUNDED ? rounded.get() : (const F*)x.inputs;
        forward([&](const Part& p) {
            for (int64_t u = p.thread; u < blocks; u += p.threads) {
                if (narrow()) pack_gates((const T*)x.w_input, width, narrow_panels.get(), u);
                else pack_gates((const T*)x.w_input, width, w_panels.get(), u);
            }
            if (rounded.get()) round_rows((const T*)x.inputs, width, rounded.get(), share(x.time * batch, p.threads, p.thread));
            return [&, p, inputs, scratch = Buffer<T>(p.count() * GATES * N)](const Forward& now) {
                const int64_t t = now.t;
                if (!narrow() && t % chunk_steps(p) == 0) project(t, std::min(t + chunk_steps(p), x.time), p, inputs, w_panels.get());
                for (int64_t u = p.units.first; u < p.units.last; u++) {
                    from_state(p, now.from, now.panels, u, scratch.get(), GATES * N);
                    for (int64_t b = p.rows.first; b < p.rows.last; b++)
                        step(t, b, u, scratch.get() + (b - p.rows.first) * GATES * N,
                             narrow() ? narrow_panels.get() + u * width * GATES * N : nullptr, now.h, now.c, now.h_out, now.c_out);
                    if (t + 1 < x.time) mask_hidden(now.h_out, now.masked, t + 1, p.rows, u);
                }
            };
        });
    }

    // The steps one after the other; `prepare` gives each thread what takes one for its part.
    template <typename Prepare>
    void forward(Prepare prepare) {
        const int64_t kept = has(REC) || ROUNDED ? copies() : 0;  // of h as a factor, where it is not h itself
        const Buffer<F> panels(blocks * h_row * GATES * N);
        const Buffer<F> masked(2 * kept * batch * h_row);  // rec * h, of this step and of the next
        const int64_t state = batch * hidden * sizeof(T);
        in_large_pages(gates, x.time * GATES * state);
        in_large_pages(outputs, x.time * state);
        in_large_pages(cells, (x.keep ? x.time : 1) * state);
        in_parallel([&](Part p) {
            for (int64_t u = p.thread; u < blocks; u += p.threads) pack_gates((const T*)x.w_hidden, hidden, panels.get(), u);
            const auto advance = prepare(p);
            const T *h = (const T*)x.h, *c = (const T*)x.c;
            for (int64_t u = p.units.first; u < p.units.last; u++) mask_hidden(h, masked.get(), 0, p.rows, u);
            barrier.wait(p.threads);
            for (int64_t t = 0; t < x.time; t++) {
                T *const h_out = outputs + t * batch * hidden, *const c_out = cells + (x.keep ? t * batch * hidden : 0);
                const F* from = (kept ? masked.get() + (t % 2) * kept * batch * h_row : (const F*)h) + p.rows.first * h_row;
                advance(Forward{t, from, panels.get(), h, c, h_out, c_out, masked.get()});
                h = h_out;
                c = c_out;
                if (!split_batch) barrier.wait(p.threads);
            }
        });
    }

    // R (rec * h) for a block of units; `from` holds a copy of rec * h for each gate where they differ.
    void from_state(const Part& p, const F* from, const F* panels, int64_t block, T* to, int64_t row_step) const {
        const F* panel = panels + block * h_row * GATES * N;
        const int64_t count = copies(), wide = GATES / count;
        for (int64_t k = 0; k < count; k++)
            product<F>(p.count(), (int)wide, {from + k * batch * h_row, h_row, 1}, {panel + k * wide * N, GATES * N}, h_row,
                       {to + k * wide * N, row_step, N, N, N});
    }

    // W x(t) of some steps into the gates.
    void project(int64_t first, int64_t last, const Part& p, const F* inputs, const F* panels) const {
        const bool whole = p.count() == batch;  // then the rows of all steps follow each other
        for (int64_t u = p.units.first; u < p.units.last; u++)
            for (int64_t t = first; t < last; t += whole ? last - first : 1) {
                const int64_t at = t * batch + p.rows.first, rows = whole ? (last - first) * batch : p.count();
                product<F>(rows, GATES, {inputs + at * x_row, x_row, 1},
                           {panels + u * x_row * GATES * N, GATES * N}, x_row,
                           {gates + at * GATES * hidden + u * N, GATES * hidden, hidden, lanes(u), lanes(u)});
            }
    }

    void mask_hidden(const T* h, F* masked, int64_t t, Range rows, int64_t block) const {
        if (!has(REC) && !ROUNDED) return;
        const int n = lanes(block);
        for (int64_t k = 0; k < copies(); k++)
            for (int64_t b = rows.first; b < rows.last; b++) {
                Vec<T> value = load(h + b * hidden + block * N, n);
                if (has(REC)) value *= mask(REC, t, b, block, k);
                store_factor(masked + (((t % 2) * copies() + k) * batch + b) * h_row + block * N / DEEP, value, n);
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

    // The columns of a weight as they are, [row][lane], zeros beyond the last; each gate's rows begin an element.
    void pack_columns(const T* weight, int64_t columns, int64_t first, int wide, F* to) const {
        const auto vector = [&](int64_t gate, int64_t unit, int v) {
            const int64_t column = first + v * N;
            const int count = (int)std::min<int64_t>(N, columns - column);
            return unit < hidden ? load(weight + (gate * hidden + unit) * columns + column, count) : Vec<T>{};
        };
        for (int64_t gate = 0; gate < GATES; gate++)
            for (int64_t unit = 0; unit < hidden; unit += DEEP)
                for (int v = 0; v < wide; v++, to += N) store_columns(to, vector(gate, unit, v), vector(gate, unit + DEEP - 1, v));
    }

    // Gradients of the gates, gathered until there are enough for the product that sums the weights' gradients.
    struct Gathered {
        F *left, *right;   // [gate][tile of units][row][unit], and a panel of the other factor
        int64_t *step, *row;
        int64_t count, capacity;
        bool fresh;  // the first of all
    };

    void backward() {
        backward([this](const Part& p) {
            return [this, p](int64_t t, F* dgates) {
                for (int64_t b = p.rows.first; b < p.rows.last; b++)
                    for (int64_t u = p.units.first; u < p.units.last; u++)
                        step_backward(t, b, u, dgates + (b - p.rows.first) * GATES * h_row);
            };
        });
    }

    // The steps in turn back; `prepare` gives each thread what writes, for its part of a step, the gradients of what R gave.
    template <typename Prepare>
    void backward(Prepare prepare) {
        const int64_t deep = GATES * hidden, x_blocks = vectors(width), joint = width + hidden + 1;
        if (x.dinputs) in_large_pages(x.dinputs, x.time * batch * width * sizeof(T));
        if (x.dw_input) in_large_pages(x.dw_input, deep * width * sizeof(T));
        if (x.dw_hidden) in_large_pages(x.dw_hidden, deep * hidden * sizeof(T));
        const bool learns = x.dw_input || x.dw_hidden || x.dbias;
        const Buffer<F> r_panels(blocks * N * GATES * h_row), w_panels(x.dinputs ? x_blocks * N * GATES * h_row : 0);
        const Buffer<T> parts(apart && learns ? x.threads * deep * joint : 0);  // the threads' sums for [W, R, bias]
        const Buffer<F> shared(apart ? 0 : std::max(CHUNK, batch) * GATES * h_row);
        in_parallel([&](Part p) {
            const Range x_units = split_batch ? Range{0, x_blocks} : share(x_blocks, p.threads, p.thread);
            const auto pack = [&](const T* weight, int64_t columns, Range own, F* panels) {
                int64_t turn = 0;
                for_panels<T>(own, columns, [&](int64_t first, int wide, int) {
                    if (!split_batch || turn++ % p.threads == p.thread)
                        pack_columns(weight, columns, first, wide, panels + first * GATES * h_row);
                });
            };
            pack((const T*)x.w_hidden, hidden, p.units, r_panels.get());
            if (x.dinputs) pack((const T*)x.w_input, width, x_units, w_panels.get());
            // What is this thread's of the weights' gradients: all that its rows give, or of all rows what belongs to its units.
            Part of_weights = p;
            if (!apart) of_weights.rows = {0, batch}, of_weights.units = share(blocks, p.threads, p.thread);
            const int64_t steps = chunk_steps(of_weights), tiles = (own_units(of_weights) + MAX_ROWS - 1) / MAX_ROWS;
            const int64_t capacity = learns ? std::max(GATHER, steps * of_weights.count()) : 0;
            const Buffer<F> mine(apart ? steps * p.count() * GATES * h_row : 0);
            const auto retreat = prepare(p);
            const Buffer<T> scratch(p.count() * WIDTH * N);
            const Buffer<F> left(GATES * tiles * MAX_ROWS * elements<F>(capacity));
            const Buffer<F> right(PANELS * elements<F>(capacity) * WIDTH * N);
            const Buffer<int64_t> places(2 * capacity);
            Gathered gathered{left.get(), right.get(), places.get(), places.get() + capacity, 0, capacity, true};
            F* const dgates = apart ? mine.get() : shared.get();
            for (int64_t last = x.time, first; last > 0; last = first) {
                first = std::max<int64_t>(0, last - steps);
                // The panels are there and, where they are shared, nobody needs the last chunk's gradients any more.
                if (!apart || last == x.time) barrier.wait(p.threads);
                for (int64_t t = last - 1; t >= first; t--) {
                    F* const now = dgates + ((t - first) * of_weights.count() + p.rows.first - of_weights.rows.first) * GATES * h_row;
                    retreat(t, now);
                    if (!split_batch) barrier.wait(p.threads);
                    to_state(t, p, now, r_panels.get(), scratch.get());
                }
                if (x.dinputs) to_inputs(first, last, p, dgates, x_units, w_panels.get());
                if (split_batch && !apart) barrier.wait(p.threads);
                if (gathered.count + (last - first) * of_weights.count() > capacity) weight_gradients(of_weights, gathered, parts.get());
                gather(first, last, of_weights, dgates, gathered);
            }
            weight_gradients(of_weights, gathered, parts.get());
            if (!apart) return;
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
    void to_state(int64_t t, const Part& p, const F* dgates, const F* panels, T* scratch) const {
        for_panels<T>(p.units, hidden, [&](int64_t first, int wide, int) {
            for (int64_t k = 0; k < copies(); k++) {
                const int64_t deep = GATES * h_row / copies();
                product<F>(p.count(), wide, {dgates + k * deep, GATES * h_row, 1},
                           {panels + first * GATES * h_row + k * deep * wide * N, wide * N}, deep,
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

    // dx(t) = W' dgates of some steps; not for threads that share the batch without being `apart`
    void to_inputs(int64_t first_step, int64_t last_step, const Part& p, const F* dgates, Range units, const F* panels) const {
        const bool whole = p.count() == batch;  // then the rows of all steps follow each other
        for_panels<T>(units, width, [&](int64_t first, int wide, int tail) {
            for (int64_t t = first_step; t < last_step; t += whole ? last_step - first_step : 1)
                product<F>(whole ? (last_step - first_step) * batch : p.count(), wide,
                           {dgates + (t - first_step) * p.count() * GATES * h_row, GATES * h_row, 1},
                           {panels + first * GATES * h_row, wide * N}, GATES * h_row,
                           {(T*)x.dinputs + (t * batch + p.rows.first) * width + first, width, N, N, tail});
        });
    }

    // Puts this thread's units of some steps' gradients with those that wait.
    void gather(int64_t first, int64_t last, const Part& p, const F* dgates, Gathered& to) const {
        if (to.capacity == 0) return;  // no gradient of a weight is asked for
        const int64_t unit = p.units.first * N, units = own_units(p), tiles = (units + MAX_ROWS - 1) / MAX_ROWS;
        const int64_t start = to.count, room = elements<F>(to.capacity);
        for (int64_t t = first; t < last; t++)
            for (int64_t b = p.rows.first; b < p.rows.last; b++, to.count++) {
                to.step[to.count] = t;
                to.row[to.count] = b;
            }
        for (int gate = 0; gate < GATES; gate++)
            for (int64_t k = start; k < to.count; k++) {
                const F* from = dgates + ((k - start) * GATES + gate) * h_row + unit / DEEP;
                F* left = to.left + (gate * tiles * room + k / DEEP) * MAX_ROWS;
                const int64_t whole = units / MAX_ROWS;
                for (int64_t tile = 0; tile < whole; tile++, left += room * MAX_ROWS)
                    gather_units(from, tile * MAX_ROWS, MAX_ROWS, left, k % DEEP);
                if (whole < tiles) gather_units(from, whole * MAX_ROWS, units - whole * MAX_ROWS, left, k % DEEP);
            }
    }

    // Some units of a row to one depth of a tile; of a pair to its low or its high half.
    static void gather_units(const F* from, int64_t first, int64_t count, F* to, [[maybe_unused]] int64_t half) {
        if constexpr (ROUNDED) {
            const uint16_t* numbers = (const uint16_t*)from + first;
            uint16_t* halves = (uint16_t*)to + half;
            for (int64_t n = 0; n < count; n++) halves[2 * n] = numbers[n];
        } else {
            memcpy(to, from + first, count * sizeof(F));
        }
    }

    // The gradients of W, R and the bias for this thread's units from what is gathered: dgates' [x, rec * h(t-1), 1]
    void weight_gradients(const Part& p, Gathered& from, T* parts) const {
        if (from.count == 0) return;
        if (from.count % DEEP) zero_last_half(p, from);
        const int64_t joint = width + hidden + 1;
        const auto previous = [&](int64_t t, int64_t b) {
            return (t ? outputs + (t - 1) * batch * hidden : (const T*)x.h) + b * hidden;
        };
        const auto masked = [&](int64_t t, int64_t b, int64_t block, int64_t k) {
            const Vec<T> value = load(previous(t, b) + block * N, lanes(block));
            return has(REC) ? value * mask(REC, t, b, block, k) : value;
        };
        if (apart) {
            const Buffer<T> row(joint + N);
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
        const int64_t deep = elements<F>(from.count), room = elements<F>(from.capacity);
        struct {
            int64_t first;
            int wide, tail;
            F* right;
        } panels[PANELS];
        int64_t count = 0;
        const auto multiply = [&] {
            for (int64_t g = gate; g < gate + gates; g++)
                for (int64_t tile = 0; tile < tiles; tile++)
                    for (int64_t n = 0; n < count; n++)
                        product<F>(std::min<int64_t>(MAX_ROWS, units - tile * MAX_ROWS), panels[n].wide,
                                   {from.left + (g * tiles + tile) * MAX_ROWS * room, 1, MAX_ROWS},
                                   {panels[n].right, panels[n].wide * N}, deep,
                                   {target + (g * hidden + unit + tile * MAX_ROWS) * columns + panels[n].first, columns, N, N,
                                    panels[n].tail},
                                   !from.fresh);
            count = 0;
        };
        for_panels<T>({0, vectors(columns)}, columns, [&](int64_t first, int wide, int tail) {
            F* right = from.right + count * room * WIDTH * N;
            for (int64_t n = 0; n < deep; n++) {
                if constexpr (ROUNDED) {
                    T both[2][WIDTH * N] = {};
                    for (int64_t half = 0; half < DEEP && n * DEEP + half < from.count; half++)
                        fill(n * DEEP + half, first, wide, both[half]);
                    for (int v = 0; v < wide; v++)
                        store_columns(right + (n * wide + v) * N, load(both[0] + v * N, N), load(both[1] + v * N, N));
                } else {
                    fill(n, first, wide, right + n * wide * N);
                }
            }
            panels[count++] = {first, wide, tail, right};
            if (count == PANELS) multiply();
        });
        multiply();
    }

    void sum_bias(const Part& p, const Gathered& from) const {
        const int64_t unit = p.units.first * N, units = own_units(p), tiles = (units + MAX_ROWS - 1) / MAX_ROWS;
        const int64_t room = elements<F>(from.capacity);
        for (int gate = 0; gate < GATES; gate++)
            for (int64_t tile = 0; tile < tiles; tile++) {
                const F* left = from.left + (gate * tiles + tile) * MAX_ROWS * room;
                T sum[MAX_ROWS] = {};
                for (int64_t k = 0; k < elements<F>(from.count); k++)
                    for (int r = 0; r < MAX_ROWS; r++) sum[r] += total(left[k * MAX_ROWS + r]);
                T* to = (T*)x.dbias + gate * hidden + unit + tile * MAX_ROWS;
                for (int64_t r = 0; r < std::min<int64_t>(MAX_ROWS, units - tile * MAX_ROWS); r++)
                    to[r] = sum[r] + (from.fresh ? 0 : to[r]);
            }
    }

    // Zeros where a pair has only its first row.
    void zero_last_half([[maybe_unused]] const Part& p, [[maybe_unused]] Gathered& from) const {
        if constexpr (ROUNDED) {
            const int64_t tiles = (own_units(p) + MAX_ROWS - 1) / MAX_ROWS, room = elements<F>(from.capacity);
            for (int64_t tile = 0; tile < GATES * tiles; tile++)
                for (int r = 0; r < MAX_ROWS; r++) from.left[(tile * room + from.count / DEEP) * MAX_ROWS + r].high = 0;
        }
    }

    // The sum of an element's numbers.
    static T total(F element) {
        if constexpr (ROUNDED) {
            const uint32_t bits[2] = {(uint32_t)element.low << 16, (uint32_t)element.high << 16};
            float numbers[2];
            memcpy(numbers, bits, sizeof numbers);
            return numbers[0] + numbers[1];
        } else {
            return element;
        }
    }

    // `dgates`: those of the row
    inline void step_backward(int64_t t, int64_t b, int64_t block, F* dgates) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        const T* gate = gates + (t * batch + b) * GATES * hidden + block * N;
        for (int64_t k = 0; k < GATES; k++) __builtin_prefetch(gate + (AHEAD * GATES + k) * hidden);
        F* const dgate = dgates + block * N / DEEP;
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
        store_factor(dgate, dupdate * g * i * (1 - i), n);
        store_factor(dgate + h_row, dnew_c * c * f * (1 - f), n);
        store_factor(dgate + 2 * h_row, dupdate * i * (1 - g * g), n);
        store_factor(dgate + 3 * h_row, dnew_h * tanh * o * (1 - o), n);
        store(dh, dold_h, n);
        store(dc, dold_c + dnew_c * f, n);
    }
};

}  // namespace
