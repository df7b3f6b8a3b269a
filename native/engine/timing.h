// Chooses between adder kernels that give the same bits by timing both on this CPU.
#pragma once
#include "engine/job.h"

namespace torchadder::engine {

// Returns whether the first of two adder kernels is faster here. The least of 25 short runs of each counts, so that an
// interruption does not. It takes a fraction of a millisecond.
bool is_faster(LayerKernel first, LayerKernel second);

}  // namespace torchadder::engine
