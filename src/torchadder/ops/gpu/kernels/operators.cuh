// The operators of an adder convolution for NVIDIA GPUs: implicit, tiled, any strides of memory, nothing unfolded.
//
// Images have three axes (D, H, W); those that a convolution lacks have size 1. A block computes a tile of pixels by
// channels. Stage by stage, 8 elements of K deep, it brings what the tile needs into shared memory, widened to float32,
// while it works on the stage before; a thread holds R pixels by C channels in registers, 4 neighbours at a time, so
// that R / 4 + C / 4 loads of 16 bytes feed R * C elements. Sums run over taps, then channels, always in that order:
// no result depends on the tile. Instructions an element, of the 128 that a multiprocessor issues a clock:
//
//     forward       |x - w|, added up         FADD, FADD with |.| on an operand                          2
//     grad_input    HardTanh(w - x) dY        FADD.SAT, FFMA: HardTanh(z) = 2 sat(z / 2 + 1 / 2) - 1     2
//
// sat clamps to [0, 1] and turns NaN into 0: those of inputs and weights are put back at the end.
//
// Where groups are so narrow that a tile would be mostly empty, a thread computes one element ("narrow").

// Y[o] = bias[o] - sum over c, a, b of |X[c, i*s + a, j*s + b] - W[o, c, a, b]|; K lies densely in the weight.
template <class T, int ROWS, int COLUMNS, int R, int C, bool ROWS4, bool COLUMNS4, bool PIXELS_FIRST, bool STORE4>
__device__ void forward_tile(const T *x, const typename DistanceOf<T>::Rule::Value *weight,
                             const typename DistanceOf<T>::Rule::Value *bias, T *y, const Convolution &s,
                             const Strides &x_strides, const Strides &w_strides, const Strides &y_strides) {
  using Work = Tile<typename DistanceOf<T>::Rule, T, ROWS, COLUMNS, R, C, ROWS4, false, COLUMNS4, PIXELS_FIRST>;
  const int pixels = s.images * s.out_d * s.out_h * s.out_w;
  const int column_blocks = (s.filters + COLUMNS - 1) / COLUMNS, row_blocks = (pixels + ROWS - 1) / ROWS;
  const int first_column = blockIdx.x % column_blocks * COLUMNS;
  const int first_row = blockIdx.x / column_blocks % row_blocks * ROWS;
  const int group = blockIdx.x / column_blocks / row_blocks;

  Source<T, typename Work::Value> from{x + static_cast<long long>(group) * s.channels * x_strides.c,
                                       weight + static_cast<long long>(group) * s.filters * w_strides.n,
                                       s.size_d,
                                       s.size_h,
                                       s.size_w,
                                       x_strides,
                                       static_cast<int>(w_strides.n),
                                       w_strides.c,
                                       w_strides.d,
                                       w_strides.h,
                                       w_strides.w,
                                       taps_of_output(s.kernel_d, s.dilation_d),
                                       taps_of_output(s.kernel_h, s.dilation_h),
                                       taps_of_output(s.kernel_w, s.dilation_w),
                                       s.filters,
                                       s.channels};
  Work work;
  work.run(from, first_column, [&](int row, long long &base, int &d, int &h, int &w) {
    if (first_row + row >= pixels) return false;
    const Pixel at = pixel_of(first_row + row, s.out_d, s.out_h, s.out_w);
    d = at.d * s.stride_d - s.padding_d;
    h = at.h * s.stride_h - s.padding_h;
    w = at.w * s.stride_w - s.padding_w;
    base = offset(x_strides, at.n, 0, d, h, w);
    return true;
  });

  long long row_at[R];
  bool row_exists[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = first_row + Work::row_of(r);
    const Pixel at = pixel_of(row, s.out_d, s.out_h, s.out_w);
    row_exists[r] = row < pixels;
    row_at[r] = offset(y_strides, at.n, group * s.filters, at.d, at.h, at.w);
  }
  typename Work::Value constant[C];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int o = first_column + Work::column_of(c);
    constant[c] = bias != nullptr && o < s.filters ? bias[group * s.filters + o] : 0;
  }
  Work::template store<STORE4>(y, row_at, row_exists, first_column, s.filters, y_strides.c,
                               [&](int r, int c) { return constant[c] - work.sums[r][c]; });
}

