#include "engine/executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "common/threads.h"

namespace torchadder::engine {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Fills the halo of the rows of a layout that are this member's share.
void fill_border(const Layout &layout, uint8_t *arena, int member, int size) {
  if (layout.border.empty()) return;
  const Share rows = share(layout.rows(), member, size);
  const auto side = static_cast<std::size_t>(layout.halo[1] * layout.pixel);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    uint8_t *const row = arena + layout.offset + r * layout.row();
    if (r < layout.halo[0] || r >= layout.rows() - layout.halo[0]) {
      std::memcpy(row, layout.border.data(), layout.border.size());
    } else if (side) {
      std::memcpy(row, layout.border.data(), side);
      std::memcpy(row + layout.row() - static_cast<int64_t>(side), layout.border.data(), side);
    }
  }
}

// Moves a job to the next group of a layer, whose channels have `bytes` in a pixel of the source.
void next_group(LayerJob &job, const LayerPlan &layer, int64_t bytes) {
  const int64_t channels = int64_t{layer.blocks} * kBlock;
  job.source += bytes;
  job.weight += layer.blocks * layer.block_bytes;
  job.weight_sum += channels;
  if (job.logits) {
    job.logits += job.channels, job.scale += job.channels, job.bias += job.channels;
    return;
  }
  job.result += job.channels;
  job.multiplier += channels, job.offset += channels, job.shift += channels;
  if (job.shortcut) job.shortcut += job.channels, job.factor += channels;
}

}  // namespace

Executor::Executor(Plan plan, int threads) : plan_(std::move(plan)) {
  for (int t = 0; t < std::max(threads, 1); ++t) arenas_.push_back(aligned_bytes(plan_.arena_bytes));
}

void Executor::Barrier::wait(int size) {
  constexpr int kSpins = 2000;  // some microseconds
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    if (spins >= kSpins) std::this_thread::yield();
#if defined(__x86_64__)
    else
      __builtin_ia32_pause();
#elif defined(__aarch64__)
    else
      asm volatile("yield");
#endif
  }
}

void Executor::run(const float *images, const uint8_t *q, int64_t count, float *logits, double *seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t size = plan_.program.shape.size(), classes = plan_.program.steps.back().to.channels;
  const auto image = [&](int64_t i) {
    return Image{images ? images + i * size : nullptr, q ? q + i * size : nullptr, logits + i * classes};
  };
  team(threads(), [&](int member, int members) {
    const int64_t whole = count / members * members;
    double *const times = member ? nullptr : seconds;
    for (int64_t i = member; i < whole; i += members)
      run_image(image(i), arenas_[static_cast<std::size_t>(member)].get(), {0, 1, nullptr}, times);
    if (whole == count) return;
    const Team all{member, members, &barrier_};
    all.wait();
    for (int64_t i = whole; i < count; ++i) run_image(image(i), arenas_[0].get(), all, times);
  });
}

void Executor::run_image(const Image &image, uint8_t *arena, const Team &team, double *seconds) const {
  double before = seconds ? now() : 0;
  const auto end_step = [&](std::size_t at) {
    team.wait();
    if (!seconds) return;
    const double after = now();
    seconds[at] += after - before;
    before = after;
  };
  input(image, arena, team);
  end_step(0);
  for (std::size_t i = 0; i < plan_.program.steps.size(); ++i) {
    const Step &step = plan_.program.steps[i];
    if (plan_.is_in_layer_before(i)) continue;
    if (step.is_layer())
      layer(i, image, arena, team);
    else if (step.op == Op::max_pool)
      max_pool(i, arena, team);
    else if (step.op == Op::table)
      table(i, arena, team);
    else if (step.op == Op::concat)
      concat(i, arena, team);
    else
      average_pool(i, arena, team);
    if (const std::size_t value = plan_.value_of(i); value < plan_.values.size())
      fill_border(plan_.values[value], arena, team.member, team.size);
    end_step(i + 1);
  }
}

void Executor::input(const Image &image, uint8_t *arena, const Team &team) const {
  const Program &program = plan_.program;
  const Layout &to = plan_.values[0];
  const Shape &shape = program.shape;
  const Share rows = share(shape.height, team.member, team.size);
  fill_border(to, arena, team.member, team.size);
  uint8_t *const origin = arena + to.origin();
  if (image.x) {
    plan_.kernels->auxiliary().quantize({image.x, shape.height, shape.width, shape.channels, program.scale.data(),
                                         program.zero_point.data(), program.qmax, origin, to.row()},
                                        rows.begin, rows.end);
    return;
  }
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t c = 0; c < shape.channels; ++c) {
      const uint8_t *const from = image.q + (c * shape.height + y) * shape.width;
      uint8_t *const row = origin + y * to.row() + c;
      for (int64_t x = 0; x < shape.width; ++x) row[x * shape.channels] = from[x];
    }
}

