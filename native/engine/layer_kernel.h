// The layer kernel, once for all operators and instruction sets: P output pixels by W blocks of 8 channels accumulate
// in registers over a patch; then the epilogue makes quantized values or logits of the accumulators.
//
// A vector type V has all that depends on the instruction set:
//
//   T                          a vector: for some channels of a block 8 bytes each, or their accumulators
//   vectors                    vectors a block
//   lane_order[kBlock]         the channel whose weights are at each place of a packed step
//   zero, load, mask, keep     0; packed weight; 8 bytes for each channel; a & b
//   broadcast(p)               the same 8 bytes of the source for each channel
//   add_differences(a, x, w)   a + sum |x - w|, over 8 unsigned bytes
//   add_products(a, x, w)      a + sum x * w, over ConvValue numbers of the source and as wide signed weights
//   add_differing_bits(...)    a + the number of bits in x ^ w
//   fold_...(a)                the accumulators of one of these, one for a channel
//   Lanes<W>, narrow<W>(a)     the accumulators of W blocks as 32-bit lanes in the order of the channels
//   kNarrowSteps               steps until accumulators of differences and bits must be widened; 0: never
//   widen(wide, a)             wide + a, where a are such accumulators
//   ConvValue, kConvOffset     how add_products takes a conv layer's source: q - kConvOffset as ConvValue
//   kSigns, pack_signs         for auxiliary.h
//
// and Lanes<W> what requantization needs: width, load, store, load_u8, set, add, sub, mul, abs, shift_right, min, max,
// and store_u8 and store_u8_of_four, which clamp negative lanes to 0.
#pragma once
#include <cstring>

#include "engine/job.h"

namespace torchadder::engine {
namespace {

// The operators: a step of the inner loop, and the fold that ends it, which leaves one accumulator for each channel.
template <class V>
struct Adder {
  using T = typename V::T;
  static constexpr bool kMasksTail = true;  // bytes after a row of a patch are masked; Conv has weight 0 there
  static constexpr bool kHasBase = false;
  static constexpr bool kHasOffset = false;
  static constexpr int64_t kNarrowSteps = V::kNarrowSteps;
  static T step(T sum, T x, T w) { return V::add_differences(sum, x, w); }
  static T fold(T sum) { return V::fold_differences(sum); }
};

template <class V>
struct Conv {
  using T = typename V::T;
  static constexpr bool kMasksTail = false;
  static constexpr bool kHasBase = false;
  static constexpr bool kHasOffset = true;  // accumulator = sum + source_offset * the filter's sum
  static constexpr int64_t kNarrowSteps = 0;
  static T step(T sum, T x, T w) { return V::add_products(sum, x, w); }
  static T fold(T sum) { return V::fold_products(sum); }
};

template <class V>
struct Binary {
  using T = typename V::T;
  static constexpr bool kMasksTail = true;
  static constexpr bool kHasBase = true;  // accumulator = base - 2 * differing bits
  static constexpr bool kHasOffset = false;
  static constexpr int64_t kNarrowSteps = V::kNarrowSteps;
  static T step(T sum, T x, T w) { return V::add_differing_bits(sum, x, w); }
  static T fold(T sum) { return V::fold_bits(sum); }
};

// An output pixel and its addresses; advances along the rows.
struct Position {
  const LayerJob *job;
  int64_t y, x;
  const uint8_t *source;     // its patch
  int64_t result, shortcut;  // offsets, bytes
  Position(const LayerJob &of, int64_t pixel) : job(&of), y(pixel / of.width), x(pixel % of.width) {
    source = job->source + y * job->source_row + x * job->source_pixel;
    result = y * job->result_row + x * job->result_pixel;
    shortcut = y * job->shortcut_row + x * job->shortcut_pixel;
  }
  // The base of the pixel `ahead` pixels further in the row.
  int64_t base(int ahead) const { return base_at(y, x + ahead); }
  // The base of pixel p of the pooling window.
  int64_t base_in_window(int p) const { return base_at(2 * y + p / 2, 2 * x + p % 2); }
  int64_t base_at(int64_t row, int64_t column) const {
    return (job->row_class[row] + job->column_class[column]) * job->base_class;
  }
  void advance(int64_t pixels) {
    source += pixels * job->source_pixel;
    result += pixels * job->result_pixel;
    shortcut += pixels * job->shortcut_pixel;
    for (x += pixels; x >= job->width; x -= job->width, ++y) {
      source += job->source_row - job->width * job->source_pixel;
      result += job->result_row - job->width * job->result_pixel;
      shortcut += job->shortcut_row - job->width * job->shortcut_pixel;
    }
  }
};

// Splits pixels into tiles of `most` or one less, as evenly as possible, so that no small tile remains at the end.
struct Tiles {
  int64_t count, size, larger, error = 0;
  Tiles(int64_t pixels, int most) : count((pixels + most - 1) / most), size(0), larger(0) {
    if (count) size = pixels / count, larger = pixels % count;
  }
  // Returns the number of pixels of the next tile.
  int64_t next() {
    error += larger;
    if (error < count) return size;
    error -= count;
    return size + 1;
  }
};

// The addresses of the P pixels of a tile: P output pixels, or those of P / kPooled pooling windows.
template <int P, int kPooled = 1>
struct Pixels {
  const uint8_t *source[P];
  int64_t result[P / kPooled], base[P];

