// Measures the limits of the engine's inner loops on this CPU. `issue` is the instructions alone, on registers; a tile
// is the engine's own step in its own tile, on data that stays in the first-level cache. Element operations are bytes
// for `adder`, 16-bit products for `conv` (bytes with VNNI), bits for `binary`. Prints one JSON object; limits.py
// writes it to results/.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "engine/adder_by_max.h"
#include "engine/layer_kernel.h"
#if defined(__AVX512BW__)
#include "engine/vector_avx512.h"
#endif

using namespace torchadder::engine;

namespace {

constexpr int kDepth = 144, kCalls = 4000, kRepetitions = 15;
alignas(64) uint8_t x[16 * kDepth * kStep + 64], packed[2 * kDepth * kBlock * kStep];
volatile int64_t sink;
const char *separator = "";

template <class V, class F, int P, int W>
[[gnu::noinline]] void tile() {
  constexpr int N = W * V::vectors;
  typename V::T sum[P][N];
  const uint8_t *source[P], *weight[W];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    source[p] = x + p * kDepth * kStep;
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = V::zero();
  }
  for (int b = 0; b < W; ++b) weight[b] = packed + b * kDepth * kBlock * kStep;
  for (int64_t s = 0; s < kDepth; ++s)
    add_step<V, F, P, N, false>(sum, source, s * kStep, weight, s * kBlock * kStep, V::zero());
  typename V::T total = V::zero();
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) total += sum[p][v];
  sink = total[0];
}

template <class V, class F>
[[gnu::noinline]] void issue() {
  constexpr int N = 8;
  typename V::T sum[N], a = V::load(x), b = V::load(packed);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) sum[i] = V::zero();
  for (int s = 0; s < kDepth; ++s) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      asm volatile("" : "+v"(a));  // each step is computed anew
      sum[i] = F::step(sum[i], a, b);
    }
  }
  typename V::T total = V::zero();
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) total += sum[i];
  sink = total[0];
}

template <class Body>
void measure(const char *isa, const char *name, const char *shape, double elements, Body body) {
  std::vector<double> rates;
  for (int r = 0; r < kRepetitions; ++r) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) body();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    rates.push_back(kCalls * elements * kDepth / seconds.count() / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  std::printf("%s  {\"isa\": \"%s\", \"loop\": \"%s\", \"tile\": \"%s\", \"giga_ops\": %.1f, \"best\": %.1f}",
              separator, isa, name, shape, rates[kRepetitions / 2], rates.back());
  separator = ",\n";
}

template <class V, class F, int P, int W>
void measure_tile(const char *isa, const char *name, double per_byte) {
  char shape[16];
  std::snprintf(shape, sizeof shape, "%dx%d", P, W * kBlock);
  measure(isa, name, shape, per_byte * P * W * kBlock * kStep, tile<V, F, P, W>);
}

[[gnu::noinline]] void tile_by_max() {
  using A = AdderByMax;
  Avx2::T sum[A::kPixels][2], wide[A::kPixels][2];
  const uint8_t *source[A::kPixels], *weight = packed;
#pragma GCC unroll 8
  for (int p = 0; p < A::kPixels; ++p) {
    source[p] = x + p * kDepth * kStep;
    sum[p][0] = sum[p][1] = wide[p][0] = wide[p][1] = Avx2::zero();
  }
  for (int64_t s = 0; s < kDepth; s += A::kRun) {
    for (int64_t i = s; i < s + A::kRun && i < kDepth; ++i, weight += kBlock * kStep)
      A::step<false>(sum, source, i * kStep, weight, Avx2::zero());
    A::widen(sum, wide);
  }
  Avx2::T total = Avx2::zero();
#pragma GCC unroll 8
  for (int p = 0; p < A::kPixels; ++p) total += wide[p][0] + wide[p][1];
  sink = total[0];
}

template <class V>
void measure_issue(const char *isa) {
  measure(isa, "u8 adder", "issue", 8.0 * sizeof(typename V::T), issue<V, Adder<V>>);
}

}  // namespace

int main() {
  for (auto &value : x) value = static_cast<uint8_t>(&value - x);
  for (auto &value : packed) value = static_cast<uint8_t>(7 * (&value - packed));
  std::printf("{\"benchmark\": \"limits-u8\", \"n\": %d, \"rows\": [\n", kRepetitions);
  measure_issue<Avx2>("avx2");
  measure_tile<Avx2, Adder<Avx2>, 4, 1>("avx2", "u8 adder", 1);
  measure_tile<Avx2, Adder<Avx2>, 5, 1>("avx2", "u8 adder", 1);
  measure("avx2", "u8 adder, by max too", "5x8", 5.0 * kBlock * kStep, tile_by_max);
  measure_tile<Avx2, Conv<Avx2>, 4, 1>("avx2", "u8 conv", 0.5);
  measure_tile<Avx2, Binary<Avx2>, 4, 1>("avx2", "binary", 8);
#if defined(__AVX512BW__)
  measure_issue<Avx512>("avx512");
  measure_tile<Avx512, Adder<Avx512>, 6, 2>("avx512", "u8 adder", 1);
  measure_tile<Avx512, Adder<Avx512>, 8, 2>("avx512", "u8 adder", 1);
  measure_tile<Avx512, Conv<Avx512>, 8, 2>("avx512", "u8 conv", 0.5);
  measure_tile<Avx512, Binary<Avx512>, 8, 2>("avx512", "binary", 8);
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512VPOPCNTDQ__)
  measure_tile<Avx512Vnni, Conv<Avx512Vnni>, 8, 2>("avx512vnni", "u8 conv", 1);
  measure_tile<Avx512Vnni, Binary<Avx512Vnni>, 8, 2>("avx512vnni", "binary", 8);
#endif
  std::printf("\n]}\n");
}
