// The kernel of depthwise layers: P output pixels by the channels of one vector accumulate in 32-bit lanes, tap by tap.
// Filters of one channel leave nothing to sum within a pixel, so that psadbw and pmaddwd have no use here.
#pragma once
#include "engine/layer_kernel.h"

namespace torchadder::engine {
namespace {

struct AdderDepthwise {
  template <class L>
  static typename L::T step(typename L::T sum, typename L::T x, typename L::T w) {
    return L::add(sum, L::abs(L::sub(x, w)));
  }
};

struct ConvDepthwise {
  template <class L>
  static typename L::T step(typename L::T sum, typename L::T x, typename L::T w) {
    return L::add(sum, L::mul(x, w));
  }
};

// Computes a tile: P pixels, and the channels of L from `channel` on.
template <class L, class F, int P>
inline __attribute__((always_inline)) void depthwise_channels(const LayerJob &job, const Pixels<P> &pixels,
                                                              int channel) {
  typename L::T sum[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) sum[p] = L::set(0);
  const uint8_t *weight = job.weight + channel * static_cast<int64_t>(sizeof(int32_t));
  for (int r = 0; r < job.rows; ++r, weight += job.block_bytes) {
    const auto w = L::load(reinterpret_cast<const int32_t *>(weight));
    const int64_t at = job.row_offset[r] + channel;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p] = F::template step<L>(sum[p], L::load_u8(pixels.source[p] + at), w);
  }
  if (job.source_offset) {
    const auto offset = L::mul(L::load(job.weight_sum + channel), L::set(job.source_offset));
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p] = L::add(sum[p], offset);
  }
  epilogue<L, P>(job, pixels, sum, channel);
}

// Computes the blocks of a part for the next `count` pixels from `at`, at most P.
template <class V, class F, int P, int W>
void depthwise_pixels(const LayerJob &job, const Part &part, Position &at, int64_t count) {
  if (count < P) {
    if constexpr (P > 1) depthwise_pixels<V, F, P - 1, W>(job, part, at, count);
    return;
  }
  Pixels<P> pixels;
  pixels.template take<false>(at);
  int block = part.first_block;
  for (; block + W <= part.last_block; block += W)
    depthwise_channels<typename V::template Lanes<W>, F, P>(job, pixels, block * kBlock);
  for (; block < part.last_block; ++block)
    depthwise_channels<typename V::template Lanes<1>, F, P>(job, pixels, block * kBlock);
}

template <class V, class F, int P, int W>
void depthwise_layer(const LayerJob &job, const Part &part) {
  Tiles split(part.last - part.first, P);
  Position at(job, part.first);
  for (int64_t t = 0; t < split.count; ++t) depthwise_pixels<V, F, P, W>(job, part, at, split.next());
}

}  // namespace
}  // namespace torchadder::engine
