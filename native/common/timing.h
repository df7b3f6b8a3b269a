// Chooses between two ways to compute the same bits, by timing both on this CPU.
#pragma once
#include <algorithm>
#include <chrono>
#include <limits>

namespace torchadder {

// Returns whether first() is faster than second(). The least of 25 times of each counts, so that an interruption does
// not. Each runs five times in a row, as in use: an Intel core that changed between 256 and 512 bits with every run ran
// both 1.2 to 1.5 times slower. A run should take some microseconds.
template <class First, class Second>
bool is_faster(First &&first, Second &&second) {
  constexpr int kTurns = 5, kRuns = 5;
  const auto seconds = [](auto &run) {
    double least = std::numeric_limits<double>::max();
    for (int i = 0; i < kRuns; ++i) {
      const auto start = std::chrono::steady_clock::now();
      run();
      least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return least;
  };
  double least[2] = {std::numeric_limits<double>::max(), std::numeric_limits<double>::max()};
  for (int i = 0; i < kTurns; ++i) {
    least[0] = std::min(least[0], seconds(first));
    least[1] = std::min(least[1], seconds(second));
  }
  return least[0] < least[1];
}

}  // namespace torchadder
