// Measures the limits of the float kernels' inner loops on this CPU: their functors in their own tiles, on data that
// stays in the first-level cache. `convolution` is the same loop with a multiply-add, the limit of any direct float32
// convolution. Prints one JSON object; limits.py writes it to results/.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "conv/functors.h"
#include "conv/vector_avx2.h"
#if defined(__AVX512DQ__)
#include "conv/vector_avx512.h"
#endif

using namespace torchadder;

namespace {

template <class V>
struct Convolution {
  using T = typename V::T;
  struct State {};
  static State state(T) { return {}; }
  static T step(T sum, T w, T x, State) { return V::fma(w, x, sum); }
};

constexpr int kDepth = 64, kCalls = 20000, kRepetitions = 15;
alignas(64) float x[16 * kDepth + 64], weight[32 * kDepth], result[16 * 32];

template <class V, class F, int P, int N>
[[gnu::noinline]] void tile() {
  using T = typename V::T;
  const F f;
  T sum[P][N];
  typename F::State state[P][N];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      sum[p][v] = V::zero();
      state[p][v] = F::state(V::load(x + 16 * p + v));
    }
  for (int k = 0; k < kDepth; ++k) {
    T w[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) w[v] = V::load(weight + (k * N + v) * V::width);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const T source = V::broadcast(x[p * kDepth + k]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[p][v] = f.step(sum[p][v], w[v], source, state[p][v]);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) V::store(result + (p * N + v) * V::width, sum[p][v]);
}

template <class V, class F, int P, int N>
void measure(const char *isa, const char *name, bool last = false) {
  std::vector<double> rates;
  for (int r = 0; r < kRepetitions; ++r) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) {
      tile<V, F, P, N>();
      asm volatile("" ::: "memory");
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    rates.push_back(double(kCalls) * P * N * V::width * kDepth / seconds.count() / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  std::printf("  {\"isa\": \"%s\", \"loop\": \"%s\", \"tile\": \"%dx%d\", \"giga_ops\": %.1f, \"best\": %.1f}%s\n", isa,
              name, P, N * V::width, rates[kRepetitions / 2], rates.back(), last ? "" : ",");
}

template <class V, int P, int Q>
void measure_all(const char *isa) {
  measure<V, Convolution<V>, P, 2>(isa, "convolution");
  measure<V, Forward<V, true>, P, 2>(isa, "forward:add");
  measure<V, Forward<V, false>, P, 2>(isa, "forward:fma");
  measure<V, GradInputMinMax<V>, Q, 2>(isa, "grad_input:minmax", V::width == 8);
}

}  // namespace

int main() {
  std::fill(std::begin(x), std::end(x), 0.3f);
  std::fill(std::begin(weight), std::end(weight), 0.2f);
  std::printf("{\"benchmark\": \"limits\", \"n\": %d, \"rows\": [\n", kRepetitions);
#if defined(__AVX512DQ__)
  measure_all<Avx512, 8, 4>("avx512");
  measure<Avx512, GradInputClamp<Avx512>, 6, 2>("avx512", "grad_input:clamp");
#endif
  measure_all<Avx2, 4, 2>("avx2");
  std::printf("]}\n");
}
