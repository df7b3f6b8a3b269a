// Which source pixels a result pixel meets: exact lists of filter taps, no padding and no bounds check inside.
//
// Along each axis result positions with the same taps at the same distances form a class; a class of pixels is a
// class of rows times a class of columns. Padding, stride and dilation end here: a kernel sees base pointers and runs.
#pragma once
#include <cstdint>
#include <vector>

#include "tile.h"
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

// Forward: result position i of an output meets source i * stride - padding + tap * dilation of the input.
std::vector<AxisClass> forward_axis(int64_t source_size, int64_t result_size, int64_t kernel, int64_t stride,
                                    int64_t padding, int64_t dilation);

// Input gradient: result position i of the input meets source (i + padding - tap * dilation) / stride of the output,
// where that is a whole number. Its taps are packed backwards.
std::vector<AxisClass> gradient_axis(int64_t source_size, int64_t result_size, int64_t kernel, int64_t stride,
                                     int64_t padding, int64_t dilation);

struct PixelClass {
  const AxisClass *rows, *columns;
  std::vector<Run> runs;  // weight offsets in rows of packed weight: multiply by the block's lanes
  int64_t steps = 0;      // total length of the runs
  int64_t pixels() const { return static_cast<int64_t>(rows->result.size() * columns->result.size()); }
};

struct SourceLayout {
  int64_t depth;       // channels of one group
  int64_t pixel, row;  // strides, floats
};

// All classes, with adjacent taps joined into one run where source and packed weight both continue.
std::vector<PixelClass> pixel_classes(const std::vector<AxisClass> &rows, const std::vector<AxisClass> &columns,
                                      int64_t kernel_w, const SourceLayout &source);

}  // namespace torchadder
