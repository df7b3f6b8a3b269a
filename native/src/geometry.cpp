#include "geometry.h"

#include <cstddef>
#include <cstring>
#include <deque>
#include <mutex>

namespace torchadder {
namespace {

struct Axis {
  int64_t source_size, result_size, kernel, stride, padding, dilation;
};

// The taps of result position i, and its source base.
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
    AxisClass *home = nullptr;
    for (AxisClass &known : classes)
      if (same(known.taps, taps)) home = &known;
    if (!home) {
      classes.push_back({{}, {}, taps});
      home = &classes.back();
    }
    home->result.push_back(i);
    home->source.push_back(base);
  }
  return classes;
}

// `depth`: source channels that a pixel meets; `pixel`, `row`: strides of the source in floats.
PixelClass pixel_class(const AxisClass &rows, const AxisClass &columns, const torchadder_conv2d &s, int64_t depth,
                       int64_t pixel, int64_t row) {
  PixelClass c{&rows, &columns, {}, 0, std::vector<char>(static_cast<std::size_t>(s.kernel_h * s.kernel_w), 0)};
  for (const AxisTap &a : rows.taps)
    for (const AxisTap &b : columns.taps) {
      const int64_t tap = a.rank * s.kernel_w + b.rank;
      const Run next{a.offset * row + b.offset * pixel, tap * depth, depth};
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

std::shared_ptr<const PixelPlan> make_plan(const torchadder_conv2d &s, Direction direction) {
  const bool forward = direction == Direction::forward;
  const int64_t channels = forward ? s.c_in : s.c_out, source_w = forward ? s.w_in : s.w_out;
  const auto axis = [&](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    return axis_classes({forward ? in : out, forward ? out : in, kernel, stride, padding, dilation}, direction);
  };
  auto plan = std::make_shared<PixelPlan>();
  plan->rows = axis(s.h_in, s.h_out, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h);
  plan->columns = axis(s.w_in, s.w_out, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w);
  for (const AxisClass &rows : plan->rows)
    for (const AxisClass &columns : plan->columns)
      plan->classes.push_back(pixel_class(rows, columns, s, channels / s.groups, channels, source_w * channels));
  return plan;
}

constexpr std::size_t kPlansKept = 256;

struct KeptPlan {
  torchadder_conv2d shape;
  Direction direction;
  std::shared_ptr<const PixelPlan> plan;
};

}  // namespace

std::shared_ptr<const PixelPlan> pixel_plan(const torchadder_conv2d &shape, Direction direction) {
  static std::mutex mutex;
  static std::deque<KeptPlan> kept;  // the most recently made first
  torchadder_conv2d key = shape;
  key.images = key.weight_channels_last = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const KeptPlan &known : kept)
    if (known.direction == direction && !std::memcmp(&known.shape, &key, sizeof key)) return known.plan;
  kept.push_front({key, direction, make_plan(key, direction)});
  if (kept.size() > kPlansKept) kept.pop_back();
  return kept.front().plan;
}

}  // namespace torchadder