// dX[c] = sum over o, a, b of HardTanh(W[o, c, a, b] - X[c]) dY[o], or sign(...) dY[o]; channels lie densely in the
// weight. With a stride the pixels fall into classes, by their place within it: those of one class meet the same taps.
// The pixels of a tile are of one class, so that no tap is computed for a pixel that it does not reach.
template <class Rule, class T, int ROWS, int COLUMNS, int R, int C, bool ROWS4, bool COLUMNS4, bool PIXELS_FIRST,
          bool STORE4, bool OWN4>
__device__ void grad_input_tile(const T *grad, const T *x, const float *weight, T *dx, const Convolution &s,
                                int period_d, int period_h, int period_w, const Strides &g_strides,
                                const Strides &x_strides, const Strides &w_strides, const Strides &dx_strides) {
  using Work = Tile<Rule, T, ROWS, COLUMNS, R, C, ROWS4, true, COLUMNS4, PIXELS_FIRST>;
  const int depth = (s.size_d + s.stride_d - 1) / s.stride_d, height = (s.size_h + s.stride_h - 1) / s.stride_h;
  const int width = (s.size_w + s.stride_w - 1) / s.stride_w;  // of the image that a class makes
  const int pixels = s.images * depth * height * width;
  const int column_blocks = (s.channels + COLUMNS - 1) / COLUMNS, row_blocks = (pixels + ROWS - 1) / ROWS;
  const int classes = s.stride_d * s.stride_h * s.stride_w;
  const int first_column = blockIdx.x % column_blocks * COLUMNS;
  const int first_row = blockIdx.x / column_blocks % row_blocks * ROWS;
  const int kind = blockIdx.x / column_blocks / row_blocks % classes;
  const int group = blockIdx.x / column_blocks / row_blocks / classes;
  const int kind_w = kind_of(kind % s.stride_w, s.stride_w, s.padding_w);
  const int kind_h = kind_of(kind / s.stride_w % s.stride_h, s.stride_h, s.padding_h);
  const int kind_d = kind_of(kind / s.stride_w / s.stride_h, s.stride_d, s.padding_d);

  Source<T, float> from{grad + static_cast<long long>(group) * s.filters * g_strides.c,
                        weight + static_cast<long long>(group) * s.filters * w_strides.n,
                        s.out_d,
                        s.out_h,
                        s.out_w,
                        g_strides,
                        w_strides.c,
                        static_cast<int>(w_strides.n),
                        w_strides.d,
                        w_strides.h,
                        w_strides.w,
                        taps_of_input(kind_d, s.kernel_d, s.stride_d, s.padding_d, s.dilation_d, period_d),
                        taps_of_input(kind_h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, period_h),
                        taps_of_input(kind_w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, period_w),
                        s.channels,
                        s.filters};

  Work work;
  long long row_at[R], own_at[R];
  bool row_exists[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = first_row + Work::row_of(r);
    const Pixel at = pixel_of(row, depth, height, width);
    const int d = at.d * s.stride_d + kind_d, h = at.h * s.stride_h + kind_h, w = at.w * s.stride_w + kind_w;
    row_exists[r] = row < pixels && d < s.size_d && h < s.size_h && w < s.size_w;
    row_at[r] = offset(dx_strides, at.n, group * s.channels, d, h, w);
    own_at[r] = offset(x_strides, at.n, group * s.channels, d, h, w);
  }
  Work::template load<OWN4>(x, own_at, row_exists, first_column, s.channels, x_strides.c,
                            [&](int r, int c, T value) { work.own[r][c] = Rule::own(widened(value)); });
  work.run(from, first_column, [&](int row, long long &base, int &d, int &h, int &w) {
    if (first_row + row >= pixels) return false;
    const Pixel at = pixel_of(first_row + row, depth, height, width);
    d = at.d, h = at.h, w = at.w;
    base = offset(g_strides, at.n, 0, d, h, w);
    return true;
  });
  Work::template store<STORE4>(dx, row_at, row_exists, first_column, s.channels, dx_strides.c, [&](int r, int c) {
    const float own = work.own[r][c];
    if (own != own) return own;
    return Rule::SATURATES ? 2 * work.sums[r][c] - work.total[r] + work.bad[c] : work.sums[r][c];
  });
}

