// AVX2 kernels (with FMA): functor and tile of each line of kernels.inc.
#include "functors.h"
#include "skeleton.h"
#include "vector_avx2.h"

namespace torchadder {
namespace {
template <bool kAdd>
using forward_f32 = Forward<Avx2, kAdd>;
template <bool>
using grad_input_f32 = GradInputMinMax<Avx2>;
template <bool>
using grad_input_sign_f32 = GradInputSign<Avx2>;
template <bool>
using depthwise_f32 = Depthwise<Avx2>;
template <bool>
using depthwise_grad_f32 = DepthwiseGradInput<Avx2>;
template <bool>
using depthwise_sign_f32 = DepthwiseGradInputSign<Avx2>;
constexpr bool any = false, fma = false, add = true;
}  // namespace

#define KERNEL_avx2(op, pixels, lanes, sum)                                         \
  void op##_avx2_##pixels##x##lanes##_##sum(const Block &block, const Tile &tile) { \
    tile_kernel<Avx2, op<sum>, pixels, lanes / Avx2::width>(block, tile);           \
  }
#define KERNEL_avx512(...)
#define KERNEL_reference(...)
#define KERNEL(op, isa, pixels, lanes, sum) KERNEL_##isa(op, pixels, lanes, sum)
#include "../kernels.inc"

void grad_weight_sign_avx2(const SignGradient &job) { sign_gradient_kernel<Avx2, 4>(job); }

void source_sums_avx2(const Block &block, const float *const *source, int64_t count, float *sums) {
  source_sums<Avx2>(block, source, count, sums);
}

void pack_avx2(const WeightView &view, const Packing &to, int lanes) {
  if (lanes == Avx2::width) return pack<Avx2, 1>(view, to);
  pack<Avx2, 2>(view, to);
}

}  // namespace torchadder
