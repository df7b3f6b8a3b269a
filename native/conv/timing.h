// Chooses between float kernels that give the same bits (common/timing.h).
#pragma once
#include "conv/dispatch.h"

namespace torchadder {

// Returns whether the first of two forward kernels is faster here, by the numbers that they compute. A CPU runs max on
// the same ports as add (AMD from Zen 3 on) or as fma (Intel, Zen 1 and 2), so that a kernel which accumulates by the
// other instruction is faster; and Zen 4 takes two cycles for what Intel does in one on 512 bits. Neither maker nor
// model has to be known. It takes a fraction of a millisecond.
bool is_faster(const Kernel &first, const Kernel &second);

}  // namespace torchadder
