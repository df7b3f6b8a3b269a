// The source pixels that each result pixel reads, as exact lists of filter taps: kernels need no padding and no bounds
// checks.
//
// Along each axis, result positions that read the same taps at the same offsets form a class. A class of planes, one of
// rows and one of columns give a class of pixels. A kernel sees base pointers and runs only: no padding, stride or
// dilation.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "conv/tile.h"
#include "torchadder.h"

namespace torchadder {

struct AxisTap {
  int64_t rank;    // in packed order, in which the source offsets ascend
  int64_t offset;  // from the position's source base
};

struct AxisClass {
  std::vector<int64_t> result, source;  // positions in the result and their bases in the source
  std::vector<AxisTap> taps;
};

// Forward: result position i of the output reads position i * stride - padding + tap * dilation of the input.
// Input gradient: result position i of the input reads position (i + padding - tap * dilation) / stride of the output,
// if that is an integer; its taps are packed backwards.
enum class Direction { forward, gradient };

// A class of pixels. Taps that are adjacent in the source and in the packed weight are joined into one run.
struct PixelClass {
  const AxisClass *axes[3];  // depth, height, width
  std::vector<Run> runs;
  int64_t steps;             // total length of the runs
  std::vector<char> inside;  // by tap in packed order: whether it lies in the image, not in the padding
  int64_t size(int axis) const { return static_cast<int64_t>(axes[axis]->result.size()); }
  int64_t pixels() const { return size(0) * size(1) * size(2); }
};

struct PixelPlan {
  std::vector<AxisClass> axes[3];
  std::vector<PixelClass> classes;
};

// Returns the plan of a shape. It is made once and kept, and does not depend on the number of images.
std::shared_ptr<const PixelPlan> pixel_plan(const torchadder_convolution &shape, Direction direction);

}  // namespace torchadder
