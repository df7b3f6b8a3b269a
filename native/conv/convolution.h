// The driver of the float kernels: computes an operator over all pixels and blocks of channels, on several threads.
#pragma once
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "conv/dispatch.h"
#include "conv/geometry.h"

namespace torchadder {

// Memory for floats, aligned to a cache line (64 bytes).
struct FreeAligned {
  void operator()(float *p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Floats = std::unique_ptr<float[], FreeAligned>;
inline Floats make_floats(int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count > 0 ? count : 1) * sizeof(float);
  return Floats(static_cast<float *>(::operator new[](bytes, std::align_val_t{64})));
}

// Returns memory of the calling thread for one use. It is kept between calls and grows when needed; the next call for
// the same use returns it again.
enum class Use { packing, source, state, result, rounded };
template <Use>
float *scratch(int64_t count) {
  thread_local Floats memory;
  thread_local int64_t size = 0;
  if (count > size) {
    memory.reset();
    size = 0;
    memory = make_floats(count);
    size = count;
  }
  return memory.get();
}

// The strides, in floats, of images that lie in memory as channels last.
struct Layout {
  int64_t image, plane, row, pixel;
  static Layout dense(const int64_t (&size)[3], int64_t channels) {
    const int64_t row = size[2] * channels, plane = size[1] * row;
    return {size[0] * plane, plane, row, channels};
  }
};

// A block of output channels for one kernel, before it is combined with a class of pixels (tile.h, Block).
struct ChannelBlock {
  const Kernel *kernel;
  int64_t source_channel, channel;  // its first ones
  Packing packing;
  int source_lanes = 0;      // grouped
  bool sums_source = false;  // see Block
};

// A call of an operator: what it computes, how it is cut into blocks, and the memory that it reads and writes.
struct Convolution {
  Op op;
  int64_t images;
  std::shared_ptr<const PixelPlan> plan;
  WeightView view;
  std::vector<ChannelBlock> blocks;
  std::vector<int32_t> index{};   // grouped: see Block
  const float *source = nullptr;  // what is summed over: the input, or the gradient of the output
  const float *state = nullptr;   // gradients: the forward input, in the layout of the result
  float *result = nullptr;
  Layout source_layout{}, result_layout{};
  const float *bias = nullptr;  // forward, by channel, or null
  bool recenter = false;        // forward: adds sum |W| of each filter
  Packer packer = nullptr;      // null: the instruction set's
};

void run(Convolution &convolution, int threads);

// Cuts each group, of `lanes` channels, into blocks; each block has the narrowest kernel that holds it. origin(g, lane)
// is the address of a lane's weight.
template <class Origin>
std::vector<ChannelBlock> cut(Op op, int64_t groups, int64_t lanes, int64_t depth, bool by_channel, Origin origin) {
  std::vector<ChannelBlock> blocks;
  const Isa isa = isa_for(op, lanes);
  // Not where sets could differ: the sum of a lane is not that of SourceSums, bit by bit.
  const bool sums_source = op == Op::forward_f32 && lanes < kFewChannels && auxiliary_kernels(isa).forward_reads_sums;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t lane = 0; lane < lanes;) {
      const Kernel &kernel = kernel_for(op, isa, lanes - lane);
      const int64_t taken = lanes - lane < kernel.lanes ? lanes - lane : kernel.lanes;
      const int64_t channel = g * lanes + lane;
      blocks.push_back({&kernel,
                        by_channel ? channel : g * depth,
                        channel,
                        {origin(g, lane), static_cast<int>(taken), nullptr, nullptr, nullptr, nullptr},
                        0,
                        sums_source});
      lane += taken;
    }
  return blocks;
}

}  // namespace torchadder