// What is computed one element a thread: neighbouring threads take neighbouring pixels, or neighbouring channels.
struct Element {
  Pixel at;
  int channel;
};
template <bool PIXELS_FIRST>
__device__ bool element_of_thread(Element &element, int channels, int depth, int height, int width) {
  const int plane = depth * height * width;
  const int blocks = (channels * plane + blockDim.x - 1) / blockDim.x;  // of an image
  const int index = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (index >= channels * plane) return false;
  element.at = pixel_of(PIXELS_FIRST ? index % plane : index / channels, depth, height, width);
  element.at.n = blockIdx.x / blocks;
  element.channel = PIXELS_FIRST ? index / plane : index % channels;
  return true;
}

template <class T, bool PIXELS_FIRST>
__device__ void forward_narrow(const T *x, const float *weight, const float *bias, T *y, const Convolution &s,
                               const Strides &x_strides, const Strides &w_strides, const Strides &y_strides) {
  Element own;
  if (!element_of_thread<PIXELS_FIRST>(own, s.groups * s.filters, s.out_d, s.out_h, s.out_w)) return;
  const Pixel at = own.at;
  const int first = own.channel / s.filters * s.channels;
  float sum = 0;
  for (int i = 0; i < s.kernel_d; ++i)
    for (int j = 0; j < s.kernel_h; ++j)
      for (int k = 0; k < s.kernel_w; ++k) {
        const int d = at.d * s.stride_d - s.padding_d + i * s.dilation_d;
        const int h = at.h * s.stride_h - s.padding_h + j * s.dilation_h;
        const int w = at.w * s.stride_w - s.padding_w + k * s.dilation_w;
        const bool inside = static_cast<unsigned>(d) < static_cast<unsigned>(s.size_d) &&
                            static_cast<unsigned>(h) < static_cast<unsigned>(s.size_h) &&
                            static_cast<unsigned>(w) < static_cast<unsigned>(s.size_w);
        for (int c = 0; c < s.channels; ++c) {
          const float value = inside ? widened(x[offset(x_strides, at.n, first + c, d, h, w)]) : 0.0f;
          sum += fabsf(value - weight[offset(w_strides, own.channel, c, i, j, k)]);
        }
      }
  const float constant = bias != nullptr ? bias[own.channel] : 0.0f;
  y[offset(y_strides, at.n, own.channel, at.d, at.h, at.w)] = narrowed<T>(constant - sum);
}

