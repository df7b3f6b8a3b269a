// The engine on any CPU, one number at a time: what the other instruction sets are measured by.
#include "engine/moves.h"

namespace torchadder::engine {
namespace {

// What the code of a shortcut adds.
int32_t shortcut(const LayerJob &job, int64_t y, int64_t x, int channel) {
  if (!job.shortcut) return 0;
  return job.shortcut[y * job.shortcut_row + x * job.shortcut_pixel + channel] * job.factor[channel];
}

int32_t adder_sum(const uint8_t *x, const uint8_t *w) {
  int32_t sum = 0;
  for (int i = 0; i < kStep; ++i) sum += x[i] < w[i] ? w[i] - x[i] : x[i] - w[i];
  return sum;
}

int32_t conv_sum(const uint8_t *x, const uint8_t *w) {
  int32_t sum = 0;
  for (int i = 0; i < kStep; ++i) sum += x[i] * static_cast<int8_t>(w[i]);
  return sum;
}

int32_t binary_sum(const uint8_t *x, const uint8_t *w) {
  int32_t sum = 0;
  for (int i = 0; i < kStep; ++i) sum += __builtin_popcount(static_cast<unsigned>(x[i] ^ w[i]));
  return sum;
}

template <int32_t (*kSum)(const uint8_t *, const uint8_t *), bool kBinary>
void layer(const LayerJob &job, const Part &part) {
  for (int64_t pixel = part.first; pixel < part.last; ++pixel) {
    const int64_t y = pixel / job.width, x = pixel % job.width;
    const uint8_t *const patch = job.source + y * job.source_row + x * job.source_pixel;
    for (int c = part.first_block * kBlock; c < part.last_block * kBlock && c < job.channels; ++c) {
      const uint8_t *weight = job.weight + c / kBlock * job.block_bytes + c % kBlock * kStep;
      int32_t sum = 0;
      for (int r = 0; r < job.rows; ++r)
        for (int s = 0; s < job.steps; ++s, weight += kBlock * kStep) {
          uint64_t bytes;
          std::memcpy(&bytes, patch + r * job.kernel_row + s * kStep, sizeof bytes);
          if (s + 1 == job.steps) bytes &= job.tail;
          uint8_t some[kStep];
          std::memcpy(some, &bytes, sizeof bytes);
          sum += kSum(some, weight);
        }
      if (kBinary) sum = job.base[(job.row_class[y] + job.column_class[x]) * job.base_class + c] - 2 * sum;
      if (job.logits)
        job.logits[c] = static_cast<float>(sum) * job.gain[c] + job.bias[c];
      else
        job.result[y * job.result_row + x * job.result_pixel + c] = requantised(
            sum, job.pre, job.multiplier[c], job.offset[c] + shortcut(job, y, x, c), job.shift[c], job.highest);
    }
  }
}

}  // namespace

extern const Kernels kernels_reference = {
    "reference",
    layer<adder_sum, false>,
    layer<conv_sum, false>,
    layer<binary_sum, true>,
    "adder_u8_reference",
    "conv_u8_reference",
    "binary_reference",
    moves<Signs8, uint8_t>(),
    kInOrder,
};

}  // namespace torchadder::engine
