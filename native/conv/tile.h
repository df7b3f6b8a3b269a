// The arguments of the kernels. All offsets and strides are in floats, or in words of as many bytes in rounded calls.
//
// A kernel computes a tile of the result: a few pixels by a block of channels. An element is a sum over the floats of
// the source (the input, or dY for a gradient) that lie under the taps of a filter. A run is a part of that sum whose
// floats are adjacent in memory. A lane is an element of a vector, and holds one channel of the block.
#pragma once
#include <cstdint>

namespace torchadder {

constexpr int kMaxPixels = 16;  // of a tile

// `length` adjacent floats of the source, and as many rows of packed weight. In limbs (GradInputLimbs) the source
// has two words for each row, so that reading it doubles offset and length.
struct Run {
  int64_t source;  // from the pixel's base; may be negative
  int64_t weight;  // first row of packed weight
  int64_t length;
};

// The grid of a rounded call (rounded.cpp), whose step is 1 / levels. An input becomes a byte, round(x * levels) +
// zero. A row of weight and a "float" of source are words there: four bytes, or two 16-bit numbers (or limbs:
// functors.h).
struct Grid {
  float levels;
  int zero_point;  // the byte of 0
  int limit;       // of HardTanh, in steps
  float unit;      // the result of one step
  int64_t depth;   // numbers under a tap; the last word may hold fewer
};

// A block of output channels, at most a kernel's lanes, in one class of pixels. Packed weight is [tap][depth][lanes],
// for few_grad_f32 [lanes][tap][depth].
struct Block {
  const float *weight;
  const Run *runs;
  int64_t run_count;
  int64_t rows;             // of packed weight: taps times depth
  const float *weight_sum;  // forward: sum of W over the taps inside the image, by lane
  const float *constant;    // by lane; forward: bias - sum |W| over the taps in the padding; gradient: as in Packing
  int64_t source_channel;   // first source channel of the block's group; depthwise: the block's first channel
  int64_t channel;          // first channel of the block, in the result
  int lanes;                // channels of the block
  const int32_t *index;     // grouped: [depth][lanes of the kernel], source channel of each lane from source_channel on
  int source_lanes;         // grouped: source channels of the block's groups
  const Grid *grid;         // rounded calls
  bool sums_source;         // the last lane has no channel and adds up the source, in place of Tile::source_sum
};

// A tile of pixels, by pixel.
struct Tile {
  const float *const *source;  // the base of its runs
  const float *const *state;   // gradients: its channel 0 in the forward input
  float *const *result;        // its channel 0 in the result
  const float *source_sum;  // the sum over its runs, for kernels that read it; of rounded calls the bits of an int32_t
  int pixels;
};

using TileKernel = void (*)(const Block &, const Tile &);

// Computes source_sum for `count` pixels; runs and source channel are those of the block.
using SourceSums = void (*)(const Block &, const float *const *source, int64_t count, float *sums);

// The weight as an operator reads it: strides from lane to lane, along the depth and from tap to tap.
struct WeightView {
  int64_t lane, depth, tap;
  int64_t taps;
  bool backwards;  // taps in reverse order (input gradient)
  int64_t depth_size;
  int64_t group_lanes = 0, group = 0;  // grouped: lanes of a group, and the stride from group to group
  const Grid *grid = nullptr;          // rounded calls; depth_size counts words
  int64_t rows() const { return taps * depth_size; }
  int64_t lane_offset(int64_t l) const {
    return group_lanes ? l / group_lanes * group + l % group_lanes * lane : l * lane;
  }
  int64_t tap_offset(int64_t t) const { return (backwards ? taps - 1 - t : t) * tap; }
};

// Returns 0 for a finite sum, else the infinity or NaN that it is.
inline float unless_finite(float sum) { return sum - sum == 0.0f ? 0.0f : sum; }

// The packed weight of a block.
struct Packing {
  const float *origin;  // of the block's first lane in the weight
  int lanes;
  float *weight;                 // [taps][depth][lanes of the kernel], 0 in a lane without a channel
  float *tap_sum, *tap_abs_sum;  // [taps][lanes of the kernel]: sums of W and |W| over the depth, or both null
  float *constant;               // [lanes of the kernel]: unless_finite of the sum of a lane's weights
};

// The smallest and the largest of `count` floats and 0; both are NaN if one is NaN or infinite.
struct Range {
  float low, high;
};
using RangeKernel = Range (*)(const float *, int64_t count);

// Rounds pixels to bytes of the grid, or to 16-bit numbers of x * levels. A pixel takes `words` words of the result; 0
// follows its `grid.depth` channels. In limbs (GradInputLimbs) four channels take two words.
using Rounder = void (*)(const float *from, int64_t pixels, const Grid &grid, int64_t words, float *to);

using Packer = void (*)(const WeightView &, const Packing &, int lanes_of_kernel);

// to[column][row] = from[row][column] for columns [first, last) of a matrix.
using Transposer = void (*)(const float *from, float *to, int64_t rows, int64_t columns, int64_t first, int64_t last);

// The sign gradient of the weight: rows of packed weight, over all pixels of some images.
struct SignGradient {
  const float *x;                        // the padded input, at the first image
  const float *dy;                       // at the first image and the block's first channel
  const int64_t *offsets;                // [rows], from the pixel's base in x
  const float *weight;                   // packed [row][lanes]
  float *result;                         // [row][lanes], overwritten
  int64_t images, size[3];               // of dy
  int64_t x_image, x_axis[3], dy_pixel;  // strides, floats; dy is dense
  int rows, lanes;
};

using SignGradientKernel = void (*)(const SignGradient &);

}  // namespace torchadder
