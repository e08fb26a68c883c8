// An LSTM layer with batch or layer normalisation of R h and of the cell's way into the output.
// The equations are those of zoo/functional.py; the inputs' part comes in normalised.
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
        const Buffer<T> panels(blocks * hidden * GATES * N), masked(2 * masks * batch * hidden);
        for (void* made : {x.normal_hidden, x.gates}) in_large_pages(made, x.time * GATES * state);
        for (void* made : {x.outputs, x.cells, x.normal_cell}) in_large_pages(made, x.time * state);
        Base::in_parallel([&](Part p) {
            for (int64_t u = p.thread; u < blocks; u += p.threads)
                Base::pack_gates((const T*)x.w_hidden, hidden, panels.get(), u);
            const int64_t own = p.units.last - p.units.first, first = p.units.first;
            const Buffer<T> sums(p.count() * own * GATES * N), fresh(p.count() * own * N);
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
        const Buffer<T> panels(blocks * N * deep), parts(x.threads * parameters);
        Base::in_parallel([&](Part p) {
            int64_t turn = 0;
            for_panels<T>(p.units, hidden, [&](int64_t first, int wide, int) {
                if (!split_batch || turn++ % p.threads == p.thread)
                    Base::pack_columns((const T*)x.w_hidden, hidden, first, wide, panels.get() + first * deep);
            });
            T* const mine = parts.get() + p.thread * parameters;  // gradients of gain_hidden, gain_cell, bias_cell
            memset(mine, 0, parameters * sizeof(T));
            const int64_t own = p.units.last - p.units.first, first = p.units.first;
            const Buffer<T> wide_grid(p.count() * own * GATES * N), narrow_grid(p.count() * own * N);
            const Buffer<T> scratch(p.count() * WIDTH * N);
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
