#include "engine/timing.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace torchadder::engine {
namespace {

// A layer of one row of pixels and one block of channels, so that all data stay in the first cache.
constexpr int kPixels = 40, kRows = 3, kSteps = 6, kPixelBytes = 16, kRepetitions = 25;
constexpr int kRowBytes = kPixels * kPixelBytes + kSteps * kStep;

double seconds(LayerKernel layer, const LayerJob &job) {
  const auto start = std::chrono::steady_clock::now();
  layer(job, {0, kPixels, 0, 1});
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

bool is_faster(LayerKernel first, LayerKernel second) {
  alignas(64) uint8_t source[kRows * kRowBytes + kSlack], weight[kRows * kSteps * kBlock * kStep + kSlack];
  alignas(64) uint8_t result[kPixels * kBlock + kSlack];
  alignas(64) int32_t zeros[kBlock] = {};
  for (std::size_t i = 0; i < sizeof source; ++i) source[i] = static_cast<uint8_t>(i * 37);
  for (std::size_t i = 0; i < sizeof weight; ++i) weight[i] = static_cast<uint8_t>(i * 101);
  LayerJob job{};
  job.source = source, job.source_row = job.kernel_row = kRowBytes, job.source_pixel = kPixelBytes;
  job.rows = kRows, job.steps = kSteps, job.tail_mask = ~uint64_t{0};
  job.weight = weight, job.block_bytes = kRows * kSteps * kBlock * kStep;
  job.width = kPixels, job.channels = kBlock;
  job.result = result, job.result_pixel = kBlock, job.result_row = kPixels * kBlock;
  job.multiplier = job.offset = job.shift = job.weight_sum = zeros, job.qmax = 255;
  double least[2] = {std::numeric_limits<double>::max(), std::numeric_limits<double>::max()};
  for (int i = 0; i < kRepetitions; ++i) {
    least[0] = std::min(least[0], seconds(first, job));
    least[1] = std::min(least[1], seconds(second, job));
  }
  return least[0] < least[1];
}

}  // namespace torchadder::engine