template <class Rule, class T, bool PIXELS_FIRST>
__device__ void grad_input_narrow(const T *grad, const T *x, const float *weight, T *dx, const Convolution &s,
                                  int period_d, int period_h, int period_w, const Strides &g_strides,
                                  const Strides &x_strides, const Strides &w_strides, const Strides &dx_strides) {
  Element mine;
  if (!element_of_thread<PIXELS_FIRST>(mine, s.groups * s.channels, s.size_d, s.size_h, s.size_w)) return;
  const Pixel at = mine.at;
  const int first = mine.channel / s.channels * s.filters, channel = mine.channel % s.channels;
  const float own = Rule::own(widened(x[offset(x_strides, at.n, mine.channel, at.d, at.h, at.w)]));
  const Taps taps_d = taps_of_input(at.d % s.stride_d, s.kernel_d, s.stride_d, s.padding_d, s.dilation_d, period_d);
  const Taps taps_h = taps_of_input(at.h % s.stride_h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, period_h);
  const Taps taps_w = taps_of_input(at.w % s.stride_w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, period_w);
  float sum = 0, total = 0, bad = 0;
  for (int i = 0; i < taps_d.count; ++i)
    for (int j = 0; j < taps_h.count; ++j)
      for (int k = 0; k < taps_w.count; ++k) {
        const int d = at.d / s.stride_d + taps_d.first + i * taps_d.step;
        const int h = at.h / s.stride_h + taps_h.first + j * taps_h.step;
        const int w = at.w / s.stride_w + taps_w.first + k * taps_w.step;
        if (static_cast<unsigned>(d) >= static_cast<unsigned>(s.out_d) ||
            static_cast<unsigned>(h) >= static_cast<unsigned>(s.out_h) ||
            static_cast<unsigned>(w) >= static_cast<unsigned>(s.out_w))
          continue;
        const int tap_d = taps_d.tap + i * taps_d.tap_step, tap_h = taps_h.tap + j * taps_h.tap_step;
        const int tap_w = taps_w.tap + k * taps_w.tap_step;
        for (int o = first; o < first + s.filters; ++o) {
          const float dy = widened(grad[offset(g_strides, at.n, o, d, h, w)]);
          const float coefficient = weight[offset(w_strides, o, channel, tap_d, tap_h, tap_w)];
          Rule::add(sum, own, dy, Rule::weight(coefficient));
          total += dy;
          if (coefficient != coefficient) bad = coefficient;
        }
      }
  dx[offset(dx_strides, at.n, mine.channel, at.d, at.h, at.w)] = narrowed<T>(own != own        ? own
                                                                             : Rule::SATURATES ? 2 * sum - total + bad
                                                                                               : sum);
}

// dW[o, c, a, b] = sum over pixels of sign(X - W[o, c, a, b]) dY[o], the ablation: a thread sums one weight over its
// split of the pixels, into partial (splits, C_out, kd, kh, kw, C_in / groups).
template <class T>
__device__ void grad_weight_sign_split(const T *grad, const T *x, const float *weight, float *partial,
                                       const Convolution &s, const Strides &g_strides, const Strides &x_strides,
                                       const Strides &w_strides) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  const int taps = s.kernel_d * s.kernel_h * s.kernel_w, count = s.groups * s.filters * taps * s.channels;
  if (index >= count) return;
  const int c = index % s.channels, tap = index / s.channels % taps, o = index / s.channels / taps;
  const Pixel place = pixel_of(tap, s.kernel_d, s.kernel_h, s.kernel_w);
  const int channel = o / s.filters * s.channels + c;
  const float own = weight[offset(w_strides, o, c, place.d, place.h, place.w)];
  const int pixels = s.images * s.out_d * s.out_h * s.out_w, each = (pixels + gridDim.y - 1) / gridDim.y;
  const int first = blockIdx.y * each, last = first + each < pixels ? first + each : pixels;
  float sum = 0;
  for (int pixel = first; pixel < last; ++pixel) {
    const Pixel at = pixel_of(pixel, s.out_d, s.out_h, s.out_w);
    const int d = at.d * s.stride_d - s.padding_d + place.d * s.dilation_d;
    const int h = at.h * s.stride_h - s.padding_h + place.h * s.dilation_h;
    const int w = at.w * s.stride_w - s.padding_w + place.w * s.dilation_w;
    const bool inside = static_cast<unsigned>(d) < static_cast<unsigned>(s.size_d) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(s.size_h) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(s.size_w);
    const float value = inside ? widened(x[offset(x_strides, at.n, channel, d, h, w)]) : 0.0f;
    const float dy = widened(grad[offset(g_strides, at.n, o, at.d, at.h, at.w)]), difference = value - own;
    sum += difference > 0 ? dy : difference < 0 ? -dy : difference * dy;
  }
  partial[static_cast<long long>(blockIdx.y) * count + index] = sum;
}

// Nothing but FADD: `rounds` times 256 in every thread, 64 sums that do not wait for each other.
__device__ inline void issue(float *out, int rounds) {
  float terms[8], sums[64] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) terms[i] = out[i];
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (int i = 0; i < 256; ++i) sums[i % 64] += fabsf(terms[(i + i / 64) % 8]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 64; ++i) sum += sums[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
