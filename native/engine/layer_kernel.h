// The layer kernel, once for all kinds and vector widths: P pixels by W blocks of channels stay in registers over a
// patch, and leave them as codes.
#pragma once
#include "engine/job.h"
#include "engine/lanes_avx2.h"

namespace torchadder::engine {
namespace {

template <class V>
struct Adder {
  static typename V::T step(typename V::T sum, typename V::T x, typename V::T w) {
    return V::absolute_differences(sum, x, w);
  }
  static typename V::T finish(typename V::T sum) { return sum; }
  static constexpr bool kTail = true;  // bytes behind a row must not count; elsewhere their weight is 0
  static constexpr bool kBase = false;
};

template <class V>
struct Conv {
  static typename V::T step(typename V::T sum, typename V::T x, typename V::T w) { return V::products(sum, x, w); }
  static typename V::T finish(typename V::T sum) { return V::fold(sum); }
  static constexpr bool kTail = false;
  static constexpr bool kBase = false;
};

template <class V>
struct Binary {
  static typename V::T step(typename V::T sum, typename V::T x, typename V::T w) {
    return V::differing_bits(sum, x, w);
  }
  static typename V::T finish(typename V::T sum) { return sum; }
  static constexpr bool kTail = true;
  static constexpr bool kBase = true;
};

template <class V, int W>
struct LanesOf {
  using L = Lanes8;
  static __m256i narrow(const typename V::T *sum) { return V::narrow(sum); }
};

// Where output pixels lie: a walk along the rows.
struct Walk {
  const LayerJob *job;
  int64_t y, x;
  const uint8_t *source;
  int64_t to, from;  // of result and shortcut
  Walk(const LayerJob &of, int64_t pixel) : job(&of), y(pixel / of.width), x(pixel % of.width) {
    source = job->source + y * job->source_row + x * job->source_pixel;
    to = y * job->result_row + x * job->result_pixel;
    from = y * job->shortcut_row + x * job->shortcut_pixel;
  }
  // Of the pixel so many further in the row.
  int64_t base(int further) const { return (job->row_class[y] + job->column_class[x + further]) * job->base_class; }
  void skip(int64_t pixels) {
    source += pixels * job->source_pixel, to += pixels * job->result_pixel, from += pixels * job->shortcut_pixel;
    for (x += pixels; x >= job->width; x -= job->width, ++y) {
      source += job->source_row - job->width * job->source_pixel;
      to += job->result_row - job->width * job->result_pixel;
      from += job->shortcut_row - job->width * job->shortcut_pixel;
    }
  }
};

// Pixels in tiles of `most` or one less, as evenly as that goes, so that no small rest is left.
struct Tiles {
  int64_t count, size, more, left = 0;
  Tiles(int64_t pixels, int most) : count((pixels + most - 1) / most), size(0), more(0) {
    if (count) size = pixels / count, more = pixels % count;
  }
  int64_t next() {  // pixels of the next tile
    left += more;
    if (left < count) return size;
    left -= count;
    return size + 1;
  }
};

template <class V, class F, int P, int N, bool kMasked>
inline __attribute__((always_inline)) void add_step(typename V::T (&sum)[P][N], const uint8_t *const (&source)[P],
                                                    int64_t at, const uint8_t *const *weight, int64_t packed,
                                                    typename V::T tail) {
  typename V::T w[N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v)
    w[v] = V::load(weight[v / V::vectors] + packed + v % V::vectors * static_cast<int64_t>(sizeof(typename V::T)));
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    typename V::T x = V::broadcast(source[p] + at);
    if constexpr (kMasked) x = V::keep(x, tail);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = F::step(sum[p][v], x, w[v]);
  }
}

// The first n bytes, 1 to 15, of 16: two pieces that overlap.
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

// P output pixels: where their patches, results and shortcuts lie.
template <int P>
struct Pixels {
  const uint8_t *source[P];
  int64_t to[P], from[P], base[P];
  template <bool kBase>
  inline __attribute__((always_inline)) void take(Walk &walk) {
    if (walk.x + P <= walk.job->width) {
      const int64_t step = walk.job->source_pixel, next = walk.job->result_pixel, other = walk.job->shortcut_pixel;
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        source[p] = walk.source + p * step;
        to[p] = walk.to + p * next;
        from[p] = walk.from + p * other;
        if constexpr (kBase) base[p] = walk.base(p);
      }
      walk.skip(P);
    } else {
      take_one_by_one<kBase>(walk);
    }
  }
  template <bool kBase>
  [[gnu::noinline]] void take_one_by_one(Walk &walk) {  // over the end of a row
    for (int p = 0; p < P; ++p) {
      source[p] = walk.source;
      to[p] = walk.to;
      from[p] = walk.from;
      if constexpr (kBase) base[p] = walk.base(0);
      walk.skip(1);
    }
  }
};

