#include "engine/timing.h"

#include "common/timing.h"

namespace torchadder::engine {
namespace {

// A layer of one row of pixels and one block of channels, so that all data stay in the first cache.
constexpr int kPixels = 40, kRows = 3, kSteps = 6, kPixelBytes = 16;
constexpr int kRowBytes = kPixels * kPixelBytes + kSteps * kStep;

}  // namespace

bool is_faster_adder(LayerKernel first, LayerKernel second) {
  alignas(64) uint8_t source[kRows * kRowBytes + kSlack], weight[kRows * kSteps * kBlock * kStep + kSlack];
  alignas(64) uint8_t result[kPixels * kBlock + kSlack];
  alignas(64) int32_t zeros[kBlock] = {};
  for (std::size_t i = 0; i < sizeof source; ++i) source[i] = static_cast<uint8_t>(i * 37);
  for (std::size_t i = 0; i < sizeof weight; ++i) weight[i] = static_cast<uint8_t>(i * 101);
  LayerJob job{};
  constexpr int64_t row_offset[kRows] = {0, kRowBytes, 2 * kRowBytes};
  job.source = source, job.source_row = kRowBytes, job.source_pixel = kPixelBytes, job.row_offset = row_offset;
  job.rows = kRows, job.steps = kSteps, job.tail_mask = ~uint64_t{0};
  job.weight = weight, job.block_bytes = kRows * kSteps * kBlock * kStep;
  job.width = kPixels, job.channels = kBlock;
  job.result = result, job.result_pixel = kBlock, job.result_row = kPixels * kBlock;
  job.multiplier = job.offset = job.shift = job.weight_sum = zeros, job.qmax = 255;
  const auto runs = [&job](LayerKernel layer) { return [&job, layer] { layer(job, {0, kPixels, 0, 1}); }; };
  return is_faster(runs(first), runs(second));
}

}  // namespace torchadder::engine
