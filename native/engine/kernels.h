// The engine's instruction sets.
#pragma once
#include "engine/job.h"

namespace torchadder::engine {

// The kernels of the instruction set in use (dispatch.h), or of `name`; null where this CPU lacks it, or it is unknown.
const Kernels *kernels_in_use();
const Kernels *kernels_named(const char *name);

}  // namespace torchadder::engine