// Sums of 8 or 16 channels from `channel` on become codes, or logits.
template <class L, int P>
inline __attribute__((always_inline)) void leave(const LayerJob &job, const Pixels<P> &pixels,
                                                 typename L::T (&total)[P], int channel) {
  const int left = job.channels - channel;
  if (job.logits) {
    int32_t sums[L::width];
    L::store(sums, total[0]);
    for (int c = 0; c < L::width && c < left; ++c)
      job.logits[channel + c] = static_cast<float>(sums[c]) * job.gain[channel + c] + job.bias[channel + c];
    return;
  }
  if (job.pre)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) total[p] = L::shift(total[p], L::set(job.pre));
  const auto multiplier = L::load(job.multiplier + channel), offset = L::load(job.offset + channel),
             shift = L::load(job.shift + channel), highest = L::set(job.highest);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) total[p] = L::add(L::mul(total[p], multiplier), offset);
  if (job.shortcut) {
    const auto factor = L::load(job.factor + channel);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
      total[p] = L::add(total[p], L::mul(L::codes(job.shortcut + pixels.from[p] + channel), factor));
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) total[p] = L::min(L::shift(total[p], shift), highest);
  if (left >= L::width) {
    uint8_t *result[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) result[p] = job.result + pixels.to[p] + channel;
    int p = 0;
    for (; p + 4 <= P; p += 4) L::bytes_of_four(total + p, result + p);
    for (; p < P; ++p) L::bytes(total[p], result[p]);
    return;
  }
  for (int p = 0; p < P; ++p) {
    uint8_t codes[L::width];
    L::bytes(total[p], codes);
    copy_few(job.result + pixels.to[p] + channel, codes, left);
  }
}

template <class V, class F, int P, int W, bool kMasked>
void tile(const LayerJob &job, Walk &walk, int block) {
  using Of = LanesOf<V, W>;
  using L = typename Of::L;
  using T = typename V::T;
  constexpr int N = W * V::vectors;
  const uint8_t *weight[W];
  Pixels<P> pixels;
  pixels.template take<F::kBase>(walk);
  for (int b = 0; b < W; ++b) weight[b] = job.weight + (block + b) * job.block_bytes;
  T sum[P][N];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = V::zero();

  constexpr int64_t kPacked = kBlock * kStep;
  const int64_t whole = job.steps - kMasked;
  const T tail = V::mask(job.tail);
  int64_t packed = 0, row = 0;
  for (int r = 0; r < job.rows; ++r, row += job.kernel_row) {
    int64_t at = row;
    for (int64_t s = 0; s < whole; ++s, at += kStep, packed += kPacked)
      add_step<V, F, P, N, false>(sum, pixels.source, at, weight, packed, tail);
    if constexpr (kMasked) {
      add_step<V, F, P, N, true>(sum, pixels.source, at, weight, packed, tail);
      packed += kPacked;
    }
  }

  const int channel = block * kBlock;
  typename L::T total[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[p][v] = F::finish(sum[p][v]);
    total[p] = Of::narrow(sum[p]);
    if constexpr (F::kBase) total[p] = L::sub(L::load(job.base + pixels.base[p] + channel), L::add(total[p], total[p]));
  }
  leave<L, P>(job, pixels, total, channel);
}

// A tile of `count` pixels, at most P.
template <class V, class F, int P, int W, bool kMasked>
void tile_of(const LayerJob &job, Walk &walk, int block, int64_t count) {
  if (count == P) return tile<V, F, P, W, kMasked>(job, walk, block);
  if constexpr (P > 1) return tile_of<V, F, P - 1, W, kMasked>(job, walk, block, count);
}

// All tiles of a part.
template <class V, class F, int P, int W>
void blocks(const LayerJob &job, const Part &part, int block) {
  Tiles tiles(part.last - part.first, P);
  const bool masked = F::kTail && job.tail != ~uint64_t{0};
  Walk walk(job, part.first);
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t count = tiles.next();
    if (masked)
      tile_of<V, F, P, W, F::kTail>(job, walk, block, count);
    else
      tile_of<V, F, P, W, false>(job, walk, block, count);
  }
}

template <class V, class F, int P, int W>
void layer(const LayerJob &job, const Part &part) {
  int block = part.first_block;
  for (; block + W <= part.last_block; block += W) blocks<V, F, P, W>(job, part, block);
  for (; block < part.last_block; ++block) blocks<V, F, P, 1>(job, part, block);
}

}  // namespace
}  // namespace torchadder::engine
