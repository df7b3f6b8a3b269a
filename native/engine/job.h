// What an engine kernel sees: one step for some pixels of one image, all addresses worked out.
#pragma once
#include <cstdint>

namespace torchadder::engine {

constexpr int kBlock = 8;       // output channels that lie side by side in packed weight
constexpr int kStep = 8;        // bytes of each that meet 8 bytes of the source at a time
constexpr int64_t kSlack = 64;  // bytes behind every buffer that a kernel may read, never use

// A layer. Packed weight is [block][kernel row][step][kBlock channels][kStep bytes]; a kernel row of the source is
// `steps` times 8 consecutive bytes, of the last of which only those in `tail` count.
struct LayerJob {
  const uint8_t *source;             // the patch of output pixel (0, 0)
  int64_t source_row, source_pixel;  // bytes to the patch of the pixel below, beside
  int64_t kernel_row;                // bytes from a row of a patch to the next
  int rows, steps;                   // of a patch
  uint64_t tail;                     // all ones where a row is whole steps
  const uint8_t *weight;
  int64_t block_bytes;
  int64_t width;                                        // output pixels of a row
  int channels;                                         // of the output
  const int32_t *multiplier, *offset, *shift, *factor;  // by channel, whole blocks; factor may be null
  int highest, pre;
  const int32_t *weight_sum;  // adder: sum of each filter's codes
  const float *gain, *bias;   // instead: logits
  float *logits;
  const int32_t *base;                      // binary: what 2 * popcount is taken from, [class][channel]
  const int32_t *row_class, *column_class;  // binary: class = row_class[y] + column_class[x]
  int64_t base_class;                       // numbers from a class to the next
  uint8_t *result;
  int64_t result_row, result_pixel;
  const uint8_t *shortcut;
  int64_t shortcut_row, shortcut_pixel;
};

// Pixels [first, last) of the output, counted row by row, and blocks [first_block, last_block) of its channels.
struct Part {
  int64_t first, last;
  int first_block, last_block;
};
using LayerKernel = void (*)(const LayerJob &, const Part &);

// Rows [first, last) of a pooled value.
struct PoolJob {
  const uint8_t *source;
  int64_t source_row;
  int64_t height, width;  // of the source
  int64_t channels, kernel, stride, padding;
  uint8_t *result;
  int64_t result_row, result_width;
};
using PoolKernel = void (*)(const PoolJob &, int64_t first, int64_t last);

// Channels [first, last): sums over all positions of the source.
using ChannelSums = void (*)(const PoolJob &, int64_t first, int64_t last, int32_t *sums);

// Rows [first, last) of a copy of a value, as a conv or binary layer wants it.
struct CopyJob {
  const uint8_t *source;
  int64_t source_row, width, channels;
  const uint8_t *zero;  // binary: by channel, again and again for a whole row
  uint8_t *result;      // the pixel of the copy that pixel (0, 0) becomes
  int64_t result_row;
};
using CopyKernel = void (*)(const CopyJob &, int64_t first, int64_t last);

// Float images to codes: channel by channel round(x / scale + zero), clamped; channels last.
struct CodeJob {
  const float *images;  // (C, H, W)
  int64_t height, width, channels;
  const float *scale, *zero;
  int highest;
  uint8_t *result;
  int64_t result_row;
};
using CodeKernel = void (*)(const CodeJob &, int64_t first, int64_t last);

// Everything but layers, of one instruction set.
struct Moves {
  CopyKernel copy_binary, copy_conv;  // the latter into bytes, or into 16-bit numbers where conv_bytes is 2
  int conv_bytes;
  PoolKernel max_pool;
  ChannelSums channel_sums;
  CodeKernel codes;
};

// The kernels of one instruction set.
struct Kernels {
  const char *name;
  LayerKernel adder, conv, binary;
  const char *adder_name, *conv_name, *binary_name;
  Moves moves;
  const int *lane_order;  // [kBlock]: the channel of a block whose bytes lie at each place of packed weight
};

constexpr int kInOrder[kBlock] = {0, 1, 2, 3, 4, 5, 6, 7};

// The requantisation of one number: torchadder/quant/program.py.
inline uint8_t requantised(int32_t sum, int pre, int32_t multiplier, int32_t addend, int32_t shift, int highest) {
  const int32_t code = ((sum >> pre) * multiplier + addend) >> shift;
  return static_cast<uint8_t>(code < 0 ? 0 : code > highest ? highest : code);
}

}  // namespace torchadder::engine
