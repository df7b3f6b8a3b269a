// Chooses between kernels that give the same bits by timing both on this CPU.
#pragma once
#include "conv/dispatch.h"

namespace torchadder {

// Returns which of two forward kernels of one tile, which accumulate by fma and by add, is faster here. A CPU runs max
// on the same ports as add (AMD from Zen 3 on) or as fma (Intel, Zen 1 and 2), and the other instruction is then the
// better one; neither maker nor model has to be known. The least of 25 short runs of each counts, so that an
// interruption does not. It takes a fraction of a millisecond.
Sum faster_sum(const Kernel &fma, const Kernel &add);

}  // namespace torchadder
