// AVX2 kernels (with FMA).
#include "conv/vector_avx2.h"

#define ISA avx2
#define VECTOR Avx2
#define GRAD_INPUT GradInputMinMax
#define DEPTHWISE_GRAD_INPUT DepthwiseGradInput
#define SIGN_ROWS 4
#define KERNEL_avx2 KERNEL_HERE
#define KERNEL_avx512(...)
#define KERNEL_reference(...)
#include "conv/instantiate.h"
