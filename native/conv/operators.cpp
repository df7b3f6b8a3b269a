// The C interface of the operators. It makes a Convolution of a shape in the terms of PyTorch.
#include <algorithm>
#include <cstring>

#include "common/error.h"
#include "common/threads.h"
#include "conv/arguments.h"
#include "conv/convolution.h"
#include "torchadder.h"

namespace torchadder {
namespace {

// How the groups of a convolution fill the lanes of a vector.
struct Grouping {
  Op op;
  bool by_channel;   // depthwise: a lane reads its own channel only
  int64_t together;  // groups that share a vector
};

Grouping grouping(const torchadder_convolution &s, Op plain, Op grouped, Op depthwise) {
  if (s.groups == 1) return {plain, false, 1};
  if (s.groups == s.c_in && s.groups == s.c_out) return {depthwise, true, 1};
  const int64_t together =
      kernel_for(grouped, selected_isa(), 1).lanes / std::max(s.c_in / s.groups, s.c_out / s.groups);
  return together > 1 ? Grouping{grouped, false, together} : Grouping{plain, false, 1};
}

// Cuts the groups into blocks of `together` groups. A group has `lanes` channels that read `depth` source channels; its
// weight is `stride` floats after that of the group before.
void cut_groups(Convolution &c, int64_t groups, int64_t together, int64_t lanes, int64_t depth, const float *weight,
                int64_t stride) {
  const Kernel &kernel = kernel_for(c.op, selected_isa(), 1);
  for (int64_t g = 0; g < groups; g += together) {
    const int64_t count = std::min(together, groups - g);
    c.blocks.push_back({&kernel,
                        g * depth,
                        g * lanes,
                        {weight + g * stride, static_cast<int>(count * lanes), nullptr, nullptr, nullptr, nullptr},
                        static_cast<int>(count * depth)});
  }
  c.view.group_lanes = lanes;
  c.view.group = stride;
  c.index.resize(static_cast<std::size_t>(depth * kernel.lanes));
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t lane = 0; lane < together * lanes; ++lane)
      c.index[static_cast<std::size_t>(k * kernel.lanes + lane)] = static_cast<int32_t>(lane / lanes * depth + k);
}

void forward(const torchadder_convolution &s, const float *x, const float *weight, const float *bias, float *y,
             bool recenter, int threads) {
  const auto [op, by_channel, together] = grouping(s, Op::forward_f32, Op::grouped_f32, Op::depthwise_f32);
  const WeightStrides w = weight_strides(s);
  const int64_t groups = by_channel ? 1 : s.groups;
  const int64_t lanes = s.c_out / groups, depth = s.c_in / s.groups;
  Convolution c{op, s.images, pixel_plan(s, Direction::forward), {w.out, w.in, w.tap, w.taps, false, depth}, {}};
  if (together > 1)
    cut_groups(c, groups, together, lanes, depth, weight, lanes * w.out);
  else
    c.blocks = cut(op, groups, lanes, depth, by_channel,
                   [&](int64_t g, int64_t lane) { return weight + (g * lanes + lane) * w.out; });
  c.source = channels_last<Use::source>(s, x, s.c_in, pixels(s.size_in));
  c.result = result_memory(s, y, s.c_out, pixels(s.size_out));
  c.source_layout = Layout::dense(s.size_in, s.c_in);
  c.result_layout = Layout::dense(s.size_out, s.c_out);
  c.bias = bias;
  c.recenter = recenter;
  run(c, threads);
  store(s, c.result, y, s.c_out, pixels(s.size_out));
}

void grad_input(const torchadder_convolution &s, const float *dy, const float *x, const float *weight, float *dx,
                bool sign, int threads) {
  const auto [op, by_channel, together] =
      sign ? grouping(s, Op::grad_input_sign_f32, Op::grouped_sign_f32, Op::depthwise_sign_f32)
           : grouping(s, grad_input_op(s.c_in / s.groups, s.c_out / s.groups), Op::grouped_grad_f32,
                      Op::depthwise_grad_f32);
  const WeightStrides w = weight_strides(s);
  const int64_t groups = by_channel ? 1 : s.groups;
  const int64_t lanes = s.c_in / groups, depth = s.c_out / s.groups;
  const int64_t lane_stride = by_channel ? w.out : w.in, group_stride = by_channel ? 0 : depth * w.out;
  Convolution c{op, s.images, pixel_plan(s, Direction::gradient), {lane_stride, w.out, w.tap, w.taps, true, depth}, {}};
  if (together > 1)
    cut_groups(c, groups, together, lanes, depth, weight, group_stride);
  else
    c.blocks = cut(op, groups, lanes, depth, by_channel,
                   [&](int64_t g, int64_t lane) { return weight + g * group_stride + lane * lane_stride; });
  c.source = channels_last<Use::source>(s, dy, s.c_out, pixels(s.size_out));
  c.state = channels_last<Use::state>(s, x, s.c_in, pixels(s.size_in));
  c.result = result_memory(s, dx, s.c_in, pixels(s.size_in));
  c.source_layout = Layout::dense(s.size_out, s.c_out);
  c.result_layout = Layout::dense(s.size_in, s.c_in);
  if (op == Op::few_grad_f32) c.packer = pack_along_depth;
  run(c, threads);
  store(s, c.result, dx, s.c_in, pixels(s.size_in));
}

constexpr int64_t kImagesAtOnce = 16;  // of a partial sum; fixed, so that the result does not depend on the threads

void grad_weight_sign(const torchadder_convolution &s, const float *dy, const float *x, const float *weight, float *dw,
                      int threads) {
  const WeightStrides w = weight_strides(s);
  const int64_t lanes = s.c_out / s.groups, depth = s.c_in / s.groups;
  int64_t size[3];  // of the padded input
  for (int a = 0; a < 3; ++a) size[a] = s.size_in[a] + 2 * s.padding[a];
  const Layout layout = Layout::dense(size, s.c_in);
  x = channels_last<Use::source>(s, x, s.c_in, pixels(s.size_in));
  dy = channels_last<Use::state>(s, dy, s.c_out, pixels(s.size_out));

  Floats padded;
  if (s.padding[0] || s.padding[1] || s.padding[2]) {
    padded = make_floats(s.images * layout.image);
    parallel(threads, [&](int t, int count) {
      const Share mine = share(s.images, t, count);
      std::fill(padded.get() + mine.begin * layout.image, padded.get() + mine.end * layout.image, 0.0f);
      for (int64_t n = mine.begin; n < mine.end; ++n)
        for (int64_t d = 0; d < s.size_in[0]; ++d)
          for (int64_t i = 0; i < s.size_in[1]; ++i)
            std::memcpy(padded.get() + n * layout.image + (d + s.padding[0]) * layout.plane +
                            (i + s.padding[1]) * layout.row + s.padding[2] * layout.pixel,
                        x + ((n * s.size_in[0] + d) * s.size_in[1] + i) * s.size_in[2] * s.c_in,
                        static_cast<std::size_t>(s.size_in[2] * s.c_in) * sizeof(float));
    });
    x = padded.get();
  }

  const WeightView view{w.out, w.in, w.tap, w.taps, false, depth};
  const int64_t rows = view.rows();
  std::vector<int64_t> offsets;
  for (int64_t a = 0; a < s.kernel[0]; ++a)
    for (int64_t b = 0; b < s.kernel[1]; ++b)
      for (int64_t c = 0; c < s.kernel[2]; ++c)
        for (int64_t k = 0; k < depth; ++k)
          offsets.push_back(a * s.dilation[0] * layout.plane + b * s.dilation[1] * layout.row +
                            c * s.dilation[2] * layout.pixel + k);

  const AuxiliaryKernels &isa = auxiliary_kernels(selected_isa());
  std::vector<ChannelBlock> blocks;
  for (int64_t g = 0; g < s.groups; ++g)
    for (int64_t lane = 0; lane < lanes; lane += isa.sign_lanes) {
      const int taken = static_cast<int>(std::min<int64_t>(isa.sign_lanes, lanes - lane));
      const float *origin = weight + (g * lanes + lane) * w.out;
      blocks.push_back({nullptr, g * depth, g * lanes + lane, {origin, taken, nullptr, nullptr, nullptr, nullptr}});
    }
  const int64_t block_count = static_cast<int64_t>(blocks.size()), floats = rows * isa.sign_lanes;
  const int64_t parts = std::max<int64_t>(1, (s.images + kImagesAtOnce - 1) / kImagesAtOnce);
  const Floats memory = make_floats(block_count * (floats + isa.sign_lanes));
  const Floats partial = make_floats(parts * block_count * floats);
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
      isa.sign_gradient({x + first * layout.image + block.source_channel,
                         dy + first * pixels(s.size_out) * s.c_out + block.channel,
                         offsets.data(),
                         block.packing.weight,
                         partial.get() + job * floats,
                         std::min(kImagesAtOnce, s.images - first),
                         {s.size_out[0], s.size_out[1], s.size_out[2]},
                         layout.image,
                         {s.stride[0] * layout.plane, s.stride[1] * layout.row, s.stride[2] * layout.pixel},
                         s.c_out,
                         static_cast<int>(rows),
                         block.packing.lanes});
    }
  });
  for (int64_t b = 0; b < block_count; ++b) {
    const ChannelBlock &block = blocks[static_cast<std::size_t>(b)];
    float *sum = partial.get() + b * floats;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < floats; ++i) sum[i] += partial[(part * block_count + b) * floats + i];
    float *target = dw + (block.packing.origin - weight);
    for (int64_t tap = 0; tap < view.taps; ++tap)
      for (int64_t k = 0; k < depth; ++k, sum += isa.sign_lanes)
        for (int lane = 0; lane < block.packing.lanes; ++lane)
          target[lane * view.lane + view.tap_offset(tap) + k * view.depth] = sum[lane];
  }
}

}  // namespace
}  // namespace torchadder

using namespace torchadder;

extern "C" {

int torchadder_forward_f32(const torchadder_convolution *shape, const float *x, const float *weight, const float *bias,
                           float *y, int recenter, int threads) {
  return guarded(*shape, [&] { forward(*shape, x, weight, bias, y, recenter != 0, threads); });
}

int torchadder_grad_input_f32(const torchadder_convolution *shape, const float *dy, const float *x, const float *weight,
                              float *dx, int sign, int threads) {
  return guarded(*shape, [&] { grad_input(*shape, dy, x, weight, dx, sign != 0, threads); });
}

int torchadder_grad_weight_sign_f32(const torchadder_convolution *shape, const float *dy, const float *x,
                                    const float *weight, float *dw, int threads) {
  return guarded(*shape, [&] { grad_weight_sign(*shape, dy, x, weight, dw, threads); });
}

int torchadder_transpose_f32(const float *from, float *to, int64_t images, int64_t rows, int64_t columns, int threads) {
  if (images < 0 || rows < 0 || columns < 0) return fail("negative size");
  if (!is_selected()) return -1;
  const Call call;
  if (images && rows && columns) transpose(from, to, images, rows, columns, threads);
  return 0;
}

int torchadder_has_threads(void) {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

}  // extern "C"
