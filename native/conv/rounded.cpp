// Rounded calls: forward pass and input gradient in integers, for training.
//
// Inputs and weights are rounded to a grid of `levels` steps a unit, levels = floor(254 / range of the input), so that
// an input is a byte. A weight outside of the bytes is clamped, and its distance to the clamp is added to every
// distance to an input, so that the result does not change. For the input gradient levels = floor(254 / (range + 2)):
// HardTanh's limit, 1, is on the grid, and x - 1 and x + 1 are bytes, too. The gradient of the output is rounded to 16
// bits, or to fewer where a sum could exceed 32 bits. The integer sums are exact.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/error.h"
#include "common/threads.h"
#include "conv/arguments.h"
#include "conv/convolution.h"
#include "torchadder.h"

namespace torchadder {
namespace {

constexpr int kLargestStep = 254;             // so that rounding both ends of a range stays within 255 steps
constexpr float kMostLevels = 16384.0f;       // forward, of a range below 1 / 64
constexpr int64_t kMinRounded = 64 * 1024;    // floats that are worth one more thread
constexpr float kMostGradientLevels = 1e37f;  // gradients below 1e-37 become 0
constexpr int64_t kGradientSteps = 32639;     // 127 * 256 + 127: both bytes of a 16-bit number are signed

int threads_for(int64_t floats, int threads) {
  return static_cast<int>(std::clamp<int64_t>(floats / kMinRounded, 1, std::max(threads, 1)));
}

Range range_of(const float *from, int64_t count, const AuxiliaryKernels &isa, int threads) {
  const int parts = threads_for(count, threads);
  std::vector<Range> ranges(static_cast<std::size_t>(parts));
  parallel(parts, [&](int t, int n) {
    const Share mine = share(count, t, n);
    ranges[static_cast<std::size_t>(t)] = isa.range(from + mine.begin, mine.end - mine.begin);
  });
  Range all = ranges[0];
  for (const Range &range : ranges) {
    if (std::isnan(range.low)) return range;
    all = {std::min(all.low, range.low), std::max(all.high, range.high)};
  }
  const float nan = (all.high - all.low) * 0.0f;  // of a range above the largest float
  return {all.low + nan, all.high + nan};
}

// Returns the grid for inputs of a range; its `unit` is a step. With a room of 2 bytes also hold x - 1 and x + 1, or
// one step to each side where a step is above 1.
Grid grid_of(const Range &range, float room, int64_t depth) {
  const float width = range.high - range.low;
  float levels = static_cast<float>(kLargestStep) / (width + room);
  if (levels >= 1.0f)
    levels = std::min(std::floor(levels), kMostLevels);  // of width 0 infinite
  else
    levels = (static_cast<float>(kLargestStep) - room) / width;
  const int limit = std::max(1, static_cast<int>(levels));
  const int zero_point = static_cast<int>(std::rint(-range.low * levels)) + (room > 0.0f ? limit : 0);
  return {levels, zero_point, limit, 1.0f / levels, depth};
}

float word_of(const void *numbers) {
  float word;
  std::memcpy(&word, numbers, sizeof word);
  return word;
}

// Packs the weight as words of T: put(w, index, lane) returns the number, `index` is that of the tap's sums.
template <class T, class Put>
void pack_words(const WeightView &view, const Packing &to, int lanes, Put &&put) {
  constexpr int kInWord = sizeof(float) / sizeof(T);
  for (int lane = 0; lane < lanes; ++lane) {
    const float *origin = to.origin + view.lane_offset(lane);
    to.constant[lane] = 0.0f;
    for (int64_t tap = 0; tap < view.taps; ++tap) {
      if (to.tap_sum) to.tap_sum[tap * lanes + lane] = to.tap_abs_sum[tap * lanes + lane] = 0.0f;
      for (int64_t k = 0; k < view.depth_size; ++k) {
        T numbers[kInWord] = {};
        for (int i = 0; i < kInWord && lane < to.lanes; ++i)
          if (const int64_t channel = k * kInWord + i; channel < view.grid->depth)
            numbers[i] = put(origin[view.tap_offset(tap) + channel * view.depth], tap * lanes + lane, lane);
        to.weight[(tap * view.depth_size + k) * lanes + lane] = word_of(numbers);
      }
    }
  }
}

// tap_abs_sum holds |w - zero_point|, in steps. Both sums include the distances to the clamp.
void pack_bytes(const WeightView &view, const Packing &to, int lanes) {
  const Grid &grid = *view.grid;
  pack_words<uint8_t>(view, to, lanes, [&](float w, int64_t tap, int) {
    const float step = std::rint(w * grid.levels) + static_cast<float>(grid.zero_point);
    const float byte = step > 0.0f ? std::min(step, 255.0f) : 0.0f;  // of NaN 0
    const float cut = std::fabs(step - byte);
    to.tap_sum[tap] += byte - cut;
    to.tap_abs_sum[tap] += std::fabs(byte - static_cast<float>(grid.zero_point)) + cut;
    return static_cast<uint8_t>(byte);
  });
}

// Bytes hold all that matters of a weight: beyond them HardTanh is at its limit for every input.
template <class T>
void pack_gradient(const WeightView &view, const Packing &to, int lanes) {
  const Grid &grid = *view.grid;
  pack_words<T>(view, to, lanes, [&](float w, int64_t, int lane) {
    if (std::isnan(w)) to.constant[lane] = w;
    const float step = std::rint(w * grid.levels) + static_cast<float>(grid.zero_point);
    return static_cast<T>(step > 0.0f ? std::min(step, 255.0f) : 0.0f);
  });
}

// Rounds pixels into the thread's scratch.
const float *rounded(const float *from, int64_t count, const Grid &grid, int64_t words, Rounder round, int threads) {
  float *to = scratch<Use::rounded>(count * words);
  parallel(threads_for(count * grid.depth, threads), [&](int t, int n) {
    const Share mine = share(count, t, n);
    round(from + mine.begin * grid.depth, mine.end - mine.begin, grid, words, to + mine.begin * words);
  });
  return to;
}

// Makes the call of an operator on a shape whose summed channels are counted in words.
Convolution call(Op op, const torchadder_convolution &of_words, Direction direction, const WeightView &view,
                 Packer packer, const float *weight, int64_t lanes) {
  Convolution c{op, of_words.images, pixel_plan(of_words, direction), view, {}};
  c.packer = packer;
  c.blocks =
      cut(op, 1, lanes, view.depth_size, false, [&](int64_t, int64_t lane) { return weight + lane * view.lane; });
  return c;
}

void forward(const torchadder_convolution &s, const float *x, const float *weight, const float *bias, float *y,
             bool recenter, int threads) {
  const AuxiliaryKernels &isa = auxiliary_kernels(selected_isa());
  const int64_t in = pixels(s.size_in), out = pixels(s.size_out), words = (s.c_in + 3) / 4;
  const Range range = range_of(x, s.images * in * s.c_in, isa, threads);
  if (std::isnan(range.low)) {
    std::fill(y, y + s.images * out * s.c_out, range.low);
    return;
  }
  const Grid grid = grid_of(range, 0.0f, s.c_in);
  const WeightStrides w = weight_strides(s);
  torchadder_convolution of_words = s;
  of_words.c_in = words;
  Convolution c = call(Op::forward_u8, of_words, Direction::forward,
                       {w.out, w.in, w.tap, w.taps, false, words, 0, 0, &grid}, pack_bytes, weight, s.c_out);
  x = channels_last<Use::source>(s, x, s.c_in, in);
  c.source = rounded(x, s.images * in, grid, words, isa.round_to_bytes, threads);
  c.result = result_memory(s, y, s.c_out, out);
  c.source_layout = Layout::dense(s.size_in, words);
  c.result_layout = Layout::dense(s.size_out, s.c_out);
  std::vector<float> steps;  // of the bias
  for (int64_t o = 0; bias && o < s.c_out; ++o) steps.push_back(bias[o] * grid.levels);
  c.bias = bias ? steps.data() : nullptr;
  c.recenter = recenter;
  run(c, threads);
  store(s, c.result, y, s.c_out, out);
}

// The gradient's levels: of 16 bits, or so few that no sum of clamped products exceeds 32 bits. On the way to it,
// before x is subtracted, the sum may wrap.
Grid gradient_grid(const torchadder_convolution &s, float largest, const Grid &grid, int64_t taps) {
  const int64_t terms = s.c_out * taps * grid.limit;
  const int64_t steps = std::clamp<int64_t>(std::numeric_limits<int32_t>::max() / terms, 1, kGradientSteps);
  const float levels = largest > 0.0f ? std::min(static_cast<float>(steps) / largest, kMostGradientLevels) : 1.0f;
  return {levels, 0, 0, 0.0f, s.c_out};
}

void grad_input(const torchadder_convolution &s, const float *dy, const float *x, const float *weight, float *dx,
                int threads) {
  const AuxiliaryKernels &isa = auxiliary_kernels(isa_for(Op::grad_input_i16, s.c_in));
  const int64_t in = pixels(s.size_in), out = pixels(s.size_out);
  const int64_t words = isa.has_limbs ? (s.c_out + 3) / 4 : (s.c_out + 1) / 2;  // of weight
  const int64_t dy_words = isa.has_limbs ? 2 * words : words;
  const Range range = range_of(x, s.images * in * s.c_in, isa, threads);
  const Range gradients = range_of(dy, s.images * out * s.c_out, isa, threads);
  if (const float nan = range.low + gradients.low; std::isnan(nan)) {
    std::fill(dx, dx + s.images * in * s.c_in, nan);
    return;
  }
  const WeightStrides w = weight_strides(s);
  Grid grid = grid_of(range, 2.0f, s.c_out);
  const Grid of_dy = gradient_grid(s, std::max(gradients.high, -gradients.low), grid, w.taps);
  grid.unit = std::min(grid.unit, 1.0f) / of_dy.levels;
  torchadder_convolution of_words = s;
  of_words.c_out = words;
  Convolution c =
      call(Op::grad_input_i16, of_words, Direction::gradient, {w.in, w.out, w.tap, w.taps, true, words, 0, 0, &grid},
           isa.has_limbs ? pack_gradient<uint8_t> : pack_gradient<int16_t>, weight, s.c_in);
  dy = channels_last<Use::source>(s, dy, s.c_out, out);
  c.source = rounded(dy, s.images * out, of_dy, dy_words, isa.round_gradient, threads);
  c.state = channels_last<Use::state>(s, x, s.c_in, in);
  c.result = result_memory(s, dx, s.c_in, in);
  c.source_layout = Layout::dense(s.size_out, dy_words);
  c.result_layout = Layout::dense(s.size_in, s.c_in);
  run(c, threads);
  store(s, c.result, dx, s.c_in, in);
}

}  // namespace
}  // namespace torchadder

using namespace torchadder;

extern "C" {

int torchadder_forward_u8(const torchadder_convolution *shape, const float *x, const float *weight, const float *bias,
                          float *y, int recenter, int threads) {
  if (shape->groups != 1) return fail("forward_u8 needs groups=1");
  return guarded(*shape, [&] { forward(*shape, x, weight, bias, y, recenter != 0, threads); });
}

int torchadder_grad_input_i16(const torchadder_convolution *shape, const float *dy, const float *x, const float *weight,
                              float *dx, int threads) {
  if (shape->groups != 1) return fail("grad_input_i16 needs groups=1");
  return guarded(*shape, [&] { grad_input(*shape, dy, x, weight, dx, threads); });
}

}  // extern "C"
