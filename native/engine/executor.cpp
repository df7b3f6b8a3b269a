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
    if (step.is_layer())
      layer(i, image, arena, team);
    else if (step.op == Op::max_pool)
      max_pool(i, arena, team);
    else
      average_pool(i, arena, team);
    if (i + 1 < plan_.values.size()) fill_border(plan_.values[i + 1], arena, team.member, team.size);
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
  if (layer.copies_source) {
    const CopyJob copy{
        arena + from->origin(),      from->row(),     from->width, step.from.channels, layer.zero_point_row.data(),
        arena + layer.copy.origin(), layer.copy.row()};
    const Share rows = share(from->height, team.member, team.size);
    (step.op == Op::binary ? kernels.auxiliary().copy_binary : kernels.auxiliary().copy_conv)(copy, rows.begin,
                                                                                              rows.end);
    fill_border(layer.copy, arena, team.member, team.size);
    from = &layer.copy;
    team.wait();
  }
  LayerJob job{};
  job.source = arena + from->origin() - step.padding[0] * from->row() - step.padding[1] * from->pixel;
  job.source_row = step.stride[0] * from->row();
  job.source_pixel = step.stride[1] * from->pixel;
  job.kernel_row = from->row();
  job.rows = layer.rows, job.steps = layer.steps, job.tail_mask = layer.tail_mask;
  job.weight = layer.weight.get(), job.block_bytes = layer.block_bytes;
  job.width = step.to.width;
  job.channels = static_cast<int>(step.to.channels);
  job.weight_sum = layer.weight_sum.data();
  job.base = layer.base.data(), job.base_class = int64_t{layer.blocks} * kBlock;
  job.row_class = layer.row_class.data(), job.column_class = layer.column_class.data();
  if (number + 1 < plan_.values.size()) {
    const Layout &to = plan_.values[number + 1];
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
    job.logits = image.logits, job.scale = step.logits.scale.data(), job.bias = step.logits.bias.data();
  }
  // Threads share the pixels, and all read the same weights. With fewer than 16 pixels a thread they share the blocks,
  // in pairs, because a kernel may compute two blocks at once.
  const int64_t pixels = step.to.height * step.to.width, pairs = (layer.blocks + 1) / 2;
  Part part{0, pixels, 0, layer.blocks};
  if (pixels >= 16 * team.size) {
    const Share some = share(pixels, team.member, team.size);
    part.first = some.begin, part.last = some.end;
  } else {
    const Share some = share(pairs, team.member, team.size);
    part.first_block = static_cast<int>(2 * some.begin);
    part.last_block = std::min(layer.blocks, static_cast<int>(2 * some.end));
  }
  kernels.layer(step.op)(job, part);
}

void Executor::max_pool(std::size_t number, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  const Layout &from = plan_.values[static_cast<std::size_t>(step.source)], &to = plan_.values[number + 1];
  const Share rows = share(step.to.height, team.member, team.size);
  plan_.kernels->auxiliary().max_pool(
      {arena + from.origin(), from.row(), from.height, from.width, from.pixel, step.kernel[0], step.stride[0],
       step.padding[0], arena + to.origin(), to.row(), to.width},
      rows.begin, rows.end);
}

void Executor::average_pool(std::size_t number, uint8_t *arena, const Team &team) const {
  const Step &step = plan_.program.steps[number];
  const Layout &from = plan_.values[static_cast<std::size_t>(step.source)], &to = plan_.values[number + 1];
  const Requantization &r = step.requantization;
  PoolJob job{};
  job.source_row = from.row(), job.channels = from.pixel;
  job.height = step.kernel[0], job.width = step.kernel[1];
  const Share channels = share(step.to.channels, team.member, team.size);
  constexpr int64_t kRun = 256;
  int32_t sums[kRun];
  for (int64_t y = 0; y < step.to.height; ++y)
    for (int64_t x = 0; x < step.to.width; ++x) {
      job.source = arena + from.origin() + y * step.stride[0] * from.row() + x * step.stride[1] * from.pixel;
      uint8_t *const result = arena + to.origin() + y * to.row() + x * to.pixel;
      for (int64_t first = channels.begin; first < channels.end; first += kRun) {
        const int64_t last = std::min(first + kRun, channels.end);
        plan_.kernels->auxiliary().channel_sums(job, first, last, sums);
        for (int64_t c = first; c < last; ++c) {
          const auto at = static_cast<std::size_t>(c);
          result[c] = requantize(sums[c - first], r.pre_shift, r.multiplier[at], r.offset[at], r.shift[at], r.qmax);
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
