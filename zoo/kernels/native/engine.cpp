// What the library exports, in C, to be called without Python's lock.
#include "lstm.h"
#include "normalised_lstm.h"

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
