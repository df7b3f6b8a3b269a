// What a convolution is, which taps a pixel meets, and what an element adds to a sum.

// Channels and filters are those of a group; strides are in elements.
struct Convolution {
  int images, groups, filters, channels;
  int size_d, size_h, size_w, out_d, out_h, out_w, kernel_d, kernel_h, kernel_w;
  int stride_d, stride_h, stride_w, padding_d, padding_h, padding_w, dilation_d, dilation_h, dilation_w;
};
struct Strides {
  long long n;
  int c, d, h, w;
};

__device__ inline long long offset(const Strides &strides, int n, int c, int d, int h, int w) {
  return n * strides.n + static_cast<long long>(c) * strides.c + static_cast<long long>(d) * strides.d +
         static_cast<long long>(h) * strides.h + static_cast<long long>(w) * strides.w;
}

// The taps of one axis that a pixel meets: tap `tap + i * tap_step` at the place `first + i * step` from its own.
struct Taps {
  int first, step, tap, tap_step, count;
};

// Of an output pixel, whose place is its first input pixel.
__device__ inline Taps taps_of_output(int kernel, int dilation) { return {0, dilation, 0, 1, kernel}; }

// Of the input pixels q * stride + kind, whose place is output pixel q: every period-th tap, or none.
__device__ inline Taps taps_of_input(int kind, int kernel, int stride, int padding, int dilation, int period) {
  for (int tap = 0; tap < kernel && tap < period; ++tap) {
    const int distance = kind + padding - tap * dilation;
    if (distance % stride == 0)
      return {distance / stride, -(period * dilation / stride), tap, period, (kernel - 1 - tap) / period + 1};
  }
  return {0, 0, 0, 0, 0};
}

// The classes of an axis, the input pixels q * stride + kind, in an order in which the first meets the most taps:
// the one that meets tap 0. The longest work is begun first.
__device__ inline int kind_of(int place, int stride, int padding) {
  return stride == 1 ? 0 : (place + stride - padding % stride) % stride;
}

struct Pixel {
  int n, d, h, w;
};

__device__ inline Pixel pixel_of(int index, int depth, int height, int width) {
  const int row = index / width, plane = row / height;
  return {plane / depth, plane % depth, row % height, index % width};
}

struct Distance {  // |x - w|
  using Value = float;
  static constexpr bool NEEDS_OWN = false, SATURATES = false;
  static __device__ float weight(float w) { return w; }
  static __device__ void add(float &sum, float, float x, float w) { sum += fabsf(x - w); }
};
struct Distance4 {  // of four unsigned bytes
  using Value = unsigned;
  static constexpr bool NEEDS_OWN = false, SATURATES = false;
  static __device__ unsigned weight(unsigned w) { return w; }
  static __device__ void add(unsigned &sum, unsigned, unsigned x, unsigned w) { sum = distance4(x, w, sum); }
};
template <class T>
struct DistanceOf {
  using Rule = Distance;
};
template <>
struct DistanceOf<unsigned> {
  using Rule = Distance4;
};
struct HardTanh {  // its own x as 1/2 - x/2, the weight as w/2
  using Value = float;
  static constexpr bool NEEDS_OWN = true, SATURATES = true;
  static __device__ float own(float x) { return 0.5f - 0.5f * x; }
  static __device__ float weight(float w) { return 0.5f * w; }
  static __device__ void add(float &sum, float own, float dy, float w) { sum += __saturatef(own + w) * dy; }
};
struct Sign {  // of w - x; the difference itself where it is 0 or NaN
  using Value = float;
  static constexpr bool NEEDS_OWN = true, SATURATES = false;
  static __device__ float own(float x) { return x; }
  static __device__ float weight(float w) { return w; }
  static __device__ void add(float &sum, float own, float dy, float w) {
    const float difference = w - own;
    sum += difference > 0 ? dy : difference < 0 ? -dy : difference * dy;
  }
};
