#include "conv/arguments.h"

#include <algorithm>

namespace torchadder {
namespace {

constexpr int64_t kMinTransposed = 32 * 1024;  // floats that are worth one more thread
constexpr int64_t kColumnsAtOnce = 64;

}  // namespace

const char *shape_error(const torchadder_convolution &s) {
  if (s.images < 0 || s.c_in < 1 || s.c_out < 1) return "negative or empty size";
  for (int a = 0; a < 3; ++a) {
    if (s.size_in[a] < 0 || s.size_out[a] < 0) return "negative or empty size";
    if (s.kernel[a] < 1 || s.stride[a] < 1 || s.dilation[a] < 1)
      return "kernel, stride and dilation must be at least 1";
    if (s.padding[a] < 0) return "negative padding";
    const int64_t room = s.size_in[a] + 2 * s.padding[a] - s.dilation[a] * (s.kernel[a] - 1) - 1;
    if (s.size_out[a] != (room < 0 ? -1 : room / s.stride[a] + 1))
      return "size_out does not follow from the other sizes, or the kernel is larger than the padded input";
  }
  if (s.groups < 1 || s.c_in % s.groups || s.c_out % s.groups) return "groups must divide both channel counts";
  return nullptr;
}

WeightStrides weight_strides(const torchadder_convolution &s) {
  const int64_t depth = s.c_in / s.groups, taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
  if (s.weight_channels_last) return {taps, depth * taps, 1, depth};
  return {taps, depth * taps, taps, 1};
}

void transpose(const float *from, float *to, int64_t images, int64_t rows, int64_t columns, int threads) {
  const Transposer transposer = auxiliary_kernels(selected_isa()).transpose;
  const int64_t blocks = (columns + kColumnsAtOnce - 1) / kColumnsAtOnce, floats = rows * columns;
  const int64_t most = std::max<int64_t>(1, images * floats / kMinTransposed);
  parallel(static_cast<int>(std::clamp<int64_t>(most, 1, std::max(threads, 1))), [&](int t, int count) {
    const Share mine = share(images * blocks, t, count);
    for (int64_t job = mine.begin; job < mine.end; ++job) {
      const int64_t first = job % blocks * kColumnsAtOnce, image = job / blocks * floats;
      transposer(from + image, to + image, rows, columns, first, std::min(first + kColumnsAtOnce, columns));
    }
  });
}

}  // namespace torchadder
