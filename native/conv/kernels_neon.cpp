// The float kernels of NEON.
#include "conv/vector_neon.h"

#define ISA neon
#define VECTOR Neon
#define FORWARD ForwardByDistance
#define GRAD_INPUT GradInputMinMax
#define DEPTHWISE_GRAD_INPUT DepthwiseGradInput
#define GRAD_INPUT_I16 GradInputPairs
#define SIGN_ROWS 4
#include "conv/instantiate.h"
