// An LSTM layer with batch or layer normalisation of R h and of the cell's way into the output.
// The equations are those of zoo/functional.py; the inputs' part comes in normalised, or the weights of narrow inputs do.
#pragma once

#include "lstm.h"

namespace {

template <typename V>
inline V square_root(V x) {
    for (size_t k = 0; k < sizeof x / sizeof x[0]; k++) x[k] = std::sqrt(x[k]);
    return x;
}

// Batch normalisation wants all rows of a unit in one thread, layer normalisation all units of a row: the threads share
// the units in the one, the rows in the other, and a set of numbers that is normalised together is called a group.
template <typename T, typename F = T>
struct NormalisedLstm : Lstm<T, F> {
    using Base = Lstm<T, F>;
    using typename Base::Forward, typename Base::Part;
    using Base::batch, Base::cells, Base::gates, Base::h_row, Base::has, Base::hidden, Base::lanes, Base::mask, Base::N,
        Base::x;
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
        const int64_t state = batch * hidden * sizeof(T);
        in_large_pages(x.normal_hidden, x.time * GATES * state);
        in_large_pages(x.normal_cell, x.time * state);
        Base::forward([this](const Part& p) {
            const int64_t own = p.units.last - p.units.first;
            return [this, p, own, sums = Buffer<T>(p.count() * own * GATES * N),
                    fresh = Buffer<T>(p.count() * own * N)](const Forward& now) {
                const Grid recurrent{sums.get(), own * GATES * N, GATES}, cell{fresh.get(), own * N, 1};
                const int64_t t = now.t, first = p.units.first;
                for (int64_t u = 0; u < own; u++)
                    Base::from_state(p, now.from, now.panels, first + u, recurrent.at(0, u, 0), recurrent.row_step);
                normalise(p, recurrent, of_step(x.hidden_mean, t, GATES), of_step(x.hidden_var, t, GATES));
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++)
                        open(t, p.rows.first + b, first + u, recurrent.at(b, u, 0), now.c, now.c_out, cell.at(b, u, 0));
                normalise(p, cell, of_step(x.cell_mean, t, 1), of_step(x.cell_var, t, 1));
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++) show(t, p.rows.first + b, first + u, cell.at(b, u, 0), now.h, now.h_out);
                for (int64_t u = first; t + 1 < x.time && u < p.units.last; u++)
                    Base::mask_hidden(now.h_out, now.masked, t + 1, p.rows, u);
            };
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
            gate[k] = projected(t, b, block, k) + load((const T*)x.gain_hidden + k * hidden + block * N, n) * value;
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

    // The inputs' part of a gate: as it came in or, of narrow inputs, from the step's weights, the last row of which is the shift.
    inline Vec<T> projected(int64_t t, int64_t b, int64_t block, int k) const {
        const int n = lanes(block);
        const int64_t row = t * batch + b, deep = GATES * hidden, column = k * hidden + block * N;
        if (!x.narrow_weights) return load(gates + row * deep + column, n);
        const T* weights = (const T*)x.narrow_weights + t * (x.narrow + 1) * deep + column;
        Vec<T> value = load(weights + x.narrow * deep, n);
        for (int64_t i = 0; i < x.narrow; i++) value += ((const T*)x.narrow_inputs)[row * x.narrow + i] * load(weights + i * deep, n);
        return value;
    }

