// An integer program as its file describes it, with every number checked.
// torchadder/quant/steps.py says what a program computes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchadder::engine {

// The operators of a program; the first three are layers, with kernels of their own.
enum class Op { adder, conv, binary, max_pool, average_pool, table, concat };

// The kernels of layers. A grouped or dilated binary layer runs on that of conv, with signs as its values. A depthwise
// one has as many groups as channels, of the input and of the output.
enum class Work { adder, conv, binary, adder_depthwise, conv_depthwise };
constexpr int kWorks = 5;

struct Shape {
  int64_t channels, height, width;
  int64_t size() const { return channels * height * width; }
};

// The epilogue that makes an 8-bit output of an accumulator. By output channel:
//   q = clamp(((accumulator >> pre_shift) * multiplier + offset [+ shortcut * factor]) >> shift, 0, qmax)
struct Requantization {
  std::vector<int32_t> multiplier, offset, shift;
  std::vector<int32_t> factor;  // empty without a shortcut
  int qmax = 255, pre_shift = 0;
};

// The epilogue of the last layer. By class: logit = accumulator * scale + bias.
struct Logits {
  std::vector<float> scale, bias;
};

// One step. Values are numbered: value 0 is the input of the program, value i + 1 the output of step i.
struct Step {
  Op op;
  int source, shortcut;     // values; shortcut is -1 if there is none
  std::vector<int> others;  // concat: the values after the first
  Shape from, to;           // of the source and of the output
  int64_t kernel[2], stride[2];
  int64_t padding[4];           // top, left, bottom, right
  int64_t dilation[2], groups;  // layers
  const uint8_t *weight;        // layers: (C_out, C_in / groups, kh, kw), in Program::unpacked or in the file's bytes
  std::vector<uint8_t> zero_point;  // layers: by input channel
  int64_t mean_unit;                // average_pool: an accumulator is a mean times this, which all counts divide
  Requantization requantization;    // all but max_pool, table and the last layer
  Logits logits;                    // the last layer
  std::vector<uint8_t> table;       // table: 256 values, for all channels or for each
  bool is_layer() const { return op == Op::adder || op == Op::conv || op == Op::binary; }
  bool pads() const { return padding[0] || padding[1] || padding[2] || padding[3]; }
  bool is_depthwise() const { return groups > 1 && groups == from.channels && groups == to.channels; }
  bool takes_signs() const { return op == Op::binary && (groups > 1 || dilation[0] > 1 || dilation[1] > 1); }
  Work work() const {
    if (is_depthwise()) return op == Op::adder ? Work::adder_depthwise : Work::conv_depthwise;
    return takes_signs() ? Work::conv : static_cast<Work>(op);
  }
  // Returns the pixels of the source, [first, last), that are in window `at` of an axis of a pooling.
  std::pair<int64_t, int64_t> window(int axis, int64_t at) const {
    const int64_t first = at * stride[axis] - padding[axis], size = axis ? from.width : from.height;
    return {std::max<int64_t>(first, 0), std::min(first + kernel[axis], size)};
  }
  // Returns whether the layer reads the values themselves, with a halo around them, and no copy.
  bool reads_source() const { return op == Op::adder || (op == Op::conv && is_depthwise()); }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t window(int axis) const { return dilation[axis] * (kernel[axis] - 1) + 1; }
};

// Images are quantized by channel: q = clamp(round(x / scale + zero_point), 0, qmax).
struct Program {
  Shape shape;  // of an image
  std::vector<float> scale, zero_point;
  int qmax;
  std::vector<Step> steps;
  std::vector<std::vector<uint8_t>> unpacked;  // the weights of layers that have two in a byte of the file
  std::map<std::string, std::string> notes;    // what the file keeps beside the program, numbers as text

  // Reads a .tadder file from memory; weights of a byte stay in it. Throws FileError, which names step and value.
  static Program read(std::string_view bytes);
};

}  // namespace torchadder::engine
