// The engine's kernels of AVX-512 with VNNI and VPOPCNTDQ: Ice Lake, Zen 4 and later.
#include "engine/vector_avx512.h"

#define ISA avx512vnni
#define VECTOR Avx512Vnni
#include "engine/instantiate.h"
