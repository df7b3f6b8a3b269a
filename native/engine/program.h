// An integer program as its file describes it, with every number checked.
// torchadder/quant/program.py says what a program computes.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace torchadder::engine {

// The operators of a program; the first three are layers, with kernels of their own.
enum class Op { adder, conv, binary, max_pool, average_pool };

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
  int source, shortcut;  // values; shortcut is -1 if there is none
  Shape from, to;        // of the source and of the output
  int64_t kernel[2], stride[2], padding[2];
  const uint8_t *weight;            // layers: (C_out, C_in, kh, kw), in the bytes that the program was read from
  std::vector<uint8_t> zero_point;  // layers: by input channel
  Requantization requantization;    // all but max_pool and the last layer
  Logits logits;                    // the last layer
  bool is_layer() const { return op == Op::adder || op == Op::conv || op == Op::binary; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
};

// Images are quantized by channel: q = clamp(round(x / scale + zero_point), 0, qmax).
struct Program {
  Shape shape;  // of an image
  std::vector<float> scale, zero_point;
  int qmax;
  std::vector<Step> steps;
  std::map<std::string, std::string> notes;  // what the file keeps beside the program, numbers as text

  // Reads a .tadder file from memory; the weights stay in it. Throws FileError, which names step and value.
  static Program read(std::string_view bytes);
};

}  // namespace torchadder::engine
