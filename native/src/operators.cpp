// The C interface of the operators: a shape in PyTorch's terms becomes a Convolution.
#include <algorithm>
#include <cstring>
#include <exception>

#include "convolution.h"
#include "error.h"
#include "threads.h"
#include "torchadder.h"

namespace torchadder {
namespace {

// (One channel is a plain convolution: its adjacent taps join into runs, which depthwise kernels do not read.)
bool depthwise(const torchadder_conv2d &s) { return s.groups > 1 && s.groups == s.c_in && s.groups == s.c_out; }

const char *wrong(const torchadder_conv2d &s) {
  const auto out = [](int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
    return room < 0 ? -1 : room / stride + 1;
  };
  if (s.images < 0 || s.c_in < 1 || s.h_in < 0 || s.w_in < 0 || s.c_out < 1 || s.h_out < 0 || s.w_out < 0)
    return "negative or empty size";
  if (s.kernel_h < 1 || s.kernel_w < 1 || s.stride_h < 1 || s.stride_w < 1 || s.dilation_h < 1 || s.dilation_w < 1)
    return "kernel, stride and dilation must be at least 1";
  if (s.padding_h < 0 || s.padding_w < 0) return "negative padding";
  if (s.groups < 1 || s.c_in % s.groups || s.c_out % s.groups) return "groups must divide both channel counts";
  if (s.h_out != out(s.h_in, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h) ||
      s.w_out != out(s.w_in, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w))
    return "the output size does not follow from the input's, or the kernel is larger than the padded input";
  return nullptr;
}

struct WeightStrides {
  int64_t out, in, h, w;
};

WeightStrides weight_strides(const torchadder_conv2d &s) {
  const int64_t depth = s.c_in / s.groups, taps = s.kernel_h * s.kernel_w;
  if (s.weight_channels_last) return {depth * taps, 1, s.kernel_w * depth, depth};
  return {depth * taps, taps, s.kernel_w, 1};
}

// Cuts `lanes` channels a group into blocks, each for the narrowest kernel that holds it.
template <class Origin>
std::vector<ChannelBlock> cut(Op op, int64_t groups, int64_t lanes, int64_t depth, bool by_channel, Origin origin) {
  std::vector<ChannelBlock> blocks;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t lane = 0; lane < lanes;) {
      const Kernel &kernel = kernel_for(op, lanes - lane);
      const int64_t taken = std::min<int64_t>(kernel.lanes, lanes - lane);
      const int64_t channel = g * lanes + lane;
      blocks.push_back({&kernel,
                        by_channel ? channel : g * depth,
                        channel,
                        {origin(g, lane), static_cast<int>(taken), nullptr, nullptr, nullptr, nullptr}});
      lane += taken;
    }
  return blocks;
}

template <class Body>
int guarded(const torchadder_conv2d &s, Body &&body) {
  if (const char *reason = wrong(s)) return fail("%s", reason);
  try {
    body();
  } catch (const std::exception &error) {
    return fail("%s", error.what());
  }
  return 0;
}

void forward(const torchadder_conv2d &s, const float *x, const float *weight, const float *bias, float *y,
             bool recenter, int threads) {
  const bool by_channel = depthwise(s);
  const Op op = by_channel ? Op::depthwise_f32 : Op::forward_f32;
  const WeightStrides w = weight_strides(s);
  const int64_t groups = by_channel ? 1 : s.groups;
  const int64_t lanes = s.c_out / groups, depth = s.c_in / s.groups;
  const auto origin = [&](int64_t g, int64_t lane) { return weight + (g * lanes + lane) * w.out; };
  Convolution c{op,
                s.images,
                pixel_plan(s, Direction::forward),
                {w.out, w.in, w.h, w.w, s.kernel_h, s.kernel_w, false, depth},
                cut(op, groups, lanes, depth, by_channel, origin)};
  c.source = x;
  c.result = y;
  c.source_layout = Layout::dense(s.h_in, s.w_in, s.c_in);
  c.result_layout = Layout::dense(s.h_out, s.w_out, s.c_out);
  c.bias = bias;
  c.recenter = recenter;
  run(c, threads);
}

void grad_input(const torchadder_conv2d &s, const float *dy, const float *x, const float *weight, float *dx, bool sign,
                int threads) {
  const bool by_channel = depthwise(s);
  const Op op = by_channel ? (sign ? Op::depthwise_sign_f32 : Op::depthwise_grad_f32)
                           : (sign ? Op::grad_input_sign_f32 : Op::grad_input_f32);
  const WeightStrides w = weight_strides(s);
  const int64_t groups = by_channel ? 1 : s.groups;
  const int64_t lanes = s.c_in / groups, depth = s.c_out / s.groups;
  const int64_t lane_stride = by_channel ? w.out : w.in, group_stride = by_channel ? 0 : depth * w.out;
  const auto origin = [&](int64_t g, int64_t lane) { return weight + g * group_stride + lane * lane_stride; };
  Convolution c{op,
                s.images,
                pixel_plan(s, Direction::gradient),
                {lane_stride, w.out, w.h, w.w, s.kernel_h, s.kernel_w, true, depth},
                cut(op, groups, lanes, depth, by_channel, origin)};
  c.source = dy;
  c.state = x;
  c.result = dx;
  c.source_layout = Layout::dense(s.h_out, s.w_out, s.c_out);
  c.result_layout = Layout::dense(s.h_in, s.w_in, s.c_in);
  run(c, threads);
}

constexpr int64_t kImagesAtOnce = 16;  // of one partial sum: fixed, so that the result does not depend on the threads

void grad_weight_sign(const torchadder_conv2d &s, const float *dy, const float *x, const float *weight, float *dw,
                      int threads) {
  const WeightStrides w = weight_strides(s);
  const int64_t lanes = s.c_out / s.groups, depth = s.c_in / s.groups;
  const int64_t height = s.h_in + 2 * s.padding_h, width = s.w_in + 2 * s.padding_w;

  Buffer padded;
  if (s.padding_h || s.padding_w) {
    padded = make_buffer(s.images * height * width * s.c_in);
    parallel(threads, [&](int t, int count) {
      const Share mine = share(s.images, t, count);
      float *begin = padded.get() + mine.begin * height * width * s.c_in;
      std::fill(begin, padded.get() + mine.end * height * width * s.c_in, 0.0f);
      for (int64_t n = mine.begin; n < mine.end; ++n)
        for (int64_t i = 0; i < s.h_in; ++i)
          std::memcpy(padded.get() + ((n * height + i + s.padding_h) * width + s.padding_w) * s.c_in,
                      x + (n * s.h_in + i) * s.w_in * s.c_in,
                      static_cast<std::size_t>(s.w_in * s.c_in) * sizeof(float));
    });
    x = padded.get();
  }

  const WeightView view{w.out, w.in, w.h, w.w, s.kernel_h, s.kernel_w, false, depth};
  const int64_t rows = view.rows();
  std::vector<int64_t> offsets;
  for (int64_t a = 0; a < s.kernel_h; ++a)
    for (int64_t b = 0; b < s.kernel_w; ++b)
      for (int64_t k = 0; k < depth; ++k) offsets.push_back((a * s.dilation_h * width + b * s.dilation_w) * s.c_in + k);

  const IsaFunctions &isa = isa_functions(selected_isa());
  std::vector<ChannelBlock> blocks;
  for (int64_t g = 0; g < s.groups; ++g)
    for (int64_t lane = 0; lane < lanes; lane += isa.sign_lanes) {
      const int taken = static_cast<int>(std::min<int64_t>(isa.sign_lanes, lanes - lane));
      const float *origin = weight + (g * lanes + lane) * w.out;
      blocks.push_back({nullptr, g * depth, g * lanes + lane, {origin, taken, nullptr, nullptr, nullptr, nullptr}});
    }
  const int64_t block_count = static_cast<int64_t>(blocks.size()), floats = rows * isa.sign_lanes;
  const int64_t parts = std::max<int64_t>(1, (s.images + kImagesAtOnce - 1) / kImagesAtOnce);
  const Buffer memory = make_buffer(block_count * (floats + isa.sign_lanes));
  const Buffer partial = make_buffer(parts * block_count * floats);
  for (int64_t b = 0; b < block_count; ++b) {
    Packing &to = blocks[static_cast<std::size_t>(b)].packing;
    to.weight = memory.get() + b * (floats + isa.sign_lanes);
    to.constant = to.weight + floats;
    isa.pack(view, to, isa.sign_lanes);
  }
  parallel(threads, [&](int t, int count) {
    const Share mine = share(parts * block_count, t, count);
    for (int64_t job = mine.begin; job < mine.end; ++job) {
      const ChannelBlock &block = blocks[static_cast<std::size_t>(job % block_count)];
      const int64_t first = job / block_count * kImagesAtOnce;
      isa.sign_gradient({x + first * height * width * s.c_in + block.source_channel,
                         dy + first * s.h_out * s.w_out * s.c_out + block.channel, offsets.data(), block.packing.weight,
                         partial.get() + job * floats, std::min(kImagesAtOnce, s.images - first), s.h_out, s.w_out,
                         height * width * s.c_in, s.stride_h * width * s.c_in, s.stride_w * s.c_in, s.c_out,
                         static_cast<int>(rows), block.packing.lanes});
    }
  });
  for (int64_t b = 0; b < block_count; ++b) {
    const ChannelBlock &block = blocks[static_cast<std::size_t>(b)];
    float *sum = partial.get() + b * floats;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < floats; ++i) sum[i] += partial[(part * block_count + b) * floats + i];
    float *target = dw + (block.packing.origin - weight);
    for (int64_t tap = 0; tap < view.taps(); ++tap)
      for (int64_t k = 0; k < depth; ++k, sum += isa.sign_lanes)
        for (int lane = 0; lane < block.packing.lanes; ++lane)
          target[lane * view.lane + view.tap_offset(tap) + k * view.depth] = sum[lane];
  }
}

}  // namespace
}  // namespace torchadder

using namespace torchadder;

extern "C" {

int torchadder_forward_f32(const torchadder_conv2d *shape, const float *x, const float *weight, const float *bias,
                           float *y, int recenter, int threads) {
  return guarded(*shape, [&] { forward(*shape, x, weight, bias, y, recenter != 0, threads); });
}

int torchadder_grad_input_f32(const torchadder_conv2d *shape, const float *dy, const float *x, const float *weight,
                              float *dx, int sign, int threads) {
  return guarded(*shape, [&] { grad_input(*shape, dy, x, weight, dx, sign != 0, threads); });
}

int torchadder_grad_weight_sign_f32(const torchadder_conv2d *shape, const float *dy, const float *x,
                                    const float *weight, float *dw, int threads) {
  return guarded(*shape, [&] { grad_weight_sign(*shape, dy, x, weight, dw, threads); });
}

int torchadder_has_threads(void) {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

}  // extern "C"
