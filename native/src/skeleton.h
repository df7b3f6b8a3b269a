// The tile kernel, once for all operators: P pixels by N vectors of channels stay in registers over all runs.
//
// Order of addition is the order of the runs, for every tile size: a result does not depend on the tile that
// computed it, and so not on the number of threads.
#pragma once
#include "tile.h"

namespace torchadder {
namespace {

template <class V>
typename V::T load_lanes(const float *p, int lanes) {
  return lanes >= V::width ? V::load(p) : V::load_partial(p, lanes);
}

template <class V>
void store_lanes(float *p, typename V::T value, int lanes) {
  if (lanes >= V::width)
    V::store(p, value);
  else if (lanes > 0)
    V::store_partial(p, value, lanes);
}

// sum[p] += what pixel p meets, for `count` pixels; a known count stays in registers.
template <class V>
inline __attribute__((always_inline)) void add_runs(const Block &block, const float *const *at, int count,
                                                    typename V::T *sum) {
  for (int64_t r = 0; r < block.run_count; ++r) {
    const int64_t start = block.runs[r].source, end = start + block.runs[r].length;
    int64_t k = start;
    for (; k + V::width <= end; k += V::width)
#pragma GCC unroll 16
      for (int p = 0; p < count; ++p) sum[p] = V::add(sum[p], V::load(at[p] + k));
    if (k < end)
#pragma GCC unroll 16
      for (int p = 0; p < count; ++p) sum[p] = V::add(sum[p], V::load_partial(at[p] + k, static_cast<int>(end - k)));
  }
}

// Sums of the numbers that the runs of each pixel meet: the separable part of the identities.
template <class V>
void source_sums(const Block &block, const float *const *source, int64_t count, float *sums) {
  for (int64_t first = 0; first < count; first += V::width) {
    typename V::T sum[V::width];
    const float *at[V::width];
    const int pixels = static_cast<int>(count - first < V::width ? count - first : V::width);
    for (int p = 0; p < V::width; ++p) sum[p] = V::zero();
    for (int p = 0; p < pixels; ++p) at[p] = source[first + p] + block.source_channel;
    if (pixels == V::width)
      add_runs<V>(block, at, V::width, sum);
    else
      add_runs<V>(block, at, pixels, sum);
    store_lanes<V>(sums + first, V::sum_each(sum), pixels);
  }
}

// kEven: the sources of the pixels are evenly spaced, so that one base pointer serves them all.
template <class V, class F, int P, int N, bool kEven>
void tile_of(const Block &block, const Tile &tile) {
  using T = typename V::T;
  const F f;
  const int64_t step = kEven && P > 1 ? tile.source[P > 1] - tile.source[0] : 0;
  T sum[P][N];
  typename F::State state[P][N];
  T met[P];  // sums of what each lane of the source had: the groups' own source sums
  constexpr bool kMet = F::kSource == Source::group && F::kSourceSum;
  if constexpr (kMet)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) met[p] = V::zero();
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      sum[p][v] = V::zero();
      if constexpr (F::kState)
        state[p][v] = F::state(load_lanes<V>(tile.state[p] + block.channel + v * V::width, block.lanes - v * V::width));
    }

  for (int64_t r = 0; r < block.run_count; ++r) {
    const Run run = block.runs[r];
    const float *weight = block.weight + run.weight * (N * V::width);
    const float *source[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
      source[p] = (kEven ? tile.source[0] + p * step : tile.source[p]) + run.source + block.source_channel;
    if constexpr (kMet)
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) met[p] = V::add(met[p], load_lanes<V>(source[p], block.source_lanes));
    for (int64_t k = 0; k < run.length; ++k, weight += N * V::width) {
      T w[N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) w[v] = V::load(weight + v * V::width);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        if constexpr (F::kSource == Source::group) {
          const T x = V::permute(load_lanes<V>(source[p], block.source_lanes), block.index + k * V::width);
          sum[p][0] = f.step(sum[p][0], w[0], x, state[p][0]);
        } else if constexpr (F::kSource == Source::one) {
          const T x = V::broadcast(source[p][k]);
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) sum[p][v] = f.step(sum[p][v], w[v], x, state[p][v]);
        } else {
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v)
            sum[p][v] = f.step(sum[p][v], w[v], load_lanes<V>(source[p] + v * V::width, block.lanes - v * V::width),
                               state[p][v]);
        }
      }
    }
  }

