// Threads. They come from OpenMP, which PyTorch uses as well, so that a process has one pool of threads.
#pragma once
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace torchadder {

// Calls body(t, count) for t = 0 .. count - 1 in parallel. A count below 1 is 1.
template <class Body>
void parallel(int count, Body &&body) {
  if (count < 1) count = 1;
#if defined(_OPENMP)
  if (count > 1) {
#pragma omp parallel num_threads(count)
    {
      // The runtime may grant fewer threads than `count`; each then takes several shares.
      const int granted = omp_get_num_threads();
      for (int t = omp_get_thread_num(); t < count; t += granted) body(t, count);
    }
    return;
  }
#endif
  for (int t = 0; t < count; ++t) body(t, count);
}

// Share t of `count` shares of `size` items: [begin, end).
struct Share {
  int64_t begin, end;
};
inline Share share(int64_t size, int t, int count) { return {size * t / count, size * (t + 1) / count}; }

}  // namespace torchadder
