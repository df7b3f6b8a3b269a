/* torchadder: the native kernels of adder convolutions, as a C interface.
 *
 * An adder convolution replaces the products of a convolution by the negative L1 distance of patch and filter:
 *
 *     Y[n, o, i, j] = bias[o] - sum over c, a, b of |X[n, c, i*s + a*d - p, j*s + b*d - p] - W[o, c, a, b]|
 *
 * (Chen et al., CVPR 2020, arXiv 1912.13200), in one to three dimensions. A padded position holds 0. Images are dense
 * float32, channels last (N, D, H, W, C). Weights are dense float32 in either order that PyTorch uses. No function
 * keeps a pointer after it returns. Functions that return int return 0, or -1 with a line in torchadder_last_error().
 */
#ifndef TORCHADDER_H
#define TORCHADDER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TORCHADDER_API __attribute__((visibility("default")))
#else
#define TORCHADDER_API
#endif

/* The geometry of one convolution. Arrays are by axis: depth, height, width; an axis that a convolution lacks has size,
 * kernel, stride and dilation 1 and padding 0. `size_out` must be what the other fields give. */
typedef struct {
  int64_t images, c_in, c_out, groups;
  int64_t size_in[3], size_out[3], kernel[3], stride[3], padding[3], dilation[3];
  int64_t weight_channels_last;  /* 0: (C_out, C_in / groups, kd, kh, kw); 1: (C_out, kd, kh, kw, C_in / groups) */
  int64_t images_channels_first; /* 1: images are (N, C, D, H, W) and are copied on one thread: small images only */
} torchadder_convolution;

/* y = forward(x, weight) + bias. bias may be NULL. recenter adds sum |W| of each filter: padding then gives 0. */
TORCHADDER_API int torchadder_forward_f32(const torchadder_convolution *shape, const float *x, const float *weight,
                                          const float *bias, float *y, int recenter, int threads);

/* dx[c] = sum over o of HardTanh(W[o, c] - x[c]) * dy[o]; with sign != 0, sign() in place of HardTanh(). */
TORCHADDER_API int torchadder_grad_input_f32(const torchadder_convolution *shape, const float *dy, const float *x,
                                             const float *weight, float *dx, int sign, int threads);

/* dw[o, c, a, b] = sum over positions of sign(x[c] - W[o, c, a, b]) * dy[o]; dw has the weight's order. */
TORCHADDER_API int torchadder_grad_weight_sign_f32(const torchadder_convolution *shape, const float *dy, const float *x,
                                                   const float *weight, float *dw, int threads);

/* The forward pass and the gradient of the input (HardTanh), in integers: inputs and weights are rounded to a grid on
 * which the input is a byte, one for each pass, and dy to 16 bits (native/conv/rounded.cpp). One group only. */
TORCHADDER_API int torchadder_forward_u8(const torchadder_convolution *shape, const float *x, const float *weight,
                                         const float *bias, float *y, int recenter, int threads);
TORCHADDER_API int torchadder_grad_input_i16(const torchadder_convolution *shape, const float *dy, const float *x,
                                             const float *weight, float *dx, int threads);

/* to[n][column][row] = from[n][row][column]: images from channels first (rows: channels, columns: pixels) to channels
 * last, or back. */
TORCHADDER_API int torchadder_transpose_f32(const float *from, float *to, int64_t images, int64_t rows, int64_t columns,
                                            int threads);

/* Instruction sets: those compiled in, those this CPU can run, and the one in use. NULL selects what the environment
 * variable TORCHADDER_ISA names, as the first call does that computes; "" selects the best; "avx2:fma", "avx2:add"
 * or "avx512:half" also chooses how kernels compute a forward pass (native/common/isa.h), for tests and measurements.
 */
TORCHADDER_API int torchadder_isa_count(void);
TORCHADDER_API const char *torchadder_isa_name(int index);
TORCHADDER_API int torchadder_isa_runs_here(int index);
TORCHADDER_API int torchadder_select_isa(const char *name);
TORCHADDER_API const char *torchadder_selected_isa(void);
TORCHADDER_API const char *torchadder_selected_variant(void); /* such as "avx2:fma": a name for select_isa */

/* The list of float kernels: the name of kernel `index`, and whether the selected instruction set uses it. */
TORCHADDER_API int torchadder_kernel_count(void);
TORCHADDER_API const char *torchadder_kernel_name(int index);
TORCHADDER_API int torchadder_kernel_in_use(int index);

/* 1 if the library was built with threads (OpenMP), else 0. */
TORCHADDER_API int torchadder_has_threads(void);

/* The calling thread's last error, one line. */
TORCHADDER_API const char *torchadder_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
