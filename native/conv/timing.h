// Chooses between float kernels that give the same bits (common/timing.h).
#pragma once
#include "conv/dispatch.h"

namespace torchadder {

// Returns which of two forward kernels of one tile, which accumulate by fma and by add, is faster here. A CPU runs max
// on the same ports as add (AMD from Zen 3 on) or as fma (Intel, Zen 1 and 2), and the other instruction is then the
// better one; neither maker nor model has to be known. It takes a fraction of a millisecond.
Sum faster_sum(const Kernel &fma, const Kernel &add);

}  // namespace torchadder