void Executor::layer(std::size_t number, const Image &image, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  const LayerPlan &layer = plan_.layers[number];
  const Kernels &kernels = *plan_.kernels;
  const Layout *from = &plan_.values[static_cast<std::size_t>(step.source)];
  if (layer.copies) {
    const CopyJob copy{
        arena + from->origin(),      from->row(),     from->width, step.from.channels, layer.zero_point_row.data(),
        arena + layer.copy.origin(), layer.copy.row()};
    const Share rows = share(from->height, team.member, team.size);
    layer.copies(copy, rows.begin, rows.end);
    fill_border(layer.copy, arena, team.member, team.size);
    from = &layer.copy;
    team.wait();
  }
  LayerJob job{};
  job.source = arena + from->origin() - step.padding[0] * from->row() - step.padding[1] * from->pixel;
  job.source_row = step.stride[0] * from->row();
  job.source_pixel = step.stride[1] * from->pixel;
  if (layer.pools) {
    for (int p = 0; p < kWindow; ++p) job.window[p] = p / 2 * job.source_row + p % 2 * job.source_pixel;
    job.source_row *= 2, job.source_pixel *= 2;
  }
  job.row_offset = layer.row_offset.data();
  job.rows = layer.rows, job.steps = layer.steps, job.tail_mask = layer.tail_mask;
  job.weight = layer.weight.get(), job.block_bytes = layer.block_bytes;
  job.channels = static_cast<int>(step.to.channels / layer.groups);
  job.source_offset = layer.source_offset;
  job.weight_sum = layer.weight_sum.data();
  job.base = layer.base.data(), job.base_class = int64_t{layer.blocks} * kBlock;
  job.row_class = layer.row_class.data(), job.column_class = layer.column_class.data();
  int64_t pixels = 1;
  if (const std::size_t value = plan_.value_of(number); value < plan_.values.size()) {
    const Layout &to = plan_.values[value];
    job.width = to.width, pixels = to.height * to.width;
    job.multiplier = layer.multiplier.data(), job.offset = layer.offset.data(), job.shift = layer.shift.data();
    job.qmax = step.requantization.qmax, job.pre_shift = step.requantization.pre_shift;
    job.result = arena + to.origin(), job.result_row = to.row(), job.result_pixel = to.pixel;
    if (step.shortcut >= 0) {
      const Layout &shortcut = plan_.values[static_cast<std::size_t>(step.shortcut)];
      job.factor = layer.factor.data();
      job.shortcut = arena + shortcut.origin();
      job.shortcut_row = shortcut.row(), job.shortcut_pixel = shortcut.pixel;
    }
  } else {
    job.width = 1;
    job.logits = image.logits, job.scale = step.logits.scale.data(), job.bias = step.logits.bias.data();
  }
  // Threads share the pixels, and all read the same weights. With fewer than 16 pixels a thread they share the blocks,
  // in pairs, because a kernel may compute two blocks at once.
  const int64_t pairs = (layer.blocks + 1) / 2;
  Part part{0, pixels, 0, layer.blocks};
  if (pixels >= 16 * team.size) {
    const Share some = share(pixels, team.member, team.size);
    part.first = some.begin, part.last = some.end;
  } else {
    const Share some = share(pairs, team.member, team.size);
    part.first_block = static_cast<int>(2 * some.begin);
    part.last_block = std::min(layer.blocks, static_cast<int>(2 * some.end));
  }
  for (int group = 0; group < layer.groups; ++group) {
    (layer.pools ? kernels.pooling_layer(step) : kernels.layer(step))(job, part);
    next_group(job, layer, from->pixel / layer.groups);
  }
}

void Executor::max_pool(std::size_t number, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  const Layout &from = plan_.values[static_cast<std::size_t>(step.source)], &to = plan_.values[number + 1];
  const Share rows = share(step.to.height, team.member, team.size);
  PoolJob job{arena + from.origin(), from.row(), from.height, from.width, from.pixel, {}, {}, {},
              arena + to.origin(),   to.row(),   to.width};
  for (int i = 0; i < 2; ++i)
    job.kernel[i] = step.kernel[i], job.stride[i] = step.stride[i], job.padding[i] = step.padding[i];
  plan_.kernels->auxiliary().max_pool(job, rows.begin, rows.end);
}

