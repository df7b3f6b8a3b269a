// The tile kernel, once for all operators and vector types: P pixels by N vectors of channels stay in registers over
// all runs. F is a functor (functors.h), V a vector type:
//
//   T, width                       a vector, and its number of lanes
//   zero, broadcast, load, store   all lanes; load and store take any address
//   load_partial, store_partial    the first n lanes; load_partial gives 0 in the others
//   load_strided(p, stride, n)     lane i = p[i * stride] for i < n, else 0
//   permute(a, lanes)              lane i = a[lanes[i]]
//   add, sub, mul, fma, max, min, abs
//   hardtanh                       for the functor GradInputClamp only
//   add_signed(sum, a, b, d)       sum + sign(a - b) * d
//   keep_nan(a, x)                 x where it is NaN, else a
//   sum_each<kInts>(a)             of `width` vectors: the sum of each, of floats or of 32-bit integers
//   transpose(a)                   of `width` vectors: rows and columns exchanged
//
// and for rounded calls, on vectors whose lanes are 32-bit integers or words:
//
//   broadcast_int, add_ints, sub_ints, mul_ints, to_floats
//   round(x, levels, zero)         the integer round(x * levels) + zero
//   pair(a)                        the low 16 bits of each lane in both of its halves
//   max_bytes, add_bytes(sum, a)   of unsigned bytes; sum + the four bytes of a lane
//   max_pairs, min_pairs, add_pairs, sub_pairs
//   add_products(sum, a, b)        sum + the products of the two signed 16-bit numbers of a lane
//
// and for input gradients in limbs (GradInputLimbs), where a set has the instructions:
//
//   repeat_byte(a)                 the low byte of each lane in all four
//   sub_bytes, min_bytes           of unsigned bytes; a difference below 0 is 0
//   add_byte_products(sum, a, b)   sum + the four products of the unsigned bytes of a and the signed ones of b
//   join_limbs(a)                  even lanes times 256
//   split(x, levels, to)           16 numbers, rounded, as limbs: four high bytes, then their four low ones
//
// Every tile size adds in the order of the runs. So a result depends neither on the tile that computed it nor on the
// number of threads.
#pragma once
#include <cstring>
#include <type_traits>

#include "conv/tile.h"

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

template <class V>
float last_lane(typename V::T a) {
  float lanes[V::width];
  V::store(lanes, a);
  return lanes[V::width - 1];
}

// Select what source_sums() adds up: floats, or the numbers in words, as integers: four bytes, two 16-bit numbers, or,
// in two words, four of 16 bits in limbs. finish() gets the sum of each lane.
template <class V, bool kAreInts>
struct Summed {
  using T = typename V::T;
  static constexpr bool kInts = kAreInts;
  static constexpr int kWords = 1;
  static T finish(T sum) { return sum; }
};
template <class V>
struct OfFloats : Summed<V, false> {
  using T = typename V::T;
  static T add(T sum, T x) { return V::add(sum, x); }
};
template <class V>
struct OfBytes : Summed<V, true> {
  using T = typename V::T;
  static T add(T sum, T x) { return V::add_bytes(sum, x); }
};
template <class V>
struct OfPairs : Summed<V, true> {
  using T = typename V::T;
  static T add(T sum, T x) { return V::add_products(sum, x, V::pair(V::broadcast_int(1))); }
};
template <class V>
struct OfLimbs : Summed<V, true> {
  using T = typename V::T;
  static constexpr int kWords = 2;
  static T add(T sum, T x) { return V::add_byte_products(sum, V::repeat_byte(V::broadcast_int(1)), x); }
  static T finish(T sum) { return V::join_limbs(sum); }
};

// sum[p] += the floats of the runs of pixel p, for `count` pixels. A constant count keeps the sums in registers.
template <class V, class A>
inline __attribute__((always_inline)) void add_runs(const Block &block, const float *const *at, int count,
                                                    typename V::T *sum) {
  for (int64_t r = 0; r < block.run_count; ++r) {
    const int64_t start = block.runs[r].source * A::kWords, end = start + block.runs[r].length * A::kWords;
    int64_t k = start;
    for (; k + V::width <= end; k += V::width)
#pragma GCC unroll 16
      for (int p = 0; p < count; ++p) sum[p] = A::add(sum[p], V::load(at[p] + k));
    if (k < end)
#pragma GCC unroll 16
      for (int p = 0; p < count; ++p) sum[p] = A::add(sum[p], V::load_partial(at[p] + k, static_cast<int>(end - k)));
  }
}

