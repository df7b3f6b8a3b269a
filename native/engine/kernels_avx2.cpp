// The engine's kernels of AVX2.
#include "engine/vector_avx2.h"

#define ISA avx2
#define VECTOR Avx2
#include "engine/instantiate.h"