void Executor::table(std::size_t number, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  const Layout &from = plan_.values[static_cast<std::size_t>(step.source)], &to = plan_.values[number + 1];
  const Share rows = share(step.to.height, team.member, team.size);
  const uint8_t *const table = step.table.data();
  const int64_t channels = step.to.channels, next = step.table.size() > 256 ? 256 : 0;
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const uint8_t *q = arena + from.origin() + y * from.row();
    uint8_t *result = arena + to.origin() + y * to.row();
    for (int64_t x = 0; x < step.to.width; ++x)
      for (int64_t c = 0; c < channels; ++c) *result++ = table[c * next + *q++];
  }
}

// Requantizes rows of `value` to channels of the step's output from `channel` on; strides in bytes.
void Executor::requantize_rows(std::size_t number, uint8_t *arena, const Team &team, int value, int64_t channel) const {
  const Step &step = plan_.program.steps[number];
  const Requantization &r = step.requantization;
  const Layout &from = plan_.values[static_cast<std::size_t>(value)], &to = plan_.values[number + 1];
  const bool is_pool = step.op == Op::average_pool;
  const Share rows = share(to.height, team.member, team.size);
  const ValuesJob job{arena + from.origin(),
                      from.row() * (is_pool ? step.stride[0] : 1),
                      from.pixel * (is_pool ? step.stride[1] : 1),
                      to.width,
                      from.pixel,
                      r.multiplier.data() + channel,
                      r.offset.data() + channel,
                      r.shift.data() + channel,
                      r.qmax,
                      r.pre_shift,
                      arena + to.origin() + channel,
                      to.row(),
                      to.pixel};
  plan_.kernels->auxiliary().requantize_values(job, rows.begin, rows.end);
}

void Executor::concat(std::size_t number, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  requantize_rows(number, arena, team, step.source, 0);
  int64_t channel = step.from.channels;
  for (const int value : step.others) {
    requantize_rows(number, arena, team, value, channel);
    channel += plan_.values[static_cast<std::size_t>(value)].pixel;
  }
}

void Executor::average_pool(std::size_t number, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  if (step.taps() == 1 && !step.pads()) return requantize_rows(number, arena, team, step.source, 0);
  const Layout &from = plan_.values[static_cast<std::size_t>(step.source)], &to = plan_.values[number + 1];
  const Requantization &r = step.requantization;
  PoolJob job{};
  job.source_row = from.row(), job.channels = from.pixel;
  const Share channels = share(step.to.channels, team.member, team.size);
  constexpr int64_t kRun = 256;
  int32_t sums[kRun];
  for (int64_t y = 0; y < step.to.height; ++y)
    for (int64_t x = 0; x < step.to.width; ++x) {
      const auto [top, bottom] = step.window(0, y);
      const auto [left, right] = step.window(1, x);
      job.height = bottom - top, job.width = right - left;
      job.source = arena + from.origin() + top * from.row() + left * from.pixel;
      const auto factor = static_cast<int32_t>(step.mean_unit / (job.height * job.width));
      uint8_t *const result = arena + to.origin() + y * to.row() + x * to.pixel;
      for (int64_t first = channels.begin; first < channels.end; first += kRun) {
        const int64_t last = std::min(first + kRun, channels.end);
        plan_.kernels->auxiliary().channel_sums(job, first, last, sums);
        for (int64_t c = first; c < last; ++c) {
          const auto at = static_cast<std::size_t>(c);
          const int32_t mean = sums[c - first] * factor;
          result[c] = requantize(mean, r.pre_shift, r.multiplier[at], r.offset[at], r.shift[at], r.qmax);
        }
      }
    }
}

void Executor::value(int index, uint8_t *q) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Layout &layout = plan_.values[static_cast<std::size_t>(index)];
  for (int64_t c = 0; c < layout.pixel; ++c)
    for (int64_t y = 0; y < layout.height; ++y)
      for (int64_t x = 0; x < layout.width; ++x)
        *q++ = arenas_[0][static_cast<std::size_t>(layout.origin() + y * layout.row() + x * layout.pixel + c)];
}

}  // namespace torchadder::engine
