// What the library exports, in C, to be called without Python's lock.
#include "lstm.h"
#include "normalised_lstm.h"

// Whether memory was enough: no exception may leave C.
template <typename Function>
static int run(Function function) {
    try {
        function();
        return 1;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

extern "C" {

int lstm_forward_float32(const Arguments* x) { return run([x] { Lstm<float>(*x).forward(); }); }
int lstm_backward_float32(const Arguments* x) { return run([x] { Lstm<float>(*x).backward(); }); }
int lstm_forward_float64(const Arguments* x) { return run([x] { Lstm<double>(*x).forward(); }); }
int lstm_backward_float64(const Arguments* x) { return run([x] { Lstm<double>(*x).backward(); }); }
#ifdef __AVX512BF16__
int lstm_forward_bfloat16(const Arguments* x) { return run([x] { Lstm<float, Pair>(*x).forward(); }); }
int lstm_backward_bfloat16(const Arguments* x) { return run([x] { Lstm<float, Pair>(*x).backward(); }); }
int normalised_forward_bfloat16(const Arguments* x) { return run([x] { NormalisedLstm<float, Pair>(*x).forward(); }); }
int normalised_backward_bfloat16(const Arguments* x) { return run([x] { NormalisedLstm<float, Pair>(*x).backward(); }); }
#endif
int normalised_forward_float32(const Arguments* x) { return run([x] { NormalisedLstm<float>(*x).forward(); }); }
int normalised_backward_float32(const Arguments* x) { return run([x] { NormalisedLstm<float>(*x).backward(); }); }
int normalised_forward_float64(const Arguments* x) { return run([x] { NormalisedLstm<double>(*x).forward(); }); }
int normalised_backward_float64(const Arguments* x) { return run([x] { NormalisedLstm<double>(*x).backward(); }); }

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
