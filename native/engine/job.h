// The arguments of the engine's kernels: one step for a part of one image, with all addresses computed.
// All strides and row lengths are in bytes unless a field says otherwise. A pixel's channels are adjacent bytes.
#pragma once
#include <cstdint>

namespace torchadder::engine {

constexpr int kBlock = 8;       // output channels that are adjacent in packed weight
constexpr int kStep = 8;        // bytes of a patch that one step of a kernel reads, with as many weights a channel
constexpr int kWindow = 4;      // pixels of a pooling window, 2 x 2, that a layer with pooling computes together
constexpr int64_t kSlack = 64;  // bytes after every buffer that a kernel may read but does not use

// A layer. Packed weight is [block][kernel row][step][kBlock channels][kStep bytes]. A row of a patch is `steps` times
// kStep adjacent bytes of the source; `tail_mask` selects those of its last step that belong to it. A row is a row of
// the kernel or, of grouped and dilated layers, one tap of it. Groups are run one after the other.
//
// A pooling layer is a layer and the max pooling of 2 x 2 after it: "output pixel" is then a pixel of the pooled
// output.
//
// A depthwise layer has a row for each tap, no steps, and as weight int32 numbers [row][blocks * kBlock].
struct LayerJob {
  // The source, and a patch of it: kernel rows x steps.
  const uint8_t *source;             // the patch of output pixel (0, 0)
  int64_t source_row, source_pixel;  // from a patch to that of the output pixel below, beside
  const int64_t *row_offset;         // [rows]: of the rows of a patch
  int64_t window[kWindow];           // pooling layers: from a window's first patch to each of its patches
  int rows, steps;                   // of a patch
  uint64_t tail_mask;                // all ones if a row of a patch is whole steps

  const uint8_t *weight;
  int64_t block_bytes;  // from a block of packed weight to the next

  // The output. Either quantized values (result is set) or logits (logits is set).
  int64_t width;  // of a row, pixels
  int channels;
  uint8_t *result;
  int64_t result_row, result_pixel;
  float *logits;  // [channels], of a single output pixel

  // Requantization, each [blocks * kBlock]: see program.h. factor and shortcut are null without a shortcut.
  const int32_t *multiplier, *offset, *shift, *factor;
  int qmax, pre_shift;
  const uint8_t *shortcut;
  int64_t shortcut_row, shortcut_pixel;

  // Logits, each [channels].
  const float *scale, *bias;

  // Adder and conv layers: the sum of each filter's weights, [blocks * kBlock].
  const int32_t *weight_sum;

  // Conv layers: accumulator = sum + source_offset * weight_sum.
  int source_offset;

  // Binary layers: accumulator = base - 2 * differing bits. base is [class][blocks * kBlock]; the class of pixel (y,
  // x), row_class[y] + column_class[x], tells which taps lie in the padding.
  const int32_t *base;
  const int32_t *row_class, *column_class;
  int64_t base_class;  // numbers from a class to the next
};

// Pixels [first, last) of the output, counted row by row, and blocks [first_block, last_block) of its channels.
struct Part {
  int64_t first, last;
  int first_block, last_block;
};
using LayerKernel = void (*)(const LayerJob &, const Part &);

// The kernels of a layer, and of one with pooling; that one may be missing.
struct LayerKernels {
  LayerKernel layer, pooling;
};

// Pooling: rows [first, last) of the output, or channels [first, last) of the source.
struct PoolJob {
  const uint8_t *source;
  int64_t source_row;
  int64_t height, width;                     // of the source, or of a window of it, pixels
  int64_t channels;                          // of the source, and bytes of a pixel
  int64_t kernel[2], stride[2], padding[2];  // maximum only, rows and columns, pixels; the padding before the first one
  uint8_t *result;                           // maximum only
  int64_t result_row, result_width;          // bytes, pixels
};
using MaxPool = void (*)(const PoolJob &, int64_t first, int64_t last);
using ChannelSums = void (*)(const PoolJob &, int64_t first, int64_t last, int32_t *sums);  // over all pixels

// The requantization of values by channel, with tables as in LayerJob: rows [first, last) of `width` pixels.
struct ValuesJob {
  const uint8_t *source;
  int64_t source_row, source_pixel;
  int64_t width, channels;
  const int32_t *multiplier, *offset, *shift;
  int qmax, pre_shift;
  uint8_t *result;
  int64_t result_row, result_pixel;
};
using RequantizeValues = void (*)(const ValuesJob &, int64_t first, int64_t last);

// The copy of a value that a conv or binary layer reads: rows [first, last).
struct CopyJob {
  const uint8_t *source;
  int64_t source_row;
  int64_t width, channels;        // of the source, pixels and channels
  const uint8_t *zero_point_row;  // signs: the zero points of a whole row of the source
  uint8_t *result;                // where pixel (0, 0) goes
  int64_t result_row;
};
using CopyKernel = void (*)(const CopyJob &, int64_t first, int64_t last);

// The quantization of a float image, channels first, to channels last: rows [first, last) of
// q = clamp(round(x / scale + zero_point), 0, qmax). NaN becomes 0.
struct QuantizeJob {
  const float *image;  // (C, H, W)
  int64_t height, width, channels;
  const float *scale, *zero_point;  // [channels]
  int qmax;
  uint8_t *result;
  int64_t result_row;
};
using QuantizeKernel = void (*)(const QuantizeJob &, int64_t first, int64_t last);

// The auxiliary kernels of one instruction set: all but those of layers.
struct AuxiliaryKernels {
  CopyKernel copy_conv, copy_binary;
  CopyKernel copy_signs, copy_signs_depthwise;  // 0 or 2, as a conv layer or as a depthwise one reads them
  int conv_bytes;                               // of a number in the copy for a conv layer: 1, or 2 for 16-bit products
  int conv_offset;  // what is subtracted from each of these numbers: 128 where products take signed bytes
  MaxPool max_pool;
  ChannelSums channel_sums;
  RequantizeValues requantize_values;
  QuantizeKernel quantize;
  const int *lane_order;  // [kBlock]: the channel of a block whose weights are at each place of a packed step
};

// Requantizes one accumulator; `addend` is the offset, plus shortcut * factor if there is a shortcut.
inline uint8_t requantize(int32_t accumulator, int pre_shift, int32_t multiplier, int32_t addend, int32_t shift,
                          int qmax) {
  const int32_t q = ((accumulator >> pre_shift) * multiplier + addend) >> shift;
  return static_cast<uint8_t>(q < 0 ? 0 : q > qmax ? qmax : q);
}

}  // namespace torchadder::engine
