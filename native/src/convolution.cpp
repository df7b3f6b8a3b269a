#include "convolution.h"

#include <algorithm>

#include "threads.h"

namespace torchadder {
namespace {

constexpr int64_t kChunkPixels = 768;        // most pixels whose pointers are made at once
constexpr int64_t kChunkFloats = 64 * 1024;  // of source, state and result that a chunk touches: stays in L2
constexpr int64_t kGroupFloats = 96 * 1024;  // of the images that go through all classes together
constexpr int64_t kLeastWork = 128 * 1024;   // element operations that are worth another thread

// A class of pixels and the blocks that one thread computes for a pixel before it goes on to the next chunk.
struct Part {
  const PixelClass *pixels;
  const Block *blocks;
  const ChannelBlock *packed;
  int64_t block_count;
  int64_t pixels_an_image;
  int64_t cost;  // of one pixel
};

// Forward, for one class: weight_sum = sum W inside the image, constant = bias - sum |W| in the padding [+ sum |W|].
void class_constants(const Convolution &c, const PixelClass &pixels, const ChannelBlock &packed, float *weight_sum,
                     float *constant) {
  const int width = packed.kernel->lanes;
  const int64_t taps = c.view.taps();
  std::vector<bool> inside(static_cast<std::size_t>(taps), false);
  for (const AxisTap &a : pixels.rows->taps)
    for (const AxisTap &b : pixels.columns->taps)
      inside[static_cast<std::size_t>(a.rank * c.view.kernel_w + b.rank)] = true;
  for (int lane = 0; lane < width; ++lane) {
    weight_sum[lane] = 0.0f;
    constant[lane] = c.bias && lane < packed.packing.lanes ? c.bias[packed.channel + lane] : 0.0f;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float *sum = packed.packing.tap_sum + tap * width, *abs_sum = packed.packing.tap_abs_sum + tap * width;
    const bool meets = inside[static_cast<std::size_t>(tap)];
    for (int lane = 0; lane < width; ++lane) {
      if (meets) weight_sum[lane] += sum[lane];
      if (c.recenter) constant[lane] += abs_sum[lane];
      if (!meets) constant[lane] -= abs_sum[lane];  // recentred: 0, or NaN where a weight is
    }
  }
}

// Pixels [begin, end) of a part, counted image by image, row by row.
void compute(const Convolution &c, const Part &part, int64_t begin, int64_t end) {
  const AxisClass &rows = *part.pixels->rows, &columns = *part.pixels->columns;
  const int64_t height = static_cast<int64_t>(rows.result.size()), width = static_cast<int64_t>(columns.result.size());
  const int64_t floats = c.source_layout.pixel + (c.state ? 2 : 1) * c.result_layout.pixel;
  const int64_t chunk = std::clamp<int64_t>(kChunkFloats / floats, 48, kChunkPixels);
  const Layout &from = c.source_layout, &to = c.result_layout;
  const float *source[kChunkPixels];
  const float *state[kChunkPixels];
  float *result[kChunkPixels];
  float sums[kChunkPixels];
  const IsaFunctions &isa = isa_functions();
  const bool wants_sums =
      (c.op == Op::forward_f32 && isa.forward_sums) || (c.op == Op::grad_input_f32 && isa.gradient_sums);
  int64_t j = begin % width, i = begin / width % height, n = begin / width / height;
  while (begin < end) {
    const int64_t count = std::min(chunk, end - begin);
    for (int64_t p = 0; p < count; ++p) {
      source[p] = c.source + n * from.image + rows.source[i] * from.row + columns.source[j] * from.pixel;
      const int64_t place = n * to.image + rows.result[i] * to.row + columns.result[j] * to.pixel;
      result[p] = c.result + place;
      state[p] = c.state ? c.state + place : nullptr;
      if (++j == width) {
        j = 0;
        if (++i == height) {
          i = 0;
          ++n;
        }
      }
    }
    for (int64_t b = 0; b < part.block_count; ++b) {
      const Kernel &kernel = *part.packed[b].kernel;
      if (wants_sums && (b == 0 || part.blocks[b].source_channel != part.blocks[b - 1].source_channel))
        isa.source_sums(part.blocks[b], source, count, sums);
      for (int64_t p = 0; p < count; p += kernel.pixels)
        kernel.run(part.blocks[b], {source + p, state + p, result + p, sums + p,
                                    static_cast<int>(std::min<int64_t>(kernel.pixels, count - p))});
    }
    begin += count;
  }
}

}  // namespace

void run(Convolution &c, int threads) {
  const int64_t block_count = static_cast<int64_t>(c.blocks.size());
  const int64_t taps = c.view.taps(), rows = c.view.rows();
  const bool forward = c.op == Op::forward_f32 || c.op == Op::depthwise_f32;
  const std::vector<PixelClass> &classes = c.plan->classes;

  int64_t floats = 0, lanes = 0, work = 0;
  for (const ChannelBlock &block : c.blocks) lanes += block.kernel->lanes;
  for (const PixelClass &pixels : classes) work += c.images * pixels.pixels() * (pixels.steps + 1) * lanes;
  threads = static_cast<int>(std::clamp<int64_t>(work / kLeastWork, 1, std::max(threads, 1)));

  // One buffer: packed weight, sums by tap, constants.
  const int64_t by_lane = rows + (forward ? 2 * taps + 2 * static_cast<int64_t>(classes.size()) : 1);
  const Buffer memory = make_buffer((by_lane + 1) * lanes);
  for (ChannelBlock &block : c.blocks) {
    const int64_t width = block.kernel->lanes;
    float *at = memory.get() + floats;
    Packing &to = block.packing;
    to.weight = at;
    to.constant = at + rows * width;
    to.tap_sum = forward ? to.constant + width : nullptr;
    to.tap_abs_sum = forward ? to.tap_sum + taps * width : nullptr;
    floats += (by_lane + 1) * width;
  }
  std::vector<Block> blocks(classes.size() * c.blocks.size());
  const int packers = static_cast<int>(std::min<int64_t>(threads, block_count));
  parallel(rows * lanes < 8192 ? 1 : packers, [&](int t, int count) {
    const Share mine = share(block_count, t, count);
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      ChannelBlock &packed = c.blocks[static_cast<std::size_t>(b)];
      const int64_t width = packed.kernel->lanes;
      const Packing &to = packed.packing;
      isa_functions().pack(c.view, to, packed.kernel->lanes);
      float *constants = forward ? to.tap_abs_sum + taps * width : to.constant;
      for (std::size_t k = 0; k < classes.size(); ++k) {
        const PixelClass &pixels = classes[k];
        Block &block = blocks[k * c.blocks.size() + static_cast<std::size_t>(b)];
        block = {to.weight,
                 pixels.runs.data(),
                 static_cast<int64_t>(pixels.runs.size()),
                 constants,
                 constants,
                 packed.source_channel,
                 packed.channel,
                 to.lanes};
        if (forward) {
          block.constant = constants + width;
          class_constants(c, pixels, packed, constants, constants + width);
          constants += 2 * width;
        }
      }
    }
  });

