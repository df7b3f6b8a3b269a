// The engine's kernels of AVX-512 (F, BW, DQ, VL).
#include "engine/vector_avx512.h"

#define ISA avx512
#define VECTOR Avx512
#include "engine/instantiate.h"
