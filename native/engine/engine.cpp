// The engine's C interface.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

#include "common/error.h"
#include "common/threads.h"
#include "engine/executor.h"
#include "engine/kernels.h"
#include "torchadder_engine.h"

using namespace torchadder::engine;
using torchadder::Call;
using torchadder::fail;

struct torchadder_engine {
  Executor executor;
  int64_t file_bytes;
  bool keep_values;
  torchadder_engine(Plan plan, int threads, int64_t size, bool keep)
      : executor(std::move(plan), threads), file_bytes(size), keep_values(keep) {}
};

namespace {

constexpr int kMaxThreads = 1024;

struct Close {
  void operator()(std::FILE *file) const { std::fclose(file); }
};

// Reads a whole file. Returns -1, as fail() does, if it cannot.
int read_file(const char *path, std::vector<char> &bytes) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path, "rb"));
  if (!file) return fail("cannot read %s: %s", path, std::strerror(errno));
  char chunk[1 << 16];
  std::size_t count;
  while ((count = std::fread(chunk, 1, sizeof chunk, file.get())) > 0) bytes.insert(bytes.end(), chunk, chunk + count);
  return std::ferror(file.get()) ? fail("cannot read %s: %s", path, std::strerror(errno)) : 0;
}

int run(torchadder_engine *engine, const float *images, const uint8_t *q, int64_t count, float *logits,
        double *seconds) {
  if (count < 0) return fail("%lld images: expected 0 or more", static_cast<long long>(count));
  const Call call;
  engine->executor.run(images, q, count, logits, seconds);
  return 0;
}

}  // namespace

extern "C" {

int torchadder_engine_check(const void *bytes, size_t size) {
  const Call call;
  try {
    Program::read({static_cast<const char *>(bytes), size});
    return 0;
  } catch (const std::bad_alloc &) {
    return fail("it needs more memory than there is");
  } catch (const std::exception &error) {
    return fail("%s", error.what());
  }
}

torchadder_engine *torchadder_engine_load(const char *path, int threads) {
  try {
    std::vector<char> bytes;
    if (read_file(path, bytes)) return nullptr;
    torchadder_engine *const engine = torchadder_engine_read(bytes.data(), bytes.size(), threads, nullptr, 0);
    if (!engine) fail("cannot load %s: %s", path, std::string(torchadder_last_error()).c_str());
    return engine;
  } catch (const std::exception &error) {
    fail("cannot load %s: %s", path, error.what());
    return nullptr;
  }
}

torchadder_engine *torchadder_engine_read(const void *bytes, size_t size, int threads, const char *isa,
                                          int keep_values) {
  if (threads < 1 || threads > kMaxThreads) {
    fail("%d threads: expected 1 to %d", threads, kMaxThreads);
    return nullptr;
  }
  if (!torchadder::is_selected()) return nullptr;
  const Call call;
  const Kernels *const kernels = Kernels::find(isa && *isa ? isa : nullptr);
  if (!kernels) {
    fail("isa=%s is not available on this CPU: choose one of %s", isa, Kernels::names().c_str());
    return nullptr;
  }
  try {
    Program program = Program::read({static_cast<const char *>(bytes), size});
    return new torchadder_engine(Plan(std::move(program), kernels, keep_values), threads, static_cast<int64_t>(size),
                                 keep_values != 0);
  } catch (const std::bad_alloc &) {
    fail("it needs more memory than there is");
  } catch (const std::exception &error) {
    fail("%s", error.what());
  }
  return nullptr;
}

void torchadder_engine_free(torchadder_engine *engine) { delete engine; }

torchadder_engine_about torchadder_engine_describe(const torchadder_engine *engine) {
  const Plan &plan = engine->executor.plan();
  const Shape &shape = plan.program.shape;
  const int threads = engine->executor.threads();
  return {shape.channels,
          shape.height,
          shape.width,
          plan.program.steps.back().to.channels,
          engine->file_bytes,
          plan.weight_bytes,
          plan.arena_bytes * threads,
          threads,
          static_cast<int>(plan.program.steps.size())};
}

const char *torchadder_engine_kernel(const torchadder_engine *engine, int step) {
  const Plan &plan = engine->executor.plan();
  if (step < 0 || step >= static_cast<int>(plan.program.steps.size())) return nullptr;
  const auto number = static_cast<std::size_t>(step);
  if (plan.is_in_layer_before(number)) return "in the layer before";
  return plan.kernels->name(plan.program.steps[number]);
}

const char *torchadder_engine_note(const torchadder_engine *engine, const char *name) {
  const auto &notes = engine->executor.plan().program.notes;
  const auto found = notes.find(name);
  return found == notes.end() ? nullptr : found->second.c_str();
}

int torchadder_engine_run_f32(torchadder_engine *engine, const float *images, int64_t count, float *logits,
                              double *seconds) {
  return run(engine, images, nullptr, count, logits, seconds);
}

int torchadder_engine_run_u8(torchadder_engine *engine, const uint8_t *images, int64_t count, float *logits,
                             double *seconds) {
  return run(engine, nullptr, images, count, logits, seconds);
}

int torchadder_engine_value(torchadder_engine *engine, int index, int64_t *shape, uint8_t *q) {
  const Plan &plan = engine->executor.plan();
  if (!engine->keep_values) return fail("this engine does not keep its values: load it with keep_values");
  if (index < 0 || index >= static_cast<int>(plan.values.size()))
    return fail("value %d: expected 0 to %zu", index, plan.values.size() - 1);
  const Layout &layout = plan.values[static_cast<std::size_t>(index)];
  const Call call;
  shape[0] = layout.pixel, shape[1] = layout.height, shape[2] = layout.width;
  if (q) engine->executor.value(index, q);
  return 0;
}

}  // extern "C"
