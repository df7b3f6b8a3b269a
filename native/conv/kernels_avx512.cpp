// The kernels of AVX-512 (F, DQ, BW).
#include "conv/vector_avx512.h"

#define ISA avx512
#define VECTOR Avx512
#define FORWARD Forward
#define GRAD_INPUT GradInputClamp
#define DEPTHWISE_GRAD_INPUT DepthwiseGradInputClamp
#define GRAD_INPUT_I16 GradInputPairs
#define SIGN_ROWS 12
#include "conv/instantiate.h"
