// The driver: one convolution-like sum over all pixels, classes, blocks of channels and threads.
#pragma once
#include <vector>

#include "blocks.h"
#include "geometry.h"

namespace torchadder {

// Images in memory, channels last; strides in floats.
struct Layout {
  int64_t image, row, pixel;
  static Layout dense(int64_t height, int64_t width, int64_t channels) {
    return {height * width * channels, width * channels, channels};
  }
};

struct Convolution {
  Op op;
  int64_t images;
  std::shared_ptr<const PixelPlan> plan;
  WeightView view;
  std::vector<ChannelBlock> blocks;
  const float *source = nullptr;  // what is summed over: the input, or the gradient of the output
  const float *state = nullptr;   // gradients: the input, which lies as the result does
  float *result = nullptr;
  Layout source_layout{}, result_layout{};
  const float *bias = nullptr;  // forward, by channel, or null
  bool recenter = false;
};

void run(Convolution &convolution, int threads);

}  // namespace torchadder
