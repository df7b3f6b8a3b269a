// CUDA C++ on the CPU, for tests: blocks one after the other, the threads of a block as fibers that take turns at
// __syncthreads, from the first to the last or from the last to the first.
#include <ucontext.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define CUDA_ON_CPU
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads, resident)

struct Dimensions {
  unsigned x, y, z;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __saturatef(float value) { return value != value ? 0 : value < 0 ? 0 : value > 1 ? 1 : value; }
inline float half_to_float(unsigned short bits) {
  _Float16 narrow;
  std::memcpy(&narrow, &bits, sizeof narrow);
  return narrow;
}
inline unsigned short float_to_half(float value) {
  const _Float16 narrow = value;
  unsigned short bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return bits;
}

template <int N>
void load_words(unsigned (&to)[N], const void *from, bool exists) {
  std::memset(to, 0, sizeof to);
  if (!exists) return;
  if (reinterpret_cast<std::size_t>(from) % sizeof to != 0) {
    std::fputs("an access of several words to an address that is no multiple of its size\n", stderr);
    std::abort();
  }
  std::memcpy(to, from, sizeof to);
}

inline unsigned distance4(unsigned x, unsigned w, unsigned sum) {
  for (int i = 0; i < 32; i += 8) {
    const int difference = static_cast<int>(x >> i & 255) - static_cast<int>(w >> i & 255);
    sum += difference < 0 ? -difference : difference;
  }
  return sum;
}

namespace on_cpu {

constexpr std::size_t STACK = 64 * 1024;
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool done;
};
inline ucontext_t scheduler;
inline Fiber *running;
inline void (*body)(void *);
inline void *arguments;

inline void enter() {
  body(arguments);
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

inline void run_block(std::vector<Fiber> &fibers, bool backwards) {
  const unsigned count = fibers.size();
  for (auto &fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.done = false;
    makecontext(&fiber.context, enter, 0);
  }
  for (unsigned done = 0; done < count;) {
    done = 0;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned thread = backwards ? count - 1 - i : i;
      running = &fibers[thread];
      if (!running->done) {
        threadIdx = {thread, 0, 0};
        swapcontext(&scheduler, &running->context);
      }
      done += running->done;
    }
    if (done != 0 && done != count) {
      std::fputs("some threads of the block wait at a barrier that others never reach\n", stderr);
      std::abort();
    }
  }
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void **values, std::index_sequence<I...>) {
  kernel(*static_cast<A *>(values[I])...);
}

template <class... A>
void launch(void (*kernel)(A...), unsigned x, unsigned y, unsigned threads, bool backwards, void **values) {
  static std::pair<void (*)(A...), void **> work;
  work = {kernel, values};
  body = [](void *) { call(work.first, work.second, std::index_sequence_for<A...>{}); };
  std::vector<Fiber> fibers(threads);
  gridDim = {x, y, 1};
  blockDim = {threads, 1, 1};
  for (unsigned j = 0; j < y; ++j)
    for (unsigned i = 0; i < x; ++i) {
      blockIdx = {i, j, 0};
      run_block(fibers, backwards);
    }
}

}  // namespace on_cpu

inline void __syncthreads() { swapcontext(&on_cpu::running->context, &on_cpu::scheduler); }
