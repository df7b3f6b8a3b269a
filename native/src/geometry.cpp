#include "geometry.h"

#include <cstddef>

namespace torchadder {
namespace {

void add_position(std::vector<AxisClass> &classes, std::vector<AxisTap> &&taps, int64_t result, int64_t source) {
  for (AxisClass &known : classes) {
    bool same = known.taps.size() == taps.size();
    for (std::size_t t = 0; same && t < taps.size(); ++t)
      same = known.taps[t].rank == taps[t].rank && known.taps[t].offset == taps[t].offset;
    if (same) {
      known.result.push_back(result);
      known.source.push_back(source);
      return;
    }
  }
  classes.push_back({{result}, {source}, std::move(taps)});
}

}  // namespace

std::vector<AxisClass> forward_axis(int64_t source_size, int64_t result_size, int64_t kernel, int64_t stride,
                                    int64_t padding, int64_t dilation) {
  std::vector<AxisClass> classes;
  for (int64_t i = 0; i < result_size; ++i) {
    std::vector<AxisTap> taps;
    for (int64_t a = 0; a < kernel; ++a) {
      const int64_t offset = a * dilation - padding;
      const int64_t position = i * stride + offset;
      if (position >= 0 && position < source_size) taps.push_back({a, offset});
    }
    add_position(classes, std::move(taps), i, i * stride);
  }
  return classes;
}

std::vector<AxisClass> gradient_axis(int64_t source_size, int64_t result_size, int64_t kernel, int64_t stride,
                                     int64_t padding, int64_t dilation) {
  std::vector<AxisClass> classes;
  for (int64_t i = 0; i < result_size; ++i) {
    std::vector<AxisTap> taps;
    const int64_t base = i / stride;
    for (int64_t a = kernel - 1; a >= 0; --a) {
      const int64_t scaled = i + padding - a * dilation;
      if (scaled >= 0 && scaled % stride == 0 && scaled / stride < source_size)
        taps.push_back({kernel - 1 - a, scaled / stride - base});
    }
    add_position(classes, std::move(taps), i, base);
  }
  return classes;
}

std::vector<PixelClass> pixel_classes(const std::vector<AxisClass> &rows, const std::vector<AxisClass> &columns,
                                      int64_t kernel_w, const SourceLayout &source) {
  std::vector<PixelClass> classes;
  for (const AxisClass &row : rows)
    for (const AxisClass &column : columns) {
      PixelClass c{&row, &column, {}, 0};
      for (const AxisTap &a : row.taps)
        for (const AxisTap &b : column.taps) {
          const Run next{a.offset * source.row + b.offset * source.pixel, (a.rank * kernel_w + b.rank) * source.depth,
                         source.depth};
          Run *last = c.runs.empty() ? nullptr : &c.runs.back();
          if (last && last->source + last->length == next.source && last->weight + last->length == next.weight)
            last->length += next.length;
          else
            c.runs.push_back(next);
          c.steps += next.length;
        }
      classes.push_back(std::move(c));
    }
  return classes;
}

}  // namespace torchadder