    // The gradient of `projected`, in the gate's place or added to those of the step's weights.
    inline void add_projected(int64_t t, int64_t b, int64_t block, int k, Vec<T> dgate) const {
        const int n = lanes(block);
        const int64_t row = t * batch + b, deep = GATES * hidden, column = k * hidden + block * N;
        if (!x.narrow_weights) return store(gates + row * deep + column, dgate, n);
        T* sums = (T*)x.dnarrow_weights + t * (x.narrow + 1) * deep + column;
        for (int64_t i = 0; i < x.narrow; i++, sums += deep)
            store(sums, load(sums, n) + ((const T*)x.narrow_inputs)[row * x.narrow + i] * dgate, n);
        store(sums, load(sums, n) + dgate, n);
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
        const Buffer<T> parts(x.threads * parameters);  // the threads' gradients of gain_hidden, gain_cell, bias_cell
        memset(parts.get(), 0, x.threads * parameters * sizeof(T));
        Base::backward([&](const Part& p) {
            const int64_t own = p.units.last - p.units.first;
            T* const mine = parts.get() + p.thread * parameters;
            return [this, p, own, deep, mine, wide_grid = Buffer<T>(p.count() * own * GATES * N),
                    narrow_grid = Buffer<T>(p.count() * own * N)](int64_t t, F* dgates) {
                const Grid recurrent{wide_grid.get(), own * GATES * N, GATES}, cell{narrow_grid.get(), own * N, 1};
                const int64_t first = p.units.first;
                const auto row = [&](int64_t b) { return t * batch + p.rows.first + b; };
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++)
                        hide(t, p.rows.first + b, first + u, cell.at(b, u, 0), recurrent.at(b, u, 3), mine + deep);
                normalise_backward(p, cell, of_step(x.cell_var, t, 1), [&](int64_t b, int64_t u, int64_t) {
                    return load((const T*)x.normal_cell + row(b) * hidden + (first + u) * N, lanes(first + u));
                });
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++)
                        close(t, p.rows.first + b, first + u, cell.at(b, u, 0), recurrent.at(b, u, 0), mine);
                normalise_backward(p, recurrent, of_step(x.hidden_var, t, GATES), [&](int64_t b, int64_t u, int64_t k) {
                    return load((const T*)x.normal_hidden + row(b) * deep + k * hidden + (first + u) * N, lanes(first + u));
                });
                for (int64_t b = 0; b < p.count(); b++)
                    for (int64_t u = 0; u < own; u++)
                        for (int64_t k = 0; k < GATES; k++) {
                            const int n = lanes(first + u);
                            F* const to = dgates + (b * GATES + k) * h_row + (first + u) * N / Base::DEEP;
                            store_factor(to, load(recurrent.at(b, u, k), n), n);
                        }
            };
        });
        for (int64_t n = 0; n < parameters; n++) {
            T sum = 0;
            for (int64_t thread = 0; thread < x.threads; thread++) sum += parts[thread * parameters + n];
            T* to = (T*)(n < deep ? x.dgain_hidden : n < deep + hidden ? x.dgain_cell : x.dbias_cell);
            to[n < deep ? n : (n - deep) % hidden] = sum;
        }
    }

    // From dh to the gradients of the output gate and of the normalised cell; sums those of its gain and bias.
    inline void hide(int64_t t, int64_t b, int64_t block, T* dnormal, T* dgate, T* sums) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        T* const dh = (T*)x.dh + at;
        const T* const gate = gates + (t * batch + b) * GATES * hidden + 3 * hidden + block * N;
        __builtin_prefetch(gate + AHEAD * GATES * hidden);
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
        store(dgate, dnew_h * tanh * o * (1 - o), N);
        const Vec<T> shown = dnew_h * o * (1 - tanh * tanh);
        T *const gain = sums + block * N, *const bias = gain + hidden;
        store(gain, load(gain, n) + shown * normal, n);
        store(bias, load(bias, n) + shown, n);
        store(dnormal, Vec<T>{}, N);
        store(dnormal, shown * load((const T*)x.gain_cell + block * N, n), n);
    }

    // From the gradient of the new cell's way into the output to those of the inputs' part and of the normalised R h, where
    // the output gate's stands.
    inline void close(int64_t t, int64_t b, int64_t block, const T* dshown, T* dnormal, T* sums) const {
        const int n = lanes(block);
        const int64_t at = b * hidden + block * N, now = t * batch * hidden + at;
        const int64_t wide = (t * batch + b) * GATES * hidden + block * N;
        const T *const gate = gates + wide, *const normal = (const T*)x.normal_hidden + wide;
        for (int64_t k = 0; k < GATES; k++) {
            __builtin_prefetch(gate + (AHEAD * GATES + k) * hidden);
            __builtin_prefetch(normal + (AHEAD * GATES + k) * hidden);
        }
        T* const dc = (T*)x.dc + at;
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
        const Vec<T> dgates[GATES] = {dupdate * g * i * (1 - i), dnew_c * c * f * (1 - f), dupdate * i * (1 - g * g),
                                      load(dnormal + 3 * N, N)};
        for (int k = 0; k < GATES; k++) {
            T* const sum = sums + k * hidden + block * N;
            store(sum, load(sum, n) + dgates[k] * load(normal + k * hidden, n), n);
            store(dnormal + k * N, dgates[k] * load((const T*)x.gain_hidden + k * hidden + block * N, n), N);
            add_projected(t, b, block, k, dgates[k]);
        }
    }
};

}  // namespace
