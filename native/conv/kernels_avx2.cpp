// The float kernels of AVX2 with FMA.
#include "conv/vector_avx2.h"

#define ISA avx2
#define VECTOR Avx2
#define FORWARD Forward
#define GRAD_INPUT GradInputMinMax
#define DEPTHWISE_GRAD_INPUT DepthwiseGradInput
#define GRAD_INPUT_I16 GradInputPairs
#define SIGN_ROWS 4
#include "conv/instantiate.h"
