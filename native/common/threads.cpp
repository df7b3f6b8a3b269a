// Makes fork() safe. A child has a copy of the thread that called fork() and no other thread, so that two things would
// hang in it: a lock that another thread held, and OpenMP, which would wait for the threads of the pool. Therefore a
// fork first waits until no call is running, and the forking thread gives its pool back; parent and child make a new
// one when they need it. torch's own operators use the same pool and are safe, too.
#include "common/threads.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace torchadder {
namespace {

std::atomic<int> calls{0}, forks{0};

void before_fork() {
  ++forks;
  while (calls) std::this_thread::sleep_for(std::chrono::microseconds(50));
#if defined(_OPENMP)
  omp_pause_resource_all(omp_pause_soft);
#endif
}

void after_fork_in_parent() { --forks; }

void after_fork_in_child() { calls = forks = 0; }

[[maybe_unused]] const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

Call::Call() {
  for (;;) {
    while (forks) std::this_thread::yield();
    ++calls;
    if (!forks) return;
    --calls;  // a fork began in between
  }
}

Call::~Call() { --calls; }

}  // namespace torchadder
