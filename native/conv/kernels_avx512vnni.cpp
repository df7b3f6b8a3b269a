// The kernels of AVX-512 with VNNI: of rounded calls only, the others are those of AVX-512.
#include "conv/vector_avx512.h"

#define ISA avx512vnni
#define VECTOR Avx512Vnni
#define FORWARD Forward
#define GRAD_INPUT GradInputClamp
#define DEPTHWISE_GRAD_INPUT DepthwiseGradInputClamp
#define GRAD_INPUT_I16 GradInputLimbs
#define SIGN_ROWS 12
#include "conv/instantiate.h"
