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

// Gives each value a halo as wide as the widest padding of the adder layers that read it, filled with their zero point.
void add_halos(const Program &program, std::vector<Layout> &values) {
  std::vector<const std::vector<uint8_t> *> zero_points(values.size(), nullptr);
  for (const Step &step : program.steps) {
    if (step.op != Op::adder || !(step.padding[0] || step.padding[1])) continue;
    const auto value = static_cast<std::size_t>(step.source);
    zero_points[value] = &step.zero_point;
    for (int i = 0; i < 2; ++i) values[value].halo[i] = std::max(values[value].halo[i], step.padding[i]);
  }
  for (std::size_t v = 0; v < values.size(); ++v)
    if (zero_points[v]) values[v].border = repeated(*zero_points[v], values[v].width + 2 * values[v].halo[1]);
}

// Plans the copy that a conv layer (numbers of conv_bytes) or a binary layer (signs as bits) makes of its source.
void plan_copy(const Step &step, const Kernels &kernels, LayerPlan &layer) {
  layer.copies_source = step.op != Op::adder;
  if (!layer.copies_source) return;
  Layout &copy = layer.copy;
  copy = layout_of(step.from);
  std::copy(step.padding, step.padding + 2, copy.halo);
  std::vector<uint8_t> border;
  if (step.op == Op::binary) {
    copy.pixel = (step.from.channels + 7) / 8;
    border.resize(static_cast<std::size_t>(copy.pixel));
    layer.zero_point_row = repeated(step.zero_point, step.from.width);
  } else {
    copy.pixel = step.from.channels * kernels.auxiliary().conv_bytes;
    for (const uint8_t zero_point : step.zero_point) {
      border.push_back(static_cast<uint8_t>(zero_point - kernels.auxiliary().conv_offset));
      if (kernels.auxiliary().conv_bytes == 2) border.push_back(0);
    }
  }
  if (copy.halo[0] || copy.halo[1]) copy.border = repeated(border, copy.width + 2 * copy.halo[1]);
}

// Writes one kernel row of one filter in the order of the source's bytes: taps from left to right, channels within.
void weight_row(const Step &step, const Kernels &kernels, int64_t channel, int64_t row, uint8_t *to) {
  const int64_t c_in = step.from.channels, width = step.kernel[1], taps = step.taps();
  const uint8_t *const filter = step.weight + channel * c_in * taps + row * width;
  for (int64_t tap = 0; tap < width; ++tap) {
    if (step.op == Op::binary) {
      for (int64_t c = 0; c < c_in; ++c)
        to[c / 8] = static_cast<uint8_t>(to[c / 8] | (filter[c * taps + tap] == 1) << c % 8);
      to += (c_in + 7) / 8;
    } else if (step.op == Op::conv && kernels.auxiliary().conv_bytes == 2) {
      for (int64_t c = 0; c < c_in; ++c, to += 2) {
        const int16_t wide = static_cast<int8_t>(filter[c * taps + tap]);
        std::memcpy(to, &wide, 2);
      }
    } else {
      for (int64_t c = 0; c < c_in; ++c) *to++ = filter[c * taps + tap];
    }
  }
}

void pack(const Step &step, const Kernels &kernels, LayerPlan &layer) {
  const int64_t pixel = layer.copies_source ? layer.copy.pixel : step.from.channels;
  const int64_t row_bytes = step.kernel[1] * pixel;
  layer.rows = static_cast<int>(step.kernel[0]);
  layer.steps = static_cast<int>(rounded_up(row_bytes, kStep) / kStep);
  layer.blocks = static_cast<int>(rounded_up(step.to.channels, kBlock) / kBlock);
  layer.tail_mask = row_bytes % kStep ? (uint64_t{1} << row_bytes % kStep * 8) - 1 : ~uint64_t{0};
  layer.block_bytes = int64_t{layer.rows} * layer.steps * kBlock * kStep;
  layer.weight = aligned_bytes(layer.block_bytes * layer.blocks);
  std::vector<uint8_t> row(static_cast<std::size_t>(layer.steps) * kStep);
  for (int64_t c = 0; c < step.to.channels; ++c) {
    const int *const order = kernels.auxiliary().lane_order;
    const int64_t place = std::find(order, order + kBlock, static_cast<int>(c % kBlock)) - order;
    uint8_t *to = layer.weight.get() + c / kBlock * layer.block_bytes + place * kStep;
    for (int64_t r = 0; r < step.kernel[0]; ++r) {
      std::fill(row.begin(), row.end(), uint8_t{0});
      weight_row(step, kernels, c, r, row.data());
      for (int s = 0; s < layer.steps; ++s, to += kBlock * kStep)
        std::memcpy(to, row.data() + static_cast<std::size_t>(s) * kStep, kStep);
    }
  }
}

