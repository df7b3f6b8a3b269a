// The engine's kernels of NEON.
#include "engine/vector_neon.h"

#define ISA neon
#define VECTOR Neon
#include "engine/instantiate.h"
