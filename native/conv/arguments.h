// The arguments of the C interface: a shape and its checks, and images in the order of the kernels.
#pragma once
#include <cstdint>
#include <exception>

#include "common/error.h"
#include "common/isa.h"
#include "common/threads.h"
#include "conv/convolution.h"
#include "torchadder.h"

namespace torchadder {

// Returns the error in a shape, or null.
const char *shape_error(const torchadder_convolution &);

struct WeightStrides {
  int64_t taps;  // number of taps
  int64_t out, in, tap;
};

WeightStrides weight_strides(const torchadder_convolution &);

inline int64_t pixels(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

// Calls body() for a shape without errors. Returns 0, or -1 with an error.
template <class Body>
int guarded(const torchadder_convolution &s, Body &&body) {
  if (const char *reason = shape_error(s)) return fail("%s", reason);
  if (!is_selected()) return -1;
  const Call call;
  try {
    body();
  } catch (const std::exception &error) {
    return fail("%s", error.what());
  }
  return 0;
}

// Transposes each image, a matrix of rows by columns: channels first to last, or back.
void transpose(const float *from, float *to, int64_t images, int64_t rows, int64_t columns, int threads);

// Returns the images channels last: channels-first ones as a copy in the thread's scratch.
template <Use use>
const float *channels_last(const torchadder_convolution &s, const float *images, int64_t channels, int64_t count) {
  if (!s.images_channels_first) return images;
  float *to = scratch<use>(s.images * channels * count);
  transpose(images, to, s.images, channels, count, 1);
  return to;
}

// Returns the memory that a result is computed in, before store() transposes it if that is needed.
inline float *result_memory(const torchadder_convolution &s, float *result, int64_t channels, int64_t count) {
  return s.images_channels_first ? scratch<Use::result>(s.images * channels * count) : result;
}

inline void store(const torchadder_convolution &s, const float *from, float *result, int64_t channels, int64_t count) {
  if (s.images_channels_first) transpose(from, result, s.images, count, channels, 1);
}

}  // namespace torchadder