void sum_weights(const Step &step, LayerPlan &layer) {
  const int64_t filter = step.from.channels * step.taps();
  layer.weight_sum.assign(static_cast<std::size_t>(layer.blocks) * kBlock, 0);
  for (int64_t i = 0; i < step.to.channels * filter; ++i)
    layer.weight_sum[static_cast<std::size_t>(i / filter)] +=
        step.op == Op::conv ? static_cast<int8_t>(step.weight[i]) : step.weight[i];
}

// The ranges [first, last) of kernel taps that lie inside the image along one axis, without repetition, and the class
// of each output position: the index of its range.
struct AxisClasses {
  std::vector<int32_t> classes;
  std::vector<std::pair<int64_t, int64_t>> taps;
  AxisClasses(const Step &step, int axis, int64_t size, int64_t size_out) {
    for (int64_t at = 0; at < size_out; ++at) {
      const int64_t first = at * step.stride[axis] - step.padding[axis];
      const std::pair<int64_t, int64_t> inside{std::max<int64_t>(0, -first), std::min(step.kernel[axis], size - first)};
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

// Pads a table by channel to whole blocks.
std::vector<int32_t> whole_blocks(const std::vector<int32_t> &values, int blocks) {
  std::vector<int32_t> padded(values);
  if (!padded.empty()) padded.resize(static_cast<std::size_t>(blocks) * kBlock);
  return padded;
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
  std::vector<int> last_use(program.steps.size(), 0);
  for (int i = 0; i < count; ++i) {
    const Step &step = program.steps[static_cast<std::size_t>(i)];
    last_use[static_cast<std::size_t>(step.source)] = i;
    if (step.shortcut >= 0) last_use[static_cast<std::size_t>(step.shortcut)] = i;
    if (i + 1 < count) values.push_back(layout_of(step.to));
  }
  add_halos(program, values);
  layers.resize(program.steps.size());
  std::vector<Buffer> buffers;
  for (int v = 0; v < count; ++v) {
    const auto at = static_cast<std::size_t>(v);
    buffers.push_back({&values[at], v - 1, std::max(last_use[at], v - 1)});  // written even if no step reads it
  }
  weight_bytes = 0;
  for (int i = 0; i < count; ++i) {
    Step &step = program.steps[static_cast<std::size_t>(i)];
    if (!step.is_layer()) continue;
    LayerPlan &layer = layers[static_cast<std::size_t>(i)];
    plan_copy(step, *kernels, layer);
    if (layer.copies_source) buffers.push_back({&layer.copy, i, i});
    pack(step, *kernels, layer);
    if (step.op == Op::binary)
      plan_base(step, layer);
    else
      sum_weights(step, layer);
    layer.multiplier = whole_blocks(step.requantization.multiplier, layer.blocks);
    layer.offset = whole_blocks(step.requantization.offset, layer.blocks);
    layer.shift = whole_blocks(step.requantization.shift, layer.blocks);
    layer.factor = whole_blocks(step.requantization.factor, layer.blocks);
    weight_bytes += layer.block_bytes * layer.blocks;
    step.weight = nullptr;
  }
  arena_bytes = assign_offsets(std::move(buffers), !keep_values);
}

}  // namespace torchadder::engine
