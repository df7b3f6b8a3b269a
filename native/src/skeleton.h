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

// Sums of the numbers that the runs of each pixel meet: the separable part of the identities.
template <class V>
void source_sums(const Block &block, const float *const *source, int64_t count, float *sums) {
  typename V::T sum[V::width];
  const float *at[V::width];
  for (int64_t first = 0; first < count; first += V::width) {
    const int pixels = static_cast<int>(count - first < V::width ? count - first : V::width);
    for (int p = 0; p < V::width; ++p) {
      at[p] = source[first + (p < pixels ? p : 0)] + block.source_channel;
      sum[p] = V::zero();
    }
    for (int64_t r = 0; r < block.run_count; ++r) {
      const int64_t start = block.runs[r].source, end = start + block.runs[r].length;
      int64_t k = start;
      for (; k + V::width <= end; k += V::width)
#pragma GCC unroll 16
        for (int p = 0; p < V::width; ++p) sum[p] = V::add(sum[p], V::load(at[p] + k));
      if (k < end)
#pragma GCC unroll 16
        for (int p = 0; p < V::width; ++p)
          sum[p] = V::add(sum[p], V::load_partial(at[p] + k, static_cast<int>(end - k)));
    }
    store_lanes<V>(sums + first, V::sum_each(sum), pixels);
  }
}

template <class V, class F, int P, int N>
void tile_of(const Block &block, const Tile &tile) {
  using T = typename V::T;
  const F f;
  T sum[P][N];
  typename F::State state[P][N];
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
    for (int p = 0; p < P; ++p) source[p] = tile.source[p] + run.source + block.source_channel;
    for (int64_t k = 0; k < run.length; ++k, weight += N * V::width) {
      T w[N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) w[v] = V::load(weight + v * V::width);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        if constexpr (F::kBroadcast) {
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
    if constexpr (F::kSourceSum) total = V::broadcast(tile.source_sum[p]);
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
  if (tile.pixels == P) return tile_of<V, F, P, N>(block, tile);
  if constexpr (P > 1) return tile_kernel<V, F, P - 1, N>(block, tile);
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
    for (int64_t tap = 0; tap < view.taps(); ++tap) {
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
  for (int64_t n = 0; n < job.images; ++n)
    for (int64_t i = 0; i < job.height; ++i) {
      const float *x = job.x + n * job.x_image + i * job.x_row;
      const float *dy = job.dy + (n * job.height + i) * job.width * job.dy_pixel;
      const float *source[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) source[r] = x + job.offsets[first + r];
      for (int64_t j = 0; j < job.width; ++j, dy += job.dy_pixel) {
        const T d = load_lanes<V>(dy, job.lanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sum[r] = V::add_signed(sum[r], V::broadcast(source[r][j * job.x_pixel]), w[r], d);
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