  // Takes the next output pixels from `at`.
  template <bool kHasBase>
  inline __attribute__((always_inline)) void take(Position &at) {
#pragma GCC unroll 4
    for (int w = 0; w < P / kPooled; ++w, at.advance(1)) {
      result[w] = at.result;
#pragma GCC unroll 4
      for (int p = 0; p < kPooled; ++p) {
        source[w * kPooled + p] = at.source + at.job->window[p];
        if constexpr (kHasBase) base[w * kPooled + p] = at.base_in_window(p);
      }
    }
  }
};

template <int P>
struct Pixels<P, 1> {
  const uint8_t *source[P];
  int64_t result[P], shortcut[P], base[P];

  template <bool kHasBase>
  inline __attribute__((always_inline)) void take(Position &at) {
    if (at.x + P <= at.job->width) {
      const int64_t step = at.job->source_pixel, result_step = at.job->result_pixel, other = at.job->shortcut_pixel;
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        source[p] = at.source + p * step;
        result[p] = at.result + p * result_step;
        shortcut[p] = at.shortcut + p * other;
        if constexpr (kHasBase) base[p] = at.base(p);
      }
      at.advance(P);
    } else {
      take_across_rows<kHasBase>(at);
    }
  }

  template <bool kHasBase>
  [[gnu::noinline]] void take_across_rows(Position &at) {
    for (int p = 0; p < P; ++p) {
      source[p] = at.source;
      result[p] = at.result;
      shortcut[p] = at.shortcut;
      if constexpr (kHasBase) base[p] = at.base(0);
      at.advance(1);
    }
  }
};

// Copies n bytes, 1 to 15, as two pieces that may overlap: no loop.
inline void copy_few(uint8_t *to, const uint8_t *from, int n) {
  const auto pieces = [&](auto piece) {
    std::memcpy(&piece, from, sizeof piece);
    std::memcpy(to, &piece, sizeof piece);
    std::memcpy(&piece, from + n - sizeof piece, sizeof piece);
    std::memcpy(to + n - sizeof piece, &piece, sizeof piece);
  };
  if (n >= 8)
    pieces(uint64_t{});
  else if (n >= 4)
    pieces(uint32_t{});
  else if (n >= 2)
    pieces(uint16_t{});
  else
    *to = *from;
}

// The epilogue: stores the quantized values, or the logits, of P pixels' accumulators from `channel` on. Pooling comes
// before the offset: the steps after it keep the order of the products, whatever the sign of the multiplier.
template <class L, int P, int kPooled = 1>
inline __attribute__((always_inline)) void epilogue(const LayerJob &job, const Pixels<P, kPooled> &pixels,
                                                    typename L::T (&total)[P], int channel) {
  constexpr int R = P / kPooled;  // results
  const int left = job.channels - channel;
  if (job.logits) {
    int32_t sums[L::width];
    L::store(sums, total[0]);
    for (int c = 0; c < L::width && c < left; ++c)
      job.logits[channel + c] = static_cast<float>(sums[c]) * job.scale[channel + c] + job.bias[channel + c];
    return;
  }
  if (job.pre_shift)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) total[p] = L::shift_right(total[p], L::set(job.pre_shift));
  const auto multiplier = L::load(job.multiplier + channel), offset = L::load(job.offset + channel),
             shift = L::load(job.shift + channel), qmax = L::set(job.qmax);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) total[p] = L::mul(total[p], multiplier);
  if constexpr (kPooled == kWindow)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto *const window = total + r * kWindow;
      total[r] = L::max(L::max(window[0], window[1]), L::max(window[2], window[3]));
    }
