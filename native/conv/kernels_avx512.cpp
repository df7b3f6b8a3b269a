// AVX-512 kernels (F, DQ).
#include "conv/vector_avx512.h"

#define ISA avx512
#define VECTOR Avx512
#define GRAD_INPUT GradInputClamp
#define DEPTHWISE_GRAD_INPUT DepthwiseGradInputClamp
#define SIGN_ROWS 12
#define KERNEL_avx512 KERNEL_HERE
#define KERNEL_avx2(...)
#define KERNEL_reference(...)
#include "conv/instantiate.h"
