// The executor: runs a plan on images with one or many threads.
#pragma once
#include <atomic>
#include <mutex>
#include <vector>

#include "engine/plan.h"

namespace torchadder::engine {

class Executor {
 public:
  Executor(Plan plan, int threads);

  const Plan &plan() const { return plan_; }
  int threads() const { return static_cast<int>(arenas_.size()); }

  // Computes the logits (count, classes) of images (count, C, H, W): float32, or quantized values `q`; the other is
  // null. `seconds`: see torchadder_engine.h.
  void run(const float *images, const uint8_t *q, int64_t count, float *logits, double *seconds);

  // Writes value `index` of the last single image, (C, H, W).
  void value(int index, uint8_t *q);

 private:
  struct Image {
    const float *x;
    const uint8_t *q;
    float *logits;
  };
  // A barrier that spins for some microseconds and then yields the core. (The barrier of OpenMP spins for milliseconds:
  // with a core that is busy with something else, an image took a hundred times as long.)
  class Barrier {
   public:
    void wait(int size);

   private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
  };
  // The threads that work on one image, and which of them this one is.
  struct Team {
    int member, size;
    Barrier *barrier;
    void wait() const {
      if (size > 1) barrier->wait(size);
    }
  };

  void run_image(const Image &image, uint8_t *arena, const Team &team, double *seconds) const;
  void input(const Image &image, uint8_t *arena, const Team &team) const;
  void layer(std::size_t number, const Image &image, uint8_t *arena, const Team &team) const;
  void max_pool(std::size_t number, uint8_t *arena, const Team &team) const;
  void table(std::size_t number, uint8_t *arena, const Team &team) const;
  void concat(std::size_t number, uint8_t *arena, const Team &team) const;
  void requantize_rows(std::size_t number, uint8_t *arena, const Team &team, int value, int64_t channel) const;
  void average_pool(std::size_t number, uint8_t *arena, const Team &team) const;

  Plan plan_;
  std::vector<Bytes> arenas_;
  std::mutex mutex_;
  Barrier barrier_;
};

}  // namespace torchadder::engine
