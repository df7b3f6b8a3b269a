// Runs a plan on images, one or many threads.
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

  // Images (count, C, H, W), float32 or codes (the other is null), to logits. `seconds`: see torchadder_engine.h.
  void run(const float *images, const uint8_t *codes, int64_t count, float *logits, double *seconds);

  // Value `index` of the arena that single images use, as codes (C, H, W).
  void value(int index, uint8_t *codes);

 private:
  struct Image {
    const float *numbers;
    const uint8_t *codes;
    float *logits;
  };
  // Where threads wait for each other: turning for some microseconds, then handing the core to whoever wants it. (That
  // of OpenMP turns for milliseconds; where a core is busy with something else, an image took a hundred times as long.)
  class Barrier {
   public:
    void wait(int size);

   private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
  };
  // Which of the threads that work on one image this one is.
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
  void average_pool(std::size_t number, uint8_t *arena, const Team &team) const;

  Plan plan_;
  std::vector<Bytes> arenas_;
  std::mutex turn_;
  Barrier barrier_;
};

}  // namespace torchadder::engine
