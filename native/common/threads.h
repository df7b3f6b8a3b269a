// Threads. They come from OpenMP, which PyTorch uses as well, so that a process has one pool of threads.
#pragma once
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace torchadder {

// A call of the library, which a fork of the process waits for (threads.cpp). Calls do not nest.
struct Call {
  Call();
  ~Call();
  Call(const Call &) = delete;
  Call &operator=(const Call &) = delete;
};

// Calls body(t, granted) for t = 0 .. granted - 1, each on a thread of its own. The runtime may grant fewer threads
// than `count`.
template <class Body>
void team([[maybe_unused]] int count, Body &&body) {
#if defined(_OPENMP)
  if (count > 1) {
#pragma omp parallel num_threads(count)
    body(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  body(0, 1);
}

// Calls body(t, count) for t = 0 .. count - 1 in parallel. A count below 1 is 1.
template <class Body>
void parallel(int count, Body &&body) {
  if (count < 1) count = 1;
  team(count, [&](int t, int granted) {
    for (; t < count; t += granted) body(t, count);  // a thread takes several shares if there are fewer threads
  });
}

// Share t of `count` shares of `size` items: [begin, end).
struct Share {
  int64_t begin, end;
};
inline Share share(int64_t size, int t, int count) { return {size * t / count, size * (t + 1) / count}; }

}  // namespace torchadder
