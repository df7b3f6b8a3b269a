// An integer program as its file describes it, every number checked. What it means: torchadder/quant/program.py.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace torchadder::engine {

enum class Op { adder, conv, binary, max_pool, average_pool };

struct Shape {
  int64_t channels, height, width;
  int64_t codes() const { return channels * height * width; }
};

// By channel; factor only beside a shortcut. A layer has either this or Logits.
struct Requantisation {
  std::vector<int32_t> multiplier, offset, shift, factor;
  int highest = 255, pre = 0;
};

struct Logits {
  std::vector<float> gain, bias;
};

// Value 0 is the input, value i + 1 what step i makes.
struct Step {
  Op op;
  int source, shortcut;  // values; shortcut -1: none
  Shape from, to;
  int64_t kernel[2], stride[2], padding[2];
  const uint8_t *weight;  // of a layer: (C_out, C_in, kh, kw), in the bytes that the program was read from
  std::vector<uint8_t> zero;
  Requantisation requantisation;
  Logits logits;
  bool is_layer() const { return op == Op::adder || op == Op::conv || op == Op::binary; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
};

struct Program {
  Shape shape;
  std::vector<float> scale, zero;
  int highest;
  std::vector<Step> steps;
  std::map<std::string, std::string> notes;  // what was kept beside it

  // Reads a .tadder file that lies in memory; weights stay there. Throws Unsound.
  static Program read(std::string_view bytes);
};

}  // namespace torchadder::engine
