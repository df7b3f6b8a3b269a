// The kernels of one instruction set: each of its lines in kernels.inc with its functor and tile.
//
// The including file defines ISA, VECTOR, GRAD_INPUT and DEPTHWISE_GRAD_INPUT (functors), SIGN_ROWS (registers that the
// sign gradient keeps), and KERNEL_isa for every isa: KERNEL_HERE for its own, nothing for the others.
#include "conv/functors.h"
#include "conv/skeleton.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

namespace torchadder {
namespace {
template <bool kAdd>
using forward_f32 = Forward<VECTOR, kAdd>;
template <bool>
using grad_input_f32 = GRAD_INPUT<VECTOR>;
template <bool>
using grad_input_sign_f32 = GradInputSign<VECTOR>;
template <bool kAdd>
using grouped_f32 = Grouped<forward_f32<kAdd>>;
template <bool>
using grouped_grad_f32 = Grouped<GRAD_INPUT<VECTOR>>;
template <bool>
using grouped_sign_f32 = Grouped<GradInputSign<VECTOR>>;
template <bool>
using depthwise_f32 = Depthwise<VECTOR>;
template <bool>
using depthwise_grad_f32 = DEPTHWISE_GRAD_INPUT<VECTOR>;
template <bool>
using depthwise_sign_f32 = Own<GradInputSign<VECTOR>>;
constexpr bool any = false, fma = false, add = true;
}  // namespace

#define KERNEL_HERE(name, op, pixels, lanes, sum)                             \
  void name(const Block &block, const Tile &tile) {                           \
    tile_kernel<VECTOR, op<sum>, pixels, lanes / VECTOR::width>(block, tile); \
  }
#define KERNEL(op, isa, pixels, lanes, sum) \
  KERNEL_##isa(op##_##isa##_##pixels##x##lanes##_##sum, op, pixels, lanes, sum)
#include "kernels.inc"

void JOINED(grad_weight_sign_, ISA)(const SignGradient &job) { sign_gradient_kernel<VECTOR, SIGN_ROWS>(job); }

void JOINED(source_sums_, ISA)(const Block &block, const float *const *source, int64_t count, float *sums) {
  source_sums<VECTOR>(block, source, count, sums);
}

void JOINED(transpose_, ISA)(const float *from, float *to, int64_t rows, int64_t columns, int64_t first, int64_t last) {
  transpose<VECTOR>(from, to, rows, columns, first, last);
}

void JOINED(pack_, ISA)(const WeightView &view, const Packing &to, int lanes) {
  if (lanes == VECTOR::width) return pack<VECTOR, 1>(view, to);
  pack<VECTOR, 2>(view, to);
}

}  // namespace torchadder
