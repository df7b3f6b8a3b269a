// The engine's auxiliary kernels: pooling, the copies that conv and binary layers read, and quantization of images.
// They are plain loops over channels, which the compiler vectorizes for each instruction set.
#pragma once
#include <cmath>
#include <cstring>

#include "engine/job.h"

namespace torchadder::engine {
namespace {

// to = max(to, from), by channel.
inline void take_larger(uint8_t *to, const uint8_t *from, int64_t count) {
  for (int64_t c = 0; c < count; ++c) to[c] = to[c] < from[c] ? from[c] : to[c];
}

inline int64_t clipped(int64_t at, int64_t size) { return at < 0 ? 0 : at > size ? size : at; }

// Copies `count` pixels of `channels` bytes that are `step` bytes apart, to adjacent ones. All but the last copy kWidth
// bytes: what is too much, the next copy overwrites.
template <int64_t kWidth>
inline void gather(const uint8_t *from, int64_t step, int64_t channels, int64_t count, uint8_t *to) {
  const int64_t exact = count - kWidth / channels;
  int64_t p = 0;
  for (; p < exact; ++p, from += step, to += channels) std::memcpy(to, from, kWidth);
  for (; p < count; ++p, from += step, to += channels) std::memcpy(to, from, static_cast<std::size_t>(channels));
}

constexpr int64_t kPoolRow = 4096;  // bytes on the stack
constexpr int64_t kNarrow = 32;     // channels; a pixel of more is pooled by itself

// For few channels: the maximum over the rows of the kernel, of many columns at once, then over its columns, then the
// pixels that the stride selects.
inline void max_pool_narrow(const PoolJob &job, int64_t top, int64_t x, int64_t count, uint8_t *to) {
  const int64_t left = x * job.stride[1] - job.padding[1], right = left + (count - 1) * job.stride[1] + job.kernel[1];
  const int64_t begin = clipped(left, job.width), end = clipped(right, job.width), channels = job.channels;
  uint8_t row[kPoolRow], columns[kPoolRow + kNarrow];
  std::memset(row, 0, static_cast<std::size_t>((right - left) * channels));
  for (int64_t i = clipped(top, job.height); i < clipped(top + job.kernel[0], job.height); ++i)
    take_larger(row + (begin - left) * channels, job.source + i * job.source_row + begin * channels,
                (end - begin) * channels);
  const int64_t bytes = ((count - 1) * job.stride[1] + 1) * channels;
  std::memcpy(columns, row, static_cast<std::size_t>(bytes));
  for (int64_t j = 1; j < job.kernel[1]; ++j) take_larger(columns, row + j * channels, bytes);
  if (channels <= 8)
    gather<8>(columns, job.stride[1] * channels, channels, count, to);
  else
    gather<kNarrow>(columns, job.stride[1] * channels, channels, count, to);
}

void max_pool(const PoolJob &job, int64_t first, int64_t last) {
  const int64_t fits =
      (kPoolRow / job.channels - job.kernel[1]) / job.stride[1] + 1;  // pixels whose windows fill a row
  for (int64_t y = first; y < last; ++y) {
    const int64_t top = y * job.stride[0] - job.padding[0];
    uint8_t *to = job.result + y * job.result_row;
    if (job.channels <= kNarrow && fits > 1) {
      for (int64_t x = 0; x < job.result_width; x += fits) {
        const int64_t count = job.result_width - x < fits ? job.result_width - x : fits;
        max_pool_narrow(job, top, x, count, to + x * job.channels);
      }
      continue;
    }
    for (int64_t x = 0; x < job.result_width; ++x, to += job.channels) {
      const int64_t left = x * job.stride[1] - job.padding[1];
      std::memset(to, 0, static_cast<std::size_t>(job.channels));
      for (int64_t i = clipped(top, job.height); i < clipped(top + job.kernel[0], job.height); ++i)
        for (int64_t j = clipped(left, job.width); j < clipped(left + job.kernel[1], job.width); ++j)
          take_larger(to, job.source + i * job.source_row + j * job.channels, job.channels);
    }
  }
}

inline void add_values(int32_t *sums, const uint8_t *from, int64_t count) {
  for (int64_t c = 0; c < count; ++c) sums[c] += from[c];
}

void channel_sums(const PoolJob &job, int64_t first, int64_t last, int32_t *sums) {
  std::memset(sums, 0, static_cast<std::size_t>(last - first) * sizeof *sums);
  for (int64_t y = 0; y < job.height; ++y)
    for (int64_t x = 0; x < job.width; ++x)
      add_values(sums, job.source + y * job.source_row + x * job.channels + first, last - first);
}

void requantize_values(const ValuesJob &job, int64_t first, int64_t last) {
  for (int64_t y = first; y < last; ++y) {
    const uint8_t *from = job.source + y * job.source_row;
    uint8_t *to = job.result + y * job.result_row;
    for (int64_t x = 0; x < job.width; ++x, from += job.source_pixel, to += job.result_pixel)
      for (int64_t c = 0; c < job.channels; ++c)
        to[c] = requantize(from[c], job.pre_shift, job.multiplier[c], job.offset[c], job.shift[c], job.qmax);
  }
}

// Copies values as V::add_products takes them.
template <class V>
void copy_conv(const CopyJob &job, int64_t first, int64_t last) {
  const int64_t count = job.width * job.channels;
  for (int64_t y = first; y < last; ++y) {
    const uint8_t *const from = job.source + y * job.source_row;
    auto *const to = reinterpret_cast<typename V::ConvValue *>(job.result + y * job.result_row);
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<typename V::ConvValue>(from[i] - V::kConvOffset);
  }
}

// Packs 8 signs as V::pack_signs does.
inline void pack_8_signs(const uint8_t *q, const uint8_t *zero_point, uint8_t *to) {
  unsigned signs = 0;
  for (int i = 0; i < 8; ++i) signs |= static_cast<unsigned>(q[i] >= zero_point[i]) << i;
  *to = static_cast<uint8_t>(signs);
}

// Copies values as signs, one bit a channel: 1 where q >= zero_point. A pixel begins at a byte. If the channels fill
// whole bytes, a row is one run of bits.
template <class V>
void copy_binary(const CopyJob &job, int64_t first, int64_t last) {
  const bool whole = job.channels % 8 == 0;
  const int64_t bytes = (job.channels + 7) / 8, run = whole ? job.width * job.channels : job.channels;
  for (int64_t y = first; y < last; ++y) {
    const uint8_t *from = job.source + y * job.source_row;
    uint8_t *to = job.result + y * job.result_row;
    for (int64_t x = 0; x < job.width; x += whole ? job.width : 1, from += run, to += bytes) {
      int64_t c = 0;
      for (; c + V::kSigns <= run; c += V::kSigns) V::pack_signs(from + c, job.zero_point_row + c, to + c / 8);
      for (; c + 8 <= run; c += 8) pack_8_signs(from + c, job.zero_point_row + c, to + c / 8);
      if (c == run) continue;
      unsigned signs = 0;
      for (int64_t i = c; i < run; ++i) signs |= static_cast<unsigned>(from[i] >= job.zero_point_row[i]) << (i - c);
      to[c / 8] = static_cast<uint8_t>(signs);
    }
  }
}

// Copies values as signs: 2 where q >= zero_point, else 0, less the offset. 1 stands for no sign.
template <class T, int kOffset>
void copy_signs(const CopyJob &job, int64_t first, int64_t last) {
  const int64_t count = job.width * job.channels;
  for (int64_t y = first; y < last; ++y) {
    const uint8_t *const from = job.source + y * job.source_row;
    auto *const to = reinterpret_cast<T *>(job.result + y * job.result_row);
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>((from[i] >= job.zero_point_row[i] ? 2 : 0) - kOffset);
  }
}

void quantize(const QuantizeJob &job, int64_t first, int64_t last) {
  constexpr int64_t kRun = 256;  // pixels on the stack
  const float qmax = static_cast<float>(job.qmax);
  for (int64_t y = first; y < last; ++y)
    for (int64_t c = 0; c < job.channels; ++c) {
      const float *const from = job.image + (c * job.height + y) * job.width;
      uint8_t *const to = job.result + y * job.result_row + c;
      const float scale = job.scale[c], zero_point = job.zero_point[c];
      for (int64_t begin = 0; begin < job.width; begin += kRun) {
        const int64_t count = job.width - begin < kRun ? job.width - begin : kRun;
        int32_t run[kRun];
        for (int64_t i = 0; i < count; ++i) {
          float q = from[begin + i] / scale + zero_point;
          q = q > 0 ? q : 0;  // NaN becomes 0
          q = q < qmax ? q : qmax;
          run[i] = static_cast<int32_t>(std::nearbyint(q));
        }
        if (job.channels == 1)  // adjacent bytes: vectors
          for (int64_t i = 0; i < count; ++i) to[begin + i] = static_cast<uint8_t>(run[i]);
        else
          for (int64_t i = 0; i < count; ++i) to[(begin + i) * job.channels] = static_cast<uint8_t>(run[i]);
      }
    }
}

template <class V>
constexpr AuxiliaryKernels auxiliary() {
  using T = typename V::ConvValue;
  return {copy_conv<V>,
          copy_binary<V>,
          copy_signs<T, V::kConvOffset>,
          copy_signs<uint8_t, 0>,
          sizeof(T),
          V::kConvOffset,
          max_pool,
          channel_sums,
          requantize_values,
          quantize,
          V::lane_order};
}

}  // namespace
}  // namespace torchadder::engine
