#include "conv/convolution.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "common/threads.h"

namespace torchadder {
namespace {

constexpr int64_t kChunkPixels = 768;        // of a chunk, at most: their pointers are on the stack
constexpr int64_t kChunkFloats = 64 * 1024;  // of source, state and result in a chunk: they stay in L2
constexpr int64_t kGroupFloats = 96 * 1024;  // of the images that go through all classes together
constexpr int64_t kMinWork = 128 * 1024;     // operations on elements that are worth one more thread
constexpr int64_t kMinPacking = 8 * 1024;    // floats of packed weight that are worth one more thread
constexpr int64_t kFewTiles = 12;            // tiles a thread below which threads share the blocks too
constexpr int64_t kStepsOfATile = 4;         // the cost of loading and storing a tile, in steps

// A class of pixels, and the blocks of channels that a thread computes for one chunk of them before the next chunk.
struct Part {
  const PixelClass *pixels;
  const Block *blocks;
  const ChannelBlock *packed;
  int64_t block_count;
  int64_t pixels_an_image;
  int64_t cost;  // of one pixel
};

using Float4 = float __attribute__((vector_size(16)));
Float4 load(const float *p) {
  Float4 result;
  std::memcpy(&result, p, sizeof result);
  return result;
}

// Computes the constants of a class for the forward operator: weight_sum = sum of W inside the image, constant = bias -
// sum of |W| in the padding, with recenter + sum of |W| over all taps.
void class_constants(const Convolution &c, const PixelClass &pixels, const ChannelBlock &packed, float *weight_sum,
                     float *constant) {
  const int width = packed.kernel->lanes;  // a multiple of four
  for (int first = 0; first < width; first += 4) {
    Float4 total{}, rest{};
    for (int lane = 0; c.bias && lane < std::min(4, packed.packing.lanes - first); ++lane)
      rest[lane] = c.bias[packed.channel + first + lane];
    for (int64_t tap = 0; tap < c.view.taps; ++tap) {
      const bool is_inside = pixels.inside[static_cast<std::size_t>(tap)];
      const Float4 abs_sum = load(packed.packing.tap_abs_sum + tap * width + first);
      if (is_inside) total += load(packed.packing.tap_sum + tap * width + first);
      if (c.recenter) rest += abs_sum;
      if (!is_inside) rest -= abs_sum;  // with recenter the sum is 0, or NaN if a weight is
    }
    std::memcpy(weight_sum + first, &total, sizeof total);
    std::memcpy(constant + first, &rest, sizeof rest);
  }
}

// Returns the function that computes Tile::source_sum for the kernels of `isa`, or null if they do not read it. Sums of
// floats are those of the selected set, so that kernels of another one give the same bits.
SourceSums sums_of(Op op, Isa isa) {
  const AuxiliaryKernels &own = auxiliary_kernels(isa), &selected = auxiliary_kernels(selected_isa());
  if (op == Op::forward_f32 && own.forward_reads_sums) return selected.sums;
  if ((op == Op::grad_input_f32 || op == Op::few_grad_f32) && own.grad_input_reads_sums) return selected.sums;
  if (op == Op::forward_u8) return own.byte_sums;
  if (op == Op::grad_input_i16) return own.gradient_sums;
  return nullptr;
}

// Computes pixels [begin, end) of a part, counted image by image, plane by plane, row by row.
void compute(const Convolution &c, const Part &part, int64_t begin, int64_t end) {
  const AxisClass &planes = *part.pixels->axes[0], &rows = *part.pixels->axes[1], &columns = *part.pixels->axes[2];
  const int64_t depth = part.pixels->size(0), height = part.pixels->size(1), width = part.pixels->size(2);
  const int64_t floats = c.source_layout.pixel + (c.state ? 2 : 1) * c.result_layout.pixel;
  const int64_t chunk = std::clamp<int64_t>(kChunkFloats / floats, 48, kChunkPixels);
  const Layout &from = c.source_layout, &to = c.result_layout;
  const float *source[kChunkPixels];
  const float *state[kChunkPixels];
  float *result[kChunkPixels];
  float sums[kChunkPixels];
  const SourceSums source_sums = sums_of(c.op, part.packed->kernel->isa);
  int64_t j = begin % width, i = begin / width % height, d = begin / width / height % depth;
  int64_t n = begin / width / height / depth;
  const bool is_unread = c.state && part.pixels->steps == 0;  // no output reads these pixels: their gradient is 0
  while (begin < end) {
    const int64_t count = std::min(chunk, end - begin);
    for (int64_t p = 0; p < count;) {  // pixels of a row lie at equal distances
      const int64_t last = std::min(count, p + width - j);
      const float *at = c.source + n * from.image + planes.source[d] * from.plane + rows.source[i] * from.row;
      const int64_t offset = n * to.image + planes.result[d] * to.plane + rows.result[i] * to.row;
      for (; p < last; ++p, ++j) {
        source[p] = at + columns.source[j] * from.pixel;
        result[p] = c.result + offset + columns.result[j] * to.pixel;
        state[p] = c.state ? c.state + offset + columns.result[j] * to.pixel : nullptr;
      }
      if (j < width) break;
      j = 0;
      if (++i < height) continue;
      i = 0;
      if (++d < depth) continue;
      d = 0;
      ++n;
    }
    for (int64_t b = 0; b < part.block_count; ++b) {
      const Block &block = part.blocks[b];
      if (is_unread) {
        for (int64_t p = 0; p < count; ++p)
          std::memset(result[p] + block.channel, 0, static_cast<std::size_t>(block.lanes) * sizeof(float));
        continue;
      }
      const Kernel &kernel = *part.packed[b].kernel;
      if (source_sums && !block.sums_source && (b == 0 || block.source_channel != part.blocks[b - 1].source_channel))
        source_sums(block, source, count, sums);
      for (int64_t p = 0; p < count; p += kernel.pixels)
        kernel.run(block, {source + p, state + p, result + p, sums + p,
                           static_cast<int>(std::min<int64_t>(kernel.pixels, count - p))});
    }
    begin += count;
  }
}

// Packs the weight into the thread's scratch, with sums by tap and constants. Returns the blocks by [class][block].
std::vector<Block> pack(Convolution &c, int64_t lanes, int threads) {
  const std::vector<PixelClass> &classes = c.plan->classes;
  const bool forward = !c.state;
  const int64_t taps = c.view.taps, rows = c.view.rows(), block_count = static_cast<int64_t>(c.blocks.size());
  const int64_t by_lane = rows + 1 + (forward ? 2 * taps + 2 * static_cast<int64_t>(classes.size()) : 0);
  std::vector<Block> blocks(classes.size() * c.blocks.size());
  float *at = scratch<Use::packing>(by_lane * lanes);
  for (ChannelBlock &block : c.blocks) {
    const int64_t width = block.kernel->lanes;
    Packing &to = block.packing;
    to.weight = at;
    to.constant = at + rows * width;
    to.tap_sum = forward ? to.constant + width : nullptr;
    to.tap_abs_sum = forward ? to.tap_sum + taps * width : nullptr;
    at += by_lane * width;
  }
  const auto pack_share = [&](int t, int count) {
    const Share mine = share(block_count, t, count);
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      const ChannelBlock &from = c.blocks[static_cast<std::size_t>(b)];
      const int64_t width = from.kernel->lanes;
      const Packing &to = from.packing;
      const Packer packer = c.packer             ? c.packer
                            : c.view.group_lanes ? pack_by_lane
                                                 : auxiliary_kernels(from.kernel->isa).pack;
      packer(c.view, to, from.kernel->lanes);
      for (int64_t row = 0; from.sums_source && row < rows; ++row)  // max(-infinity, x) = x
        to.weight[row * width + width - 1] = -std::numeric_limits<float>::infinity();
      float *constants = forward ? to.tap_abs_sum + taps * width : to.constant;
      Block *block = &blocks[static_cast<std::size_t>(b)];
      for (const PixelClass &pixels : classes) {
        const int64_t runs = static_cast<int64_t>(pixels.runs.size());
        float *constant = forward ? constants + width : constants;
        *block = {to.weight,           pixels.runs.data(), runs,     rows,           constants,         constant,
                  from.source_channel, from.channel,       to.lanes, c.index.data(), from.source_lanes, c.view.grid,
                  from.sums_source};
        if (forward) {
          class_constants(c, pixels, from, constants, constant);
          constants += 2 * width;
        }
        block += block_count;
      }
    }
  };
  parallel(rows * lanes < kMinPacking ? 1 : static_cast<int>(std::min<int64_t>(threads, block_count)), pack_share);
  return blocks;
}

// Makes a part of each class. If the pixels are too few for all threads, makes one of each class and block.
std::vector<Part> make_parts(const Convolution &c, const std::vector<Block> &blocks, int threads) {
  const std::vector<PixelClass> &classes = c.plan->classes;
  const int64_t block_count = static_cast<int64_t>(c.blocks.size());
  int64_t pixels_in_all = 0;
  for (const PixelClass &pixels : classes) pixels_in_all += c.images * pixels.pixels();
  const int64_t together = pixels_in_all < kFewTiles * kMaxPixels * threads ? 1 : block_count;
  std::vector<Part> parts;
  for (std::size_t k = 0; k < classes.size(); ++k)
    for (int64_t b = 0; b < block_count; b += together) {
      const std::size_t at = static_cast<std::size_t>(b);
      int64_t width = 0;
      for (int64_t i = b; i < b + together; ++i) width += c.blocks[static_cast<std::size_t>(i)].kernel->lanes;
      parts.push_back({&classes[k], &blocks[k * c.blocks.size() + at], &c.blocks[at], together, classes[k].pixels(),
                       (classes[k].steps + kStepsOfATile) * width});
    }
  return parts;
}

}  // namespace