#pragma GCC unroll 16
  for (int p = 0; p < R; ++p) total[p] = L::add(total[p], offset);
  if constexpr (kPooled == 1)
    if (job.shortcut) {
      const auto factor = L::load(job.factor + channel);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
        total[p] = L::add(total[p], L::mul(L::load_u8(job.shortcut + pixels.shortcut[p] + channel), factor));
    }
#pragma GCC unroll 16
  for (int p = 0; p < R; ++p) total[p] = L::min(L::shift_right(total[p], shift), qmax);
  // A vector that is wider than the pixel may overwrite the next one, where that is stored afterwards.
  uint8_t part[R][L::width], *result[R], *to[R];
#pragma GCC unroll 16
  for (int p = 0; p < R; ++p) {
    to[p] = result[p] = job.result + pixels.result[p] + channel;
    const bool next_follows = p + 1 < R && pixels.result[p + 1] - pixels.result[p] == left && 2 * left >= L::width;
    if (left < L::width && !next_follows) to[p] = part[p];
  }
  int p = 0;
  for (; p + 4 <= R; p += 4) L::store_u8_of_four(total + p, to + p);
  for (; p < R; ++p) L::store_u8(total[p], to[p]);
  if (left < L::width)
    for (p = 0; p < R; ++p)
      if (to[p] == part[p]) copy_few(result[p], part[p], left);
}

// Computes one step: 8 bytes of each patch with N vectors of weights.
template <class V, class F, int P, int N, bool kMasked>
inline __attribute__((always_inline)) void add_step(typename V::T (&sum)[P][N], const uint8_t *const (&source)[P],
                                                    int64_t at, const uint8_t *const *weight, int64_t packed,
                                                    typename V::T tail_mask) {
  typename V::T w[N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v)
    w[v] = V::load(weight[v / V::vectors] + packed + v % V::vectors * static_cast<int64_t>(sizeof(typename V::T)));
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    typename V::T x = V::broadcast(source[p] + at);
    if constexpr (kMasked) x = V::keep(x, tail_mask);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = F::step(sum[p][v], x, w[v]);
  }
}

// Moves narrow accumulators to wide ones every kSteps steps. With kSteps = 0 they are wide from the start.
template <class V, int P, int N, int64_t kSteps>
struct Widening {
  using T = typename V::T;
  T wide[P][N];
  int64_t left = kSteps;
  inline __attribute__((always_inline)) Widening() {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) wide[p][v] = V::zero();
  }
  // Returns how many of `steps` steps may come before the next call of after().
  int64_t room(int64_t steps) const { return steps < left ? steps : left; }
  inline __attribute__((always_inline)) void after(int64_t steps, T (&sum)[P][N]) {
    if (left -= steps) return;
    left = kSteps;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        wide[p][v] = V::widen(wide[p][v], sum[p][v]);
        sum[p][v] = V::zero();
      }
  }
  // Makes `sum` the wide accumulators.
  inline __attribute__((always_inline)) void finish(T (&sum)[P][N]) const {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[p][v] = V::widen(wide[p][v], sum[p][v]);
  }
};

template <class V, int P, int N>
struct Widening<V, P, N, 0> {
  static int64_t room(int64_t steps) { return steps; }
  template <class Sums>
  static void after(int64_t, Sums &) {}
  template <class Sums>
  static void finish(Sums &) {}
};

// What a row of a patch consists of: whole steps, and perhaps a tail, whose bytes after the row are masked; or a single
// step, whole or not.
enum class Row { steps, steps_and_tail, step };

