// What Python hands over; zoo/kernels/native/__init__.py mirrors it.
#pragma once

#include "vectors.h"

namespace {

constexpr int GATES = 4;

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
    // Of the normalised LSTM, of width 0, whose gates come in holding the inputs' part unless the inputs are narrow:
    int64_t norm, population, narrow;  // a Norm; whether the moments are given; how many inputs come in themselves
    double eps;
    const void *gain_hidden, *gain_cell, *bias_cell;
    const void *narrow_inputs, *narrow_weights;  // (T, B, narrow); of each step, and the shift: (T, narrow + 1, 4 H)
    void *normal_hidden, *normal_cell;
    void *hidden_mean, *hidden_var, *cell_mean, *cell_var;  // by layer no mean, and the reciprocal deviation for var
    void *dgain_hidden, *dgain_cell, *dbias_cell, *dnarrow_weights;
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

}  // namespace