  // Few pixels: the blocks are shared out too.
  std::vector<Part> parts;
  int64_t pixels_in_all = 0, image_cost = 0;
  for (const PixelClass &pixels : classes) pixels_in_all += c.images * pixels.pixels();
  const int64_t together = pixels_in_all < 16 * 12 * threads ? 1 : block_count;
  for (std::size_t k = 0; k < classes.size(); ++k)
    for (int64_t b = 0; b < block_count; b += together) {
      const std::size_t at = static_cast<std::size_t>(b);
      int64_t width = 0;
      for (int64_t i = b; i < b + together; ++i) width += c.blocks[static_cast<std::size_t>(i)].kernel->lanes;
      const int64_t pixels = classes[k].pixels(), cost = (classes[k].steps + 4) * width;
      parts.push_back({&classes[k], &blocks[k * c.blocks.size() + at], &c.blocks[at], together, pixels, cost});
      image_cost += pixels * cost;
    }

  // A few images at a time through all classes: what one class has read is still in the cache for the next.
  const int64_t floats_an_image = c.source_layout.image + (c.state ? 2 : 1) * c.result_layout.image;
  const int64_t group = std::max<int64_t>(1, kGroupFloats / std::max<int64_t>(1, floats_an_image));
  parallel(threads, [&](int t, int count) {
    // A thread's share is a range of the cost, cut between pixels.
    const Share mine = share(c.images * image_cost, t, count);
    for (int64_t first = 0; first < c.images; first += group) {
      const int64_t images = std::min(group, c.images - first);
      int64_t before = first * image_cost;
      if (before + images * image_cost <= mine.begin) continue;
      for (const Part &part : parts) {
        const auto pixel_at = [&](int64_t place) {
          return std::clamp<int64_t>((place - before + part.cost - 1) / part.cost, 0, images * part.pixels_an_image);
        };
        const int64_t begin = mine.begin <= before ? 0 : pixel_at(mine.begin);
        const int64_t end = mine.end <= before ? 0 : pixel_at(mine.end);
        const int64_t skipped = first * part.pixels_an_image;
        if (begin < end) compute(c, part, skipped + begin, skipped + end);
        before += images * part.pixels_an_image * part.cost;
      }
    }
  });
}

}  // namespace torchadder
