#include "conv/timing.h"

#include <algorithm>

#include "common/timing.h"

namespace torchadder {
namespace {

// One tile: its pixels read the same source, so that all data stay in the first cache.
constexpr int64_t kDepth = 256;
constexpr int kLanes = 32, kNumbers = 1024;  // that a run computes

}  // namespace

bool is_faster(const Kernel &first, const Kernel &second) {
  alignas(64) float weight[kDepth * kLanes], source[kDepth], constant[kLanes] = {}, sums[kMaxPixels] = {};
  alignas(64) float results[kMaxPixels][kLanes];
  for (int64_t i = 0; i < kDepth * kLanes; ++i) weight[i] = static_cast<float>(i % 7 - 3);
  for (int64_t i = 0; i < kDepth; ++i) source[i] = static_cast<float>(i % 5 - 2);
  const float *sources[kMaxPixels];
  float *result[kMaxPixels];
  std::fill(sources, sources + kMaxPixels, source);
  for (int p = 0; p < kMaxPixels; ++p) result[p] = results[p];
  const Run run{0, 0, kDepth};
  const auto runs = [&](const Kernel &kernel) {
    Block block{};
    block.weight = weight, block.runs = &run, block.run_count = 1;
    block.weight_sum = block.constant = constant, block.lanes = kernel.lanes;
    return [block, tile = Tile{sources, nullptr, result, sums, kernel.pixels}, &kernel] {
      for (int numbers = 0; numbers < kNumbers; numbers += kernel.pixels * kernel.lanes) kernel.run(block, tile);
    };
  };
  return is_faster(runs(first), runs(second));
}

}  // namespace torchadder