// Computes the plain sum of the source for each pixel, a term of the identities in functors.h.
template <class V, class A>
void source_sums(const Block &block, const float *const *source, int64_t count, float *sums) {
  for (int64_t first = 0; first < count; first += V::width) {
    typename V::T sum[V::width];
    const float *at[V::width];
    const int pixels = static_cast<int>(count - first < V::width ? count - first : V::width);
    for (int p = 0; p < V::width; ++p) sum[p] = V::zero();
    for (int p = 0; p < pixels; ++p) at[p] = source[first + p] + block.source_channel;
    if (pixels == V::width)
      add_runs<V, A>(block, at, V::width, sum);
    else
      add_runs<V, A>(block, at, pixels, sum);
    for (int p = 0; p < V::width; ++p) sum[p] = A::finish(sum[p]);
    store_lanes<V>(sums + first, V::template sum_each<A::kInts>(sum), pixels);
  }
}

// Source::one: each row of weight of each run makes one step for all lanes.
template <class V, class F, int P, int N>
inline __attribute__((always_inline)) void add_steps(const Block &block, const Tile &tile, const F &f,
                                                     const typename F::State (&state)[P][N],
                                                     typename F::Words (&sum)[P][N]) {
  using T = typename V::T;
  for (int64_t r = 0; r < block.run_count; ++r) {
    const Run run = block.runs[r];
    const float *weight = block.weight + run.weight * (N * V::width);
    const float *source[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) source[p] = tile.source[p] + run.source * F::kWords + block.source_channel;
    for (int64_t k = 0; k < run.length; ++k, weight += N * V::width) {
      T w[N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) w[v] = V::load(weight + v * V::width);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const typename F::Words x = F::source(source[p] + k * F::kWords);
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) sum[p][v] = f.step(sum[p][v], w[v], x, state[p][v]);
      }
    }
  }
}

// Source::own and Source::group: each lane reads its own channel, or by block.index one of its group. Runs are single
// taps here, and the pixels share one base pointer: computing a pointer for each pixel would take as long as the sum.
// source_sum[p]: plain sums by source channel.
template <class V, class F, int P, bool kFull>
inline __attribute__((always_inline)) void add_steps_by_lane(const Block &block, const Tile &tile, const F &f,
                                                             const typename F::State (&state)[P][1],
                                                             typename V::T (&sum)[P][1],
                                                             typename V::T (&source_sum)[P]) {
  using T = typename V::T;
  const float *const origin = tile.source[0] + block.source_channel;
  int64_t offset[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) offset[p] = tile.source[p] - tile.source[0];
  const int lanes = F::kSource == Source::group ? block.source_lanes : block.lanes;
  const auto load = [lanes](const float *from) { return kFull ? V::load(from) : V::load_partial(from, lanes); };
  for (const Run *run = block.runs; run != block.runs + block.run_count; ++run) {
    const float *const base = origin + run->source;
    const float *weight = block.weight + run->weight * V::width;
    if constexpr (F::kSource == Source::own) {
      const T w = V::load(weight);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) sum[p][0] = f.step(sum[p][0], w, load(base + offset[p]), state[p][0]);
    } else {
      if constexpr (F::kSourceSum)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) source_sum[p] = V::add(source_sum[p], load(base + offset[p]));
      for (int64_t k = 0; k < run->length; ++k, weight += V::width) {
        const T w = V::load(weight);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
          const T x = V::permute(load(base + offset[p]), block.index + k * V::width);
          sum[p][0] = f.step(sum[p][0], w, x, state[p][0]);
        }
      }
    }
  }
}

// Makes a functor for a block: those of rounded calls read its grid.
template <class F>
inline __attribute__((always_inline)) F functor(const Block &block) {
  if constexpr (std::is_constructible_v<F, const Block &>)
    return F(block);
  else
    return F();
}

// Computes a tile of exactly P pixels.
template <class V, class F, int P, int N>
void tile_of(const Block &block, const Tile &tile) {
  using T = typename V::T;
  const F f = functor<F>(block);
  typename F::Words sum[P][N];
  T source_sum[P];
  typename F::State state[P][N];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    source_sum[p] = V::zero();
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      sum[p][v] = F::zero();
      if constexpr (F::kState)
        state[p][v] = f.state(load_lanes<V>(tile.state[p] + block.channel + v * V::width, block.lanes - v * V::width));
    }
  }
  if constexpr (F::kSource == Source::one)
    add_steps<V, F, P, N>(block, tile, f, state, sum);
  else if ((F::kSource == Source::group ? block.source_lanes : block.lanes) >= V::width)
    add_steps_by_lane<V, F, P, true>(block, tile, f, state, sum, source_sum);
  else
    add_steps_by_lane<V, F, P, false>(block, tile, f, state, sum, source_sum);

