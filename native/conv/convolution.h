// The driver: one convolution-like sum over all pixels, classes, blocks of channels and threads.
#pragma once
#include <vector>

#include "conv/blocks.h"
#include "conv/geometry.h"

namespace torchadder {

// Images in memory, channels last; strides in floats.
struct Layout {
  int64_t image, plane, row, pixel;
  static Layout dense(const int64_t (&size)[3], int64_t channels) {
    const int64_t row = size[2] * channels, plane = size[1] * row;
    return {size[0] * plane, plane, row, channels};
  }
};

struct Convolution {
  Op op;
  int64_t images;
  std::shared_ptr<const PixelPlan> plan;
  WeightView view;
  std::vector<ChannelBlock> blocks;
  std::vector<int32_t> index{};   // grouped: see Block
  const float *source = nullptr;  // what is summed over: the input, or the gradient of the output
  const float *state = nullptr;   // gradients: the input, which lies as the result does
  float *result = nullptr;
  Layout source_layout{}, result_layout{};
  const float *bias = nullptr;  // forward, by channel, or null
  bool recenter = false;
};

void run(Convolution &convolution, int threads);

}  // namespace torchadder
