// Chooses between adder kernels of the engine, which give the same bits (common/timing.h).
#pragma once
#include "engine/job.h"

namespace torchadder::engine {

// Returns whether the first of two adder kernels is faster here. It takes a fraction of a millisecond.
bool is_faster_adder(LayerKernel first, LayerKernel second);

}  // namespace torchadder::engine