// Computes a tile: the next P pixels from `at`, and W blocks from `block` on.
template <class V, class F, int P, int W, Row kRow, int kPooled>
void tile(const LayerJob &job, Position &at, int block) {
  using L = typename V::template Lanes<W>;
  using T = typename V::T;
  constexpr int N = W * V::vectors;
  const uint8_t *weight[W];
  Pixels<P, kPooled> pixels;
  pixels.template take<F::kHasBase>(at);
  for (int b = 0; b < W; ++b) weight[b] = job.weight + (block + b) * job.block_bytes;
  T sum[P][N];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = V::zero();

  constexpr int64_t kPacked = kBlock * kStep;
  const int64_t whole_steps = kRow == Row::step ? 0 : job.steps - (kRow == Row::steps_and_tail);
  const T tail_mask = V::mask(job.tail_mask);
  Widening<V, P, N, F::kNarrowSteps> widening;
  int64_t packed = 0;
  const int64_t *const end = job.row_offset + job.rows;
  for (const int64_t *row = job.row_offset; row != end; ++row) {
    int64_t byte = *row;
    for (int64_t left = whole_steps; left > 0;) {
      const int64_t run = widening.room(left);
      for (int64_t s = 0; s < run; ++s, byte += kStep, packed += kPacked)
        add_step<V, F, P, N, false>(sum, pixels.source, byte, weight, packed, tail_mask);
      widening.after(run, sum);
      left -= run;
    }
    if constexpr (kRow != Row::steps) {
      add_step<V, F, P, N, F::kMasksTail>(sum, pixels.source, byte, weight, packed, tail_mask);
      packed += kPacked;
      widening.after(1, sum);
    }
  }
  widening.finish(sum);

  const int channel = block * kBlock;
  typename L::T total[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = F::fold(sum[p][v]);
    total[p] = V::template narrow<W>(sum[p]);
    if constexpr (F::kHasBase)
      total[p] = L::sub(L::load(job.base + pixels.base[p] + channel), L::add(total[p], total[p]));
  }
  if constexpr (F::kHasOffset)
    if (job.source_offset) {
      const auto offset = L::mul(L::load(job.weight_sum + channel), L::set(job.source_offset));
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) total[p] = L::add(total[p], offset);
    }
  epilogue<L, P, kPooled>(job, pixels, total, channel);
}

// Computes a tile of `count` output pixels, at most P / kPooled.
template <class V, class F, int P, int W, Row kRow, int kPooled = 1>
void tile_of(const LayerJob &job, Position &at, int block, int64_t count) {
  if (count == P / kPooled) return tile<V, F, P, W, kRow, kPooled>(job, at, block);
  if constexpr (P > kPooled) return tile_of<V, F, P - kPooled, W, kRow, kPooled>(job, at, block, count);
}

// Computes all tiles of a part for W blocks.
template <class V, class F, int P, int W, int kPooled>
void tiles(const LayerJob &job, const Part &part, int block) {
  Tiles split(part.last - part.first, P / kPooled);
  const bool has_tail = F::kMasksTail && job.tail_mask != ~uint64_t{0};
  Position at(job, part.first);
  for (int64_t t = 0; t < split.count; ++t) {
    const int64_t count = split.next();
    if (job.steps == 1)
      tile_of<V, F, P, W, Row::step, kPooled>(job, at, block, count);
    else if (has_tail)
      tile_of<V, F, P, W, F::kMasksTail ? Row::steps_and_tail : Row::steps, kPooled>(job, at, block, count);
    else
      tile_of<V, F, P, W, Row::steps, kPooled>(job, at, block, count);
  }
}

// Computes a layer; with kPooled == kWindow, one with pooling.
template <class V, class F, int P, int W, int kPooled>
void layer(const LayerJob &job, const Part &part) {
  int block = part.first_block;
  for (; block + W <= part.last_block; block += W) tiles<V, F, P, W, kPooled>(job, part, block);
  for (; block < part.last_block; ++block) tiles<V, F, P, 1, kPooled>(job, part, block);
}

}  // namespace
}  // namespace torchadder::engine
