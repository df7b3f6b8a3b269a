// The driver: one convolution-like sum over all pixels, classes, blocks of channels and threads.
#pragma once
#include <vector>

#include "blocks.h"
#include "geometry.h"

namespace torchadder {

struct Convolution {
  Op op;
  int64_t images;
  const float *source;  // what is summed over: the input, or the gradient of the output
  const float *state;   // gradients: the input, at the result's pixels; else null
  float *result;
  int64_t source_image, result_image;  // strides, floats
  int64_t source_row, source_pixel, result_row, result_pixel;
  std::vector<AxisClass> rows, columns;
  WeightView view;
  std::vector<ChannelBlock> blocks;
  const float *bias;  // forward: by channel, or null
  bool recenter;
};

void run(Convolution &convolution, int threads);

}  // namespace torchadder