#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    T total = V::zero();
    if constexpr (F::kSource == Source::group && F::kSourceSum)
      for (int64_t k = 0; k < (block.run_count ? block.runs->length : 0); ++k)
        total = V::add(total, V::permute(source_sum[p], block.index + k * V::width));
    else if constexpr (F::kSourceSum && std::is_same_v<typename F::Words, T>)
      total = V::broadcast(block.sums_source ? last_lane<V>(sum[p][N - 1]) : tile.source_sum[p]);
    else if constexpr (F::kSourceSum)
      total = V::broadcast(tile.source_sum[p]);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const int lanes = block.lanes - v * V::width;
      T x = V::zero();
      if constexpr (F::kState) x = load_lanes<V>(tile.state[p] + block.channel + v * V::width, lanes);
      const T value = f.finish(sum[p][v], total, V::load(block.weight_sum + v * V::width),
                               V::load(block.constant + v * V::width), x);
      store_lanes<V>(tile.result[p] + block.channel + v * V::width, value, lanes);
    }
  }
}

// Computes a tile of up to P pixels. The number of pixels is a constant of tile_of, so that they stay in registers.
template <class V, class F, int P, int N>
void tile_kernel(const Block &block, const Tile &tile) {
  if (tile.pixels == P) return tile_of<V, F, P, N>(block, tile);
  if constexpr (P > 1) return tile_kernel<V, F, P - 1, N>(block, tile);
}

// Source::depth: P pixels by C channels, and a vector of sums for each. Adds the vectors of each run in order, then
// their lanes.
template <class V, class F, int P, int C>
inline __attribute__((always_inline)) void channels_along_depth(const Block &block, const Tile &tile, int first) {
  static_assert(P * C <= V::width);
  using T = typename V::T;
  T sum[V::width];
#pragma GCC unroll 16
  for (int i = 0; i < V::width; ++i) sum[i] = V::zero();
  const float *at[P];
  typename F::State state[V::width];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    at[p] = tile.state[p] + block.channel + first;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) state[p * C + c] = F::state(V::broadcast(at[p][c]));
  }
  const auto add_step = [&](const float *const *source, const float *weight, int64_t k, auto load) {
    T dy[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) dy[p] = load(source[p] + k);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const T w = load(weight + c * block.rows + k);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) sum[p * C + c] = F::step(sum[p * C + c], w, dy[p], state[p * C + c]);
    }
  };
  for (int64_t r = 0; r < block.run_count; ++r) {
    const Run run = block.runs[r];
    const float *weight = block.weight + first * block.rows + run.weight, *source[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) source[p] = tile.source[p] + run.source + block.source_channel;
    int64_t k = 0;
    for (; k + V::width <= run.length; k += V::width) add_step(source, weight, k, V::load);
    const int rest = static_cast<int>(run.length - k);
    if (rest > 0) add_step(source, weight, k, [rest](const float *from) { return V::load_partial(from, rest); });
  }
  float sums[V::width];
  V::store(sums, V::template sum_each<false>(sum));
  for (int p = 0; p < P; ++p)
    for (int c = 0; c < C; ++c) {
      const float x = at[p][c], value = sums[p * C + c], nan = block.constant[first + c] - x;
      float &result = tile.result[p][block.channel + first + c];
      if constexpr (F::kSourceSum)
        result = value - x * tile.source_sum[p];
      else
        result = nan == nan ? value : nan;
    }
}

template <class V, class F, int P>
void tiles_along_depth(const Block &block, const Tile &tile) {
  if (tile.pixels < P) {
    if constexpr (P > 1) return tiles_along_depth<V, F, P - 1>(block, tile);
  }
  int c = 0;
  for (; c + 2 <= block.lanes; c += 2) channels_along_depth<V, F, P, 2>(block, tile, c);
  if (c < block.lanes) channels_along_depth<V, F, P, 1>(block, tile, c);
}

template <class V>
Range range(const float *from, int64_t count) {
  constexpr int kSums = 4;
  using T = typename V::T;
  T low[kSums], high[kSums], bad[kSums];
  for (int i = 0; i < kSums; ++i) low[i] = high[i] = bad[i] = V::zero();
  const auto take = [&](int i, T x) {
    low[i] = V::min(x, low[i]);
    high[i] = V::max(x, high[i]);
    bad[i] = V::fma(x, V::zero(), bad[i]);  // 0, or NaN
  };
  int64_t k = 0;
  for (; k + kSums * V::width <= count; k += kSums * V::width)
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) take(i, V::load(from + k + i * V::width));
  for (; k < count; k += V::width) take(0, load_lanes<V>(from + k, static_cast<int>(count - k)));
  float lows[V::width], highs[V::width], bads[V::width];
  for (int i = 1; i < kSums; ++i) {
    low[0] = V::min(low[i], low[0]);
    high[0] = V::max(high[i], high[0]);
    bad[0] = V::add(bad[i], bad[0]);
  }
  V::store(lows, low[0]);
  V::store(highs, high[0]);
  V::store(bads, bad[0]);
  Range result{0.0f, 0.0f};
  float nan = 0.0f;
  for (int i = 0; i < V::width; ++i) {
    if (lows[i] < result.low) result.low = lows[i];
    if (highs[i] > result.high) result.high = highs[i];
    nan += bads[i];
  }
  return {result.low + nan, result.high + nan};
}

