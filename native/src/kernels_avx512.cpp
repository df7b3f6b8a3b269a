// AVX-512 kernels (F, DQ): functor and tile of each line of kernels.inc.
#include "functors.h"
#include "skeleton.h"
#include "vector_avx512.h"

namespace torchadder {
namespace {
template <bool kAdd>
using forward_f32 = Forward<Avx512, kAdd>;
template <bool>
using grad_input_f32 = GradInputClamp<Avx512>;
template <bool>
using grad_input_sign_f32 = GradInputSign<Avx512>;
template <bool>
using depthwise_f32 = Depthwise<Avx512>;
template <bool>
using depthwise_grad_f32 = DepthwiseGradInput<Avx512>;
template <bool>
using depthwise_sign_f32 = DepthwiseGradInputSign<Avx512>;
constexpr bool any = false, fma = false, add = true;
}  // namespace

#define KERNEL_avx512(op, pixels, lanes, sum)                                         \
  void op##_avx512_##pixels##x##lanes##_##sum(const Block &block, const Tile &tile) { \
    tile_kernel<Avx512, op<sum>, pixels, lanes / Avx512::width>(block, tile);         \
  }
#define KERNEL_avx2(...)
#define KERNEL_reference(...)
#define KERNEL(op, isa, pixels, lanes, sum) KERNEL_##isa(op, pixels, lanes, sum)
#include "../kernels.inc"

void grad_weight_sign_avx512(const SignGradient &job) { sign_gradient_kernel<Avx512, 12>(job); }

void source_sums_avx512(const Block &block, const float *const *source, int64_t count, float *sums) {
  source_sums<Avx512>(block, source, count, sums);
}

void pack_avx512(const WeightView &view, const Packing &to, int lanes) {
  if (lanes == Avx512::width) return pack<Avx512, 1>(view, to);
  pack<Avx512, 2>(view, to);
}

}  // namespace torchadder
