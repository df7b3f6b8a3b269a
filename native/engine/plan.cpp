#include "engine/plan.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "common/error.h"

namespace torchadder::engine {
namespace {

constexpr int64_t kLine = 64;                      // bytes of a cache line
constexpr int64_t kMaxArena = int64_t{1} << 32;    // bytes
constexpr int64_t kMaxNumbers = int64_t{1} << 28;  // in a binary layer's table `base`

int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Memory of the arena that is in use from step `first_use` to step `last_use`, its live range.
struct Buffer {
  Layout *layout;
  int first_use, last_use;
  int64_t size() const { return rounded_up(layout->bytes() + kSlack, kLine); }
};

// Assigns an offset to each buffer, the largest first: the lowest gap that is free during its live range. Returns the
// size of the arena. Without `share`, every buffer has memory of its own.
int64_t assign_offsets(std::vector<Buffer> buffers, bool share) {
  std::stable_sort(buffers.begin(), buffers.end(),
                   [](const Buffer &a, const Buffer &b) { return a.layout->bytes() > b.layout->bytes(); });
  std::vector<Buffer> assigned;  // by offset
  int64_t total = 0;
  for (const Buffer &buffer : buffers) {
    int64_t offset = 0;
    for (const Buffer &other : assigned) {
      if (share && (other.last_use < buffer.first_use || buffer.last_use < other.first_use)) continue;
      if (offset + buffer.size() <= other.layout->offset) break;
      offset = std::max(offset, other.layout->offset + other.size());
    }
    buffer.layout->offset = offset;
    total = std::max(total, offset + buffer.size());
    if (total > kMaxArena) reject("it needs more than %lld bytes to run", static_cast<long long>(kMaxArena));
    const auto after = std::upper_bound(assigned.begin(), assigned.end(), offset,
                                        [](int64_t o, const Buffer &b) { return o < b.layout->offset; });
    assigned.insert(after, buffer);
  }
  return total;
}

std::vector<uint8_t> repeated(const std::vector<uint8_t> &pixel, int64_t count) {
  std::vector<uint8_t> row;
  row.reserve(pixel.size() * static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) row.insert(row.end(), pixel.begin(), pixel.end());
  return row;
}

Layout layout_of(const Shape &shape) {
  Layout layout;
  layout.pixel = shape.channels, layout.height = shape.height, layout.width = shape.width;
  return layout;
}

// Gives each value a halo as wide as the widest padding of the layers that read it there, filled with their zero point.
void add_halos(const Program &program, std::vector<Layout> &values) {
  std::vector<const std::vector<uint8_t> *> zero_points(values.size(), nullptr);
  for (const Step &step : program.steps) {
    if (!step.reads_source() || !step.pads()) continue;
    const auto value = static_cast<std::size_t>(step.source);
    zero_points[value] = &step.zero_point;
    for (int i = 0; i < 4; ++i) values[value].halo[i % 2] = std::max(values[value].halo[i % 2], step.padding[i]);
  }
  for (std::size_t v = 0; v < values.size(); ++v)
    if (zero_points[v]) values[v].border = repeated(*zero_points[v], values[v].width + 2 * values[v].halo[1]);
}

// Plans the copy that a conv layer (numbers of conv_bytes) or a binary layer (signs, as bits or numbers) makes of its
// source.
void plan_copy(const Step &step, const Kernels &kernels, LayerPlan &layer) {
  if (step.reads_source()) return;
  const AuxiliaryKernels &auxiliary = kernels.auxiliary();
  const bool is_binary = step.op == Op::binary, is_packed = is_binary && !step.takes_signs();
  if (is_binary) layer.zero_point_row = repeated(step.zero_point, step.from.width);
  const int number_bytes = step.is_depthwise() ? 1 : auxiliary.conv_bytes;
  const int offset = step.is_depthwise() ? 0 : auxiliary.conv_offset;
  if (!is_binary)
    layer.copies = auxiliary.copy_conv;
  else if (is_packed)
    layer.copies = auxiliary.copy_binary;
  else
    layer.copies = step.is_depthwise() ? auxiliary.copy_signs_depthwise : auxiliary.copy_signs;
  if (!is_packed) layer.source_offset = offset - is_binary;  // a sign is its number less 1
  Layout &copy = layer.copy;
  copy = layout_of(step.from);
  for (int i = 0; i < 4; ++i) copy.halo[i % 2] = std::max(copy.halo[i % 2], step.padding[i]);
  copy.pixel = is_packed ? (step.from.channels + 7) / 8 : step.from.channels * number_bytes;
  if (!copy.halo[0] && !copy.halo[1]) return;
  std::vector<uint8_t> border(static_cast<std::size_t>(copy.pixel));
  for (std::size_t c = 0; !is_packed && c < step.zero_point.size(); ++c)
    border[c * static_cast<std::size_t>(number_bytes)] =
        static_cast<uint8_t>((is_binary ? 1 : step.zero_point[c]) - offset);
  copy.border = repeated(border, copy.width + 2 * copy.halo[1]);
}

// Gives the numbers of each group in a table by channel whole blocks.
std::vector<int32_t> whole_blocks(const std::vector<int32_t> &values, const LayerPlan &layer) {
  if (values.empty()) return {};
  const auto groups = static_cast<std::size_t>(layer.groups), count = values.size() / groups;
  const std::size_t length = static_cast<std::size_t>(layer.blocks) * kBlock;
  std::vector<int32_t> padded(groups * length);
  for (std::size_t i = 0; i < values.size(); ++i) padded[i / count * length + i % count] = values[i];
  return padded;
}

// The parts of a layer's weights that are packed.
struct Filters {
  int64_t in, out, per_row;  // channels of a group, input and output; taps of a row of a patch
  explicit Filters(const Step &step)
      : in(step.from.channels / step.groups),
        out(step.to.channels / step.groups),
        per_row(step.groups > 1 || step.dilation[1] > 1 ? 1 : step.kernel[1]) {}
};

// Writes the weights of one row of a patch in the order of the source's bytes: taps from left to right, channels
// within.
void weight_row(const Step &step, const Kernels &kernels, int64_t channel, int64_t row, uint8_t *to) {
  const Filters filters(step);
  const int64_t taps = step.taps();
  const uint8_t *const filter = step.weight + channel * filters.in * taps + row * filters.per_row;
  for (int64_t tap = 0; tap < filters.per_row; ++tap) {
    if (step.work() == Work::binary) {
      for (int64_t c = 0; c < filters.in; ++c)
        to[c / 8] = static_cast<uint8_t>(to[c / 8] | (filter[c * taps + tap] == 1) << c % 8);
      to += (filters.in + 7) / 8;
    } else if (step.work() == Work::conv && kernels.auxiliary().conv_bytes == 2) {
      for (int64_t c = 0; c < filters.in; ++c, to += 2) {
        const int16_t wide = static_cast<int8_t>(filter[c * taps + tap]);
        std::memcpy(to, &wide, 2);
      }
    } else {
      for (int64_t c = 0; c < filters.in; ++c) *to++ = filter[c * taps + tap];
    }
  }
}

int32_t weight_at(const Step &step, int64_t index) {
  return step.op == Op::adder ? int32_t{step.weight[index]} : int32_t{static_cast<int8_t>(step.weight[index])};
}

void pack_depthwise(const Step &step, LayerPlan &layer) {
  const int64_t taps = step.taps();
  layer.rows = static_cast<int>(taps);
  layer.blocks = static_cast<int>(rounded_up(step.to.channels, kBlock) / kBlock);
  layer.block_bytes = int64_t{layer.blocks} * kBlock * static_cast<int64_t>(sizeof(int32_t));
  layer.weight_bytes = layer.block_bytes * taps;
  layer.weight = aligned_bytes(layer.weight_bytes);
  auto *const to = reinterpret_cast<int32_t *>(layer.weight.get());
  for (int64_t c = 0; c < step.to.channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) to[tap * layer.blocks * kBlock + c] = weight_at(step, c * taps + tap);
}

void pack(const Step &step, const Kernels &kernels, LayerPlan &layer) {
  if (step.is_depthwise()) return pack_depthwise(step, layer);
  const Filters filters(step);
  const int64_t pixel = (layer.copies ? layer.copy.pixel : step.from.channels) / step.groups;
  const int64_t row_bytes = filters.per_row * pixel;
  layer.rows = static_cast<int>(step.taps() / filters.per_row);
  layer.steps = static_cast<int>(rounded_up(row_bytes, kStep) / kStep);
  layer.groups = static_cast<int>(step.groups);
  layer.blocks = static_cast<int>(rounded_up(filters.out, kBlock) / kBlock);
  layer.tail_mask = row_bytes % kStep ? (uint64_t{1} << row_bytes % kStep * 8) - 1 : ~uint64_t{0};
  layer.block_bytes = int64_t{layer.rows} * layer.steps * kBlock * kStep;
  layer.weight_bytes = layer.block_bytes * layer.blocks * layer.groups;
  layer.weight = aligned_bytes(layer.weight_bytes);
  std::vector<uint8_t> row(static_cast<std::size_t>(layer.steps) * kStep);
  for (int64_t c = 0; c < step.to.channels; ++c) {
    const int64_t within = c % filters.out, block = c / filters.out * layer.blocks + within / kBlock;
    const int *const order = kernels.auxiliary().lane_order;
    const int64_t place = std::find(order, order + kBlock, static_cast<int>(within % kBlock)) - order;
    uint8_t *to = layer.weight.get() + block * layer.block_bytes + place * kStep;
    for (int64_t r = 0; r < layer.rows; ++r) {
      std::fill(row.begin(), row.end(), uint8_t{0});
      weight_row(step, kernels, c, r, row.data());
      for (int s = 0; s < layer.steps; ++s, to += kBlock * kStep)
        std::memcpy(to, row.data() + static_cast<std::size_t>(s) * kStep, kStep);
    }
  }
}

// Computes where the rows of a patch begin in the layout that the layer reads.
void plan_rows(const Step &step, const Layout &source, LayerPlan &layer) {
  const int64_t per_row = step.taps() / layer.rows;
  for (int64_t tap = 0; tap < step.taps(); tap += per_row)
    layer.row_offset.push_back(tap / step.kernel[1] * step.dilation[0] * source.row() +
                               tap % step.kernel[1] * step.dilation[1] * source.pixel);
}

void sum_weights(const Step &step, LayerPlan &layer) {
  const int64_t filter = step.from.channels / step.groups * step.taps();
  layer.weight_sum.assign(static_cast<std::size_t>(step.to.channels), 0);
  for (int64_t i = 0; i < step.to.channels * filter; ++i)
    layer.weight_sum[static_cast<std::size_t>(i / filter)] += weight_at(step, i);
  layer.weight_sum = whole_blocks(layer.weight_sum, layer);
}

// Returns whether a layer computes the next step as well: a max pooling of 2 x 2 of the layer's value.
bool pools(const Program &program, std::size_t number, const Kernels &kernels) {
  const Step &step = program.steps[number];
  if (!step.is_layer() || step.shortcut >= 0 || !kernels.pooling_layer(step)) return false;
  const Step &next = program.steps[number + 1];
  return next.op == Op::max_pool && next.source == static_cast<int>(number) + 1 && !next.pads() &&
         next.kernel[0] == 2 && next.kernel[1] == 2 && next.stride[0] == 2 && next.stride[1] == 2;
}

// The ranges [first, last) of kernel taps that lie inside the image along one axis, without repetition, and the class
// of each output position: the index of its range.
struct AxisClasses {
  std::vector<int32_t> classes;
  std::vector<std::pair<int64_t, int64_t>> taps;
  AxisClasses(const Step &step, int axis, int64_t size, int64_t size_out) {
    for (int64_t at = 0; at < size_out; ++at) {
      const int64_t first = at * step.stride[axis] - step.padding[axis];
      const auto tap = [&](int64_t of) { return std::clamp<int64_t>(of - first, 0, step.kernel[axis]); };
      const std::pair<int64_t, int64_t> inside{tap(0), tap(size)};
      if (taps.empty() || taps.back() != inside) taps.push_back(inside);
      classes.push_back(static_cast<int32_t>(taps.size() - 1));
    }
  }
};

// A binary accumulator is base - 2 * differing bits. The source has no bits in the padding. So base is a sum
// over taps: C_in for a tap inside the image, twice the number of bits in the weight for a tap in the padding.
void plan_base(const Step &step, LayerPlan &layer) {
  const AxisClasses rows(step, 0, step.from.height, step.to.height), columns(step, 1, step.from.width, step.to.width);
  const int64_t channels = int64_t{layer.blocks} * kBlock, c_in = step.from.channels;
  const int64_t kh = step.kernel[0], kw = step.kernel[1], taps = step.taps();
  const auto classes = static_cast<int64_t>(rows.taps.size() * columns.taps.size());
  if (classes > kMaxNumbers / channels || c_in * taps > kMaxNumbers)
    reject("a binary layer needs a table of more than %lld numbers", static_cast<long long>(kMaxNumbers));
  layer.row_class = rows.classes, layer.column_class = columns.classes;
  for (int32_t &row : layer.row_class) row *= static_cast<int32_t>(columns.taps.size());
  layer.base.assign(static_cast<std::size_t>(classes * channels), 0);
  std::vector<int32_t> prefix(static_cast<std::size_t>((kh + 1) * (kw + 1)));  // sums of 2 * bits over [0, a) x [0, b)
  const auto sum = [&](int64_t a, int64_t b) -> int32_t & {
    return prefix[static_cast<std::size_t>(a * (kw + 1) + b)];
  };
  for (int64_t o = 0; o < step.to.channels; ++o) {
    for (int64_t a = 0; a < kh; ++a)
      for (int64_t b = 0; b < kw; ++b) {
        int32_t bits = 0;
        for (int64_t c = 0; c < c_in; ++c) bits += step.weight[(o * c_in + c) * taps + a * kw + b] == 1;
        sum(a + 1, b + 1) = sum(a, b + 1) + sum(a + 1, b) - sum(a, b) + 2 * bits;
      }
    int32_t *to = layer.base.data() + o;
    for (const auto &[top, bottom] : rows.taps)
      for (const auto &[left, right] : columns.taps) {
        const int32_t inside = sum(bottom, right) - sum(top, right) - sum(bottom, left) + sum(top, left);
        *to = static_cast<int32_t>((bottom - top) * (right - left) * c_in) + sum(kh, kw) - inside;
        to += channels;
      }
  }
}

}  // namespace

void AlignedDelete::operator()(uint8_t *bytes) const { ::operator delete[](bytes, std::align_val_t{kLine}); }

Bytes aligned_bytes(int64_t size) {
  const auto whole = static_cast<std::size_t>(rounded_up(size + kSlack, kLine));
  Bytes bytes(static_cast<uint8_t *>(::operator new[](whole, std::align_val_t{kLine})));
  std::memset(bytes.get(), 0, whole);
  return bytes;
}

Plan::Plan(Program of, const Kernels *chosen, bool keep_values) : program(std::move(of)), kernels(chosen) {
  const int count = static_cast<int>(program.steps.size());
  values.push_back(layout_of(program.shape));
  std::vector<int> last_use(program.steps.size(), 0), readers(program.steps.size(), 0);
  for (int i = 0; i < count; ++i) {
    const Step &step = program.steps[static_cast<std::size_t>(i)];
    const auto reads = [&](int value) {
      last_use[static_cast<std::size_t>(value)] = i;
      ++readers[static_cast<std::size_t>(value)];
    };
    reads(step.source);
    if (step.shortcut >= 0) reads(step.shortcut);
    for (const int value : step.others) reads(value);
    if (i + 1 < count) values.push_back(layout_of(step.to));
  }
  add_halos(program, values);
  layers.resize(program.steps.size());
  for (std::size_t i = 0; i + 1 < layers.size(); ++i)
    layers[i].pools = !keep_values && readers[i + 1] == 1 && pools(program, i, *kernels);
  std::vector<Buffer> buffers;
  for (int v = 0; v < count; ++v) {
    const auto at = static_cast<std::size_t>(v);
    if (v > 0 && layers[at - 1].pools) continue;
    const int written = v > 1 && is_in_layer_before(at - 1) ? v - 2 : v - 1;
    buffers.push_back({&values[at], written, std::max(last_use[at], v - 1)});  // written even if no step reads it
  }
  weight_bytes = 0;
  for (int i = 0; i < count; ++i) {
    Step &step = program.steps[static_cast<std::size_t>(i)];
    if (!step.is_layer()) continue;
    LayerPlan &layer = layers[static_cast<std::size_t>(i)];
    plan_copy(step, *kernels, layer);
    if (layer.copies) buffers.push_back({&layer.copy, i, i});
    pack(step, *kernels, layer);
    plan_rows(step, layer.copies ? layer.copy : values[static_cast<std::size_t>(step.source)], layer);
    if (step.work() == Work::binary)
      plan_base(step, layer);
    else
      sum_weights(step, layer);
    layer.multiplier = whole_blocks(step.requantization.multiplier, layer);
    layer.offset = whole_blocks(step.requantization.offset, layer);
    layer.shift = whole_blocks(step.requantization.shift, layer);
    layer.factor = whole_blocks(step.requantization.factor, layer);
    weight_bytes += layer.weight_bytes;
    step.weight = nullptr;
  }
  program.unpacked.clear();
  arena_bytes = assign_offsets(std::move(buffers), !keep_values);
}

}  // namespace torchadder::engine