#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    T total = V::zero();
    if constexpr (kMet)
      for (int64_t k = 0; k < (block.run_count ? block.runs->length : 0); ++k)
        total = V::add(total, V::permute(met[p], block.index + k * V::width));
    else if constexpr (F::kSourceSum)
      total = V::broadcast(tile.source_sum[p]);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const int lanes = block.lanes - v * V::width;
      T x = V::zero();
      if constexpr (F::kState) x = load_lanes<V>(tile.state[p] + block.channel + v * V::width, lanes);
      const T value = F::finish(sum[p][v], total, V::load(block.weight_sum + v * V::width),
                                V::load(block.constant + v * V::width), x);
      store_lanes<V>(tile.result[p] + block.channel + v * V::width, value, lanes);
    }
  }
}

// The full tile, or the same code for the fewer pixels that are left.
template <class V, class F, int P, int N>
void tile_kernel(const Block &block, const Tile &tile) {
  if (tile.pixels < P) {
    if constexpr (P > 1) return tile_kernel<V, F, P - 1, N>(block, tile);
  }
  if constexpr (F::kSource != Source::one) {  // short runs: pointers by pixel would take as long as the arithmetic
    bool even = true;
    for (int p = 2; p < P; ++p) even &= tile.source[p] - tile.source[p - 1] == tile.source[1] - tile.source[0];
    if (even) return tile_of<V, F, P, N, true>(block, tile);
  }
  tile_of<V, F, P, N, false>(block, tile);
}

// Weight into N vectors a row, with the sums that the identities need.
template <class V, int N>
void pack(const WeightView &view, const Packing &to) {
  using T = typename V::T;
  for (int v = 0; v < N; ++v) {
    const int first = v * V::width, lanes = to.lanes - first;
    const float *origin = to.origin + first * view.lane;
    T nan = V::zero();
    float *packed = to.weight + first;
    for (int64_t tap = 0; tap < view.taps; ++tap) {
      const float *source = origin + view.tap_offset(tap);
      T sum = V::zero(), abs_sum = V::zero();
      for (int64_t k = 0; k < view.depth_size; ++k, source += view.depth, packed += N * V::width) {
        const T w = view.lane == 1 ? load_lanes<V>(source, lanes) : V::load_strided(source, view.lane, lanes);
        V::store(packed, w);
        sum = V::add(sum, w);
        abs_sum = V::add(abs_sum, V::abs(w));
        nan = V::keep_nan(nan, w);
      }
      if (to.tap_sum) {
        V::store(to.tap_sum + tap * N * V::width + first, sum);
        V::store(to.tap_abs_sum + tap * N * V::width + first, abs_sum);
      }
    }
    V::store(to.constant + first, nan);
  }
}

// Sign gradient of R rows of packed weight: for each pixel, sum[r] += sign(x[r] - w[r]) * dy.
template <class V, int R>
void sign_rows(const SignGradient &job, int first) {
  using T = typename V::T;
  T sum[R], w[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r] = V::zero();
    w[r] = V::load(job.weight + (first + r) * V::width);
  }
  const float *dy = job.dy;
  for (int64_t n = 0; n < job.images; ++n)
    for (int64_t k = 0; k < job.size[0]; ++k)
      for (int64_t i = 0; i < job.size[1]; ++i) {
        const float *x = job.x + n * job.x_image + k * job.x_axis[0] + i * job.x_axis[1];
        const float *source[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) source[r] = x + job.offsets[first + r];
        for (int64_t j = 0; j < job.size[2]; ++j, dy += job.dy_pixel) {
          const T d = load_lanes<V>(dy, job.lanes);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
            sum[r] = V::add_signed(sum[r], V::broadcast(source[r][j * job.x_axis[2]]), w[r], d);
        }
      }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) V::store(job.result + (first + r) * V::width, sum[r]);
}

template <class V, int R>
void sign_gradient_kernel(const SignGradient &job) {
  int first = 0;
  for (; first + R <= job.rows; first += R) sign_rows<V, R>(job, first);
  for (; first < job.rows; ++first) sign_rows<V, 1>(job, first);
}

}  // namespace
}  // namespace torchadder
