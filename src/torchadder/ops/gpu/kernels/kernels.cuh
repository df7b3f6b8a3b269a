// Kernels by name, as the launcher asks for them.
#define SHAPE_PARAMETERS                                                                                            \
  int images, int groups, int filters, int channels, int size_d, int size_h, int size_w, int out_d, int out_h,      \
      int out_w, int kernel_d, int kernel_h, int kernel_w, int stride_d, int stride_h, int stride_w, int padding_d, \
      int padding_h, int padding_w, int dilation_d, int dilation_h, int dilation_w
#define SHAPE                                                                                                     \
  Convolution {                                                                                                   \
    images, groups, filters, channels, size_d, size_h, size_w, out_d, out_h, out_w, kernel_d, kernel_h, kernel_w, \
        stride_d, stride_h, stride_w, padding_d, padding_h, padding_w, dilation_d, dilation_h, dilation_w         \
  }
#define STRIDE_PARAMETERS(t) long long t##_n, int t##_c, int t##_d, int t##_h, int t##_w
#define STRIDES(t) \
  Strides { t##_n, t##_c, t##_d, t##_h, t##_w }
#define FORWARD(name, threads, resident, function, T)                                                          \
  extern "C" __global__ void __launch_bounds__(threads, resident)                                              \
      name(const T *x, const DistanceOf<T>::Rule::Value *weight, const DistanceOf<T>::Rule::Value *bias, T *y, \
           SHAPE_PARAMETERS, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(w), STRIDE_PARAMETERS(y)) {               \
    function(x, weight, bias, y, SHAPE, STRIDES(x), STRIDES(w), STRIDES(y));                                   \
  }
#define GRAD_INPUT(name, threads, resident, function, T)                                                            \
  extern "C" __global__ void __launch_bounds__(threads, resident)                                                   \
      name(const T *grad, const T *x, const float *weight, T *dx, SHAPE_PARAMETERS, int period_d, int period_h,     \
           int period_w, STRIDE_PARAMETERS(g), STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(w), STRIDE_PARAMETERS(dx)) { \
    function(grad, x, weight, dx, SHAPE, period_d, period_h, period_w, STRIDES(g), STRIDES(x), STRIDES(w),          \
             STRIDES(dx));                                                                                          \
  }
#define GRAD_WEIGHT_SIGN(name, threads, resident, function, T)                                                     \
  extern "C" __global__ void __launch_bounds__(threads, resident)                                                  \
      name(const T *grad, const T *x, const float *weight, float *partial, SHAPE_PARAMETERS, STRIDE_PARAMETERS(g), \
           STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(w)) {                                                           \
    function(grad, x, weight, partial, SHAPE, STRIDES(g), STRIDES(x), STRIDES(w));                                 \
  }
#define ISSUE(name, threads, resident, function, T) \
  extern "C" __global__ void __launch_bounds__(threads, resident) name(T *out, int rounds) { function(out, rounds); }