// Rounds numbers to T. The loop is left to the compiler.
template <class T>
inline __attribute__((always_inline)) void round_run(const float *__restrict from, int64_t count, float levels,
                                                     int zero, T *__restrict to) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = static_cast<T>(static_cast<int>(__builtin_rintf(from[i] * levels)) + zero);
}

// Rounds pixels to words of T, see Rounder.
template <class T>
void round_to(const float *from, int64_t pixels, const Grid &grid, int64_t words, float *words_to) {
  const int64_t per_pixel = words * static_cast<int64_t>(sizeof(float) / sizeof(T));
  T *to = reinterpret_cast<T *>(words_to);
  const int zero = sizeof(T) == 1 ? grid.zero_point : 0;
  if (per_pixel == grid.depth) return round_run(from, pixels * grid.depth, grid.levels, zero, to);
  for (int64_t p = 0; p < pixels; ++p, from += grid.depth, to += per_pixel) {
    round_run(from, grid.depth, grid.levels, zero, to);
    for (int64_t i = grid.depth; i < per_pixel; ++i) to[i] = 0;
  }
}

// Rounds pixels to limbs: four channels take two words. See Rounder.
template <class V>
void round_to_limbs(const float *from, int64_t pixels, const Grid &grid, int64_t words, float *words_to) {
  constexpr int kTogether = 16;
  int8_t *to = reinterpret_cast<int8_t *>(words_to);
  const bool is_dense = grid.depth == words * 2;
  const int64_t rows = is_dense ? 1 : pixels, depth = is_dense ? pixels * grid.depth : grid.depth;
  for (int64_t p = 0; p < rows; ++p, from += depth, to += words * 4) {
    int8_t rest[2 * kTogether];
    int64_t i = 0;
    for (; i + kTogether <= depth; i += kTogether) V::split(V::load(from + i), grid.levels, to + 2 * i);
    if (i == depth) continue;
    V::split(V::load_partial(from + i, static_cast<int>(depth - i)), grid.levels, rest);
    std::memcpy(to + 2 * i, rest, static_cast<std::size_t>((depth - i + 3) / 4 * 8));
  }
}

// Packs the weight of a block into N vectors a row, and computes the sums that the identities need.
template <class V, int N>
void pack(const WeightView &view, const Packing &to) {
  using T = typename V::T;
  for (int v = 0; v < N; ++v) {
    const int first = v * V::width, lanes = to.lanes - first;
    const float *origin = to.origin + first * view.lane;
    T total = V::zero();
    float *packed = to.weight + first;
    for (int64_t tap = 0; tap < view.taps; ++tap) {
      const float *source = origin + view.tap_offset(tap);
      T sum = V::zero(), abs_sum = V::zero();
      for (int64_t k = 0; k < view.depth_size; ++k, source += view.depth, packed += N * V::width) {
        const T w = view.lane == 1 ? load_lanes<V>(source, lanes) : V::load_strided(source, view.lane, lanes);
        V::store(packed, w);
        sum = V::add(sum, w);
        abs_sum = V::add(abs_sum, V::abs(w));
        total = V::add(total, w);
      }
      if (to.tap_sum) {
        V::store(to.tap_sum + tap * N * V::width + first, sum);
        V::store(to.tap_abs_sum + tap * N * V::width + first, abs_sum);
      }
    }
    V::store(to.constant + first, total);
    for (int lane = first; lane < first + V::width; ++lane) to.constant[lane] = unless_finite(to.constant[lane]);
  }
}

// to[column][row] = from[row][column] for columns [first, last), a square of vectors at a time.
template <class V>
void transpose(const float *from, float *to, int64_t rows, int64_t columns, int64_t first, int64_t last) {
  typename V::T a[V::width];
  for (int64_t c = first; c < last; c += V::width) {
    const int wide = static_cast<int>(last - c < V::width ? last - c : V::width);
    for (int64_t r = 0; r < rows; r += V::width) {
      const int high = static_cast<int>(rows - r < V::width ? rows - r : V::width);
      for (int i = 0; i < V::width; ++i)
        a[i] = i < high ? load_lanes<V>(from + (r + i) * columns + c, wide) : V::zero();
      V::transpose(a);
      for (int i = 0; i < wide; ++i) store_lanes<V>(to + (c + i) * rows + r, a[i], high);
    }
  }
}

// The sign gradient of R rows of packed weight: sum[r] += sign(x[r] - w[r]) * dy for each pixel.
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
