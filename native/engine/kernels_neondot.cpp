// The engine's kernels of NEON with the dot product.
#include "engine/vector_neondot.h"

#define ISA neondot
#define VECTOR NeonDot
#include "engine/instantiate.h"