void run(Convolution &c, int threads) {
  if (c.images == 0 || c.plan->classes.empty()) return;  // nothing to compute
  int64_t lanes = 0, work = 0;
  for (const ChannelBlock &block : c.blocks) lanes += block.kernel->lanes;
  for (const PixelClass &pixels : c.plan->classes) work += c.images * pixels.pixels() * (pixels.steps + 1) * lanes;
  threads = static_cast<int>(std::clamp<int64_t>(work / kMinWork, 1, std::max(threads, 1)));

  const std::vector<Block> blocks = pack(c, lanes, threads);
  const std::vector<Part> parts = make_parts(c, blocks, threads);
  int64_t image_cost = 0;
  for (const Part &part : parts) image_cost += part.pixels_an_image * part.cost;

  // A few images at a time go through all classes, so that the next class finds the source in the cache.
  const int64_t floats_an_image = c.source_layout.image + (c.state ? 2 : 1) * c.result_layout.image;
  const int64_t group = std::max<int64_t>(1, kGroupFloats / std::max<int64_t>(1, floats_an_image));
  parallel(threads, [&](int t, int count) {
    // Each thread takes an equal range of the total cost, rounded to whole pixels.
    const Share mine = share(c.images * image_cost, t, count);
    for (int64_t first = 0; first < c.images; first += group) {
      const int64_t images = std::min(group, c.images - first);
      int64_t before = first * image_cost;
      if (before + images * image_cost <= mine.begin) continue;
      if (before >= mine.end) break;
      for (const Part &part : parts) {
        const int64_t pixels = images * part.pixels_an_image, skipped = first * part.pixels_an_image;
        const auto pixel_at = [&](int64_t cost) {
          return cost <= before ? 0 : std::min((cost - before + part.cost - 1) / part.cost, pixels);
        };
        const int64_t begin = pixel_at(mine.begin), end = pixel_at(mine.end);
        if (begin < end) compute(c, part, skipped + begin, skipped + end);
        before += pixels * part.cost;
      }
    }
  });
}

}  // namespace torchadder
