// Chooses between two ways to compute the same bits, by timing both on this CPU.
#pragma once
#include <algorithm>
#include <chrono>
#include <limits>

namespace torchadder {

// Returns whether first() is faster than second(). They run in turn, and the least of 25 times of each counts, so that
// an interruption does not. A run should take some microseconds.
template <class First, class Second>
bool is_faster(First &&first, Second &&second) {
  constexpr int kRepetitions = 25;
  const auto seconds = [](auto &run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  double least[2] = {std::numeric_limits<double>::max(), std::numeric_limits<double>::max()};
  for (int i = 0; i < kRepetitions; ++i) {
    least[0] = std::min(least[0], seconds(first));
    least[1] = std::min(least[1], seconds(second));
  }
  return least[0] < least[1];
}

}  // namespace torchadder
