#include "conv/timing.h"

#include <algorithm>

#include "common/timing.h"

namespace torchadder {
namespace {

// One tile: its pixels read the same source, so that all data stay in the first cache.
constexpr int64_t kDepth = 256;
constexpr int kLanes = 32, kCalls = 8;

}  // namespace

Sum faster_sum(const Kernel &fma, const Kernel &add) {
  alignas(64) float weight[kDepth * kLanes], source[kDepth], constant[kLanes] = {}, sums[kMaxPixels] = {};
  alignas(64) float results[kMaxPixels][kLanes];
  for (int64_t i = 0; i < kDepth * kLanes; ++i) weight[i] = static_cast<float>(i % 7 - 3);
  for (int64_t i = 0; i < kDepth; ++i) source[i] = static_cast<float>(i % 5 - 2);
  const float *sources[kMaxPixels];
  float *result[kMaxPixels];
  std::fill(sources, sources + kMaxPixels, source);
  for (int p = 0; p < kMaxPixels; ++p) result[p] = results[p];
  const Run run{0, 0, kDepth};
  Block block{};
  block.weight = weight, block.runs = &run, block.run_count = 1;
  block.weight_sum = block.constant = constant, block.lanes = fma.lanes;
  const Tile tile{sources, nullptr, result, sums, fma.pixels};
  const auto runs = [&](TileKernel run) {
    return [&block, &tile, run] {
      for (int call = 0; call < kCalls; ++call) run(block, tile);
    };
  };
  return is_faster(runs(add.run), runs(fma.run)) ? Sum::add : Sum::fma;
}

}  // namespace torchadder
