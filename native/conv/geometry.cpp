#include "conv/geometry.h"

#include <cstddef>
#include <cstring>
#include <deque>
#include <mutex>

namespace torchadder {
namespace {

struct Axis {
  int64_t source_size, result_size, kernel, stride, padding, dilation;
};

// Finds the taps of result position i; returns its base in the source.
int64_t taps_at(const Axis &axis, Direction direction, int64_t i, std::vector<AxisTap> &taps) {
  taps.clear();
  if (direction == Direction::forward) {
    for (int64_t a = 0; a < axis.kernel; ++a) {
      const int64_t offset = a * axis.dilation - axis.padding;
      const int64_t position = i * axis.stride + offset;
      if (position >= 0 && position < axis.source_size) taps.push_back({a, offset});
    }
    return i * axis.stride;
  }
  const int64_t base = i / axis.stride;
  for (int64_t a = axis.kernel - 1; a >= 0; --a) {
    const int64_t scaled = i + axis.padding - a * axis.dilation;
    if (scaled >= 0 && scaled % axis.stride == 0 && scaled / axis.stride < axis.source_size)
      taps.push_back({axis.kernel - 1 - a, scaled / axis.stride - base});
  }
  return base;
}

bool same(const std::vector<AxisTap> &a, const std::vector<AxisTap> &b) {
  if (a.size() != b.size()) return false;
  for (std::size_t t = 0; t < a.size(); ++t)
    if (a[t].rank != b[t].rank || a[t].offset != b[t].offset) return false;
  return true;
}

std::vector<AxisClass> axis_classes(const Axis &axis, Direction direction) {
  std::vector<AxisClass> classes;
  std::vector<AxisTap> taps;
  for (int64_t i = 0; i < axis.result_size; ++i) {
    const int64_t base = taps_at(axis, direction, i, taps);
    AxisClass *match = nullptr;
    for (AxisClass &known : classes)
      if (same(known.taps, taps)) match = &known;
    if (!match) {
      classes.push_back({{}, {}, taps});
      match = &classes.back();
    }
    match->result.push_back(i);
    match->source.push_back(base);
  }
  return classes;
}

// `depth`: source channels that a pixel reads; `strides`: of the source, by axis, in floats.
PixelClass pixel_class(const AxisClass &planes, const AxisClass &rows, const AxisClass &columns,
                       const torchadder_convolution &s, int64_t depth, const int64_t (&strides)[3]) {
  const std::size_t taps = static_cast<std::size_t>(s.kernel[0] * s.kernel[1] * s.kernel[2]);
  PixelClass c{{&planes, &rows, &columns}, {}, 0, std::vector<char>(taps, 0)};
  for (const AxisTap &a : planes.taps)
    for (const AxisTap &b : rows.taps)
      for (const AxisTap &d : columns.taps) {
        const int64_t tap = (a.rank * s.kernel[1] + b.rank) * s.kernel[2] + d.rank;
        const Run next{a.offset * strides[0] + b.offset * strides[1] + d.offset * strides[2], tap * depth, depth};
        Run *last = c.runs.empty() ? nullptr : &c.runs.back();
        if (last && last->source + last->length == next.source && last->weight + last->length == next.weight)
          last->length += depth;
        else
          c.runs.push_back(next);
        c.steps += depth;
        c.inside[static_cast<std::size_t>(tap)] = 1;
      }
  return c;
}

std::shared_ptr<const PixelPlan> make_plan(const torchadder_convolution &s, Direction direction) {
  const bool forward = direction == Direction::forward;
  const int64_t channels = forward ? s.c_in : s.c_out;
  const int64_t (&source)[3] = forward ? s.size_in : s.size_out, (&result)[3] = forward ? s.size_out : s.size_in;
  auto plan = std::make_shared<PixelPlan>();
  for (int a = 0; a < 3; ++a)
    plan->axes[a] =
        axis_classes({source[a], result[a], s.kernel[a], s.stride[a], s.padding[a], s.dilation[a]}, direction);
  const int64_t strides[3] = {source[1] * source[2] * channels, source[2] * channels, channels};
  for (const AxisClass &planes : plan->axes[0])
    for (const AxisClass &rows : plan->axes[1])
      for (const AxisClass &columns : plan->axes[2])
        plan->classes.push_back(pixel_class(planes, rows, columns, s, channels / s.groups, strides));
  return plan;
}

constexpr std::size_t kPlansKept = 256;  // more than a large network has shapes, forward and backward

struct KeptPlan {
  torchadder_convolution shape;
  Direction direction;
  std::shared_ptr<const PixelPlan> plan;
};

}  // namespace

std::shared_ptr<const PixelPlan> pixel_plan(const torchadder_convolution &shape, Direction direction) {
  static std::mutex mutex;
  // The most recently made first. They are never destroyed: a thread may still compute while the process ends.
  static std::deque<KeptPlan> &kept = *new std::deque<KeptPlan>;
  torchadder_convolution key = shape;
  key.images = key.weight_channels_last = key.images_channels_first = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const KeptPlan &known : kept)
    if (known.direction == direction && !std::memcmp(&known.shape, &key, sizeof key)) return known.plan;
  kept.push_front({key, direction, make_plan(key, direction)});
  if (kept.size() > kPlansKept) kept.pop_back();
  return kept.front().plan;
}

}  // namespace torchadder
