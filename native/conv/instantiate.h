// The float kernels of one instruction set: each of its lines in kernels.inc with its functor and tile.
//
// The including file defines
//   ISA                   the instruction set, as in isa.inc
//   VECTOR                its vector type
//   FORWARD               the functor of the forward pass
//   GRAD_INPUT            the functor of the input gradient, and
//   DEPTHWISE_GRAD_INPUT  that of depthwise layers
//   GRAD_INPUT_I16        the input gradient of rounded calls
//   SIGN_ROWS             rows of packed weight that the sign gradient keeps in registers
#include "conv/dispatch.h"
#include "conv/functors.h"
#include "conv/skeleton.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

namespace torchadder {
namespace {

template <bool kAdd>
using forward_f32 = FORWARD<VECTOR, kAdd>;
template <bool>
using grad_input_f32 = GRAD_INPUT<VECTOR>;
template <bool>
using few_grad_f32 = AlongDepth<GRAD_INPUT<VECTOR>>;
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
using depthwise_sign_f32 = OwnChannel<GradInputSign<VECTOR>>;
template <bool>
using forward_u8 = ForwardBytes<VECTOR>;
template <bool>
using grad_input_i16 = GRAD_INPUT_I16<VECTOR>;

// Returns the kernel of a line, or null if the line is of another instruction set.
template <bool kIsOwn, class F, int P, int kLanes>
constexpr TileKernel instance() {
  if constexpr (kIsOwn && F::kSource == Source::depth)
    return tiles_along_depth<VECTOR, F, P>;
  else if constexpr (kIsOwn)
    return tile_kernel<VECTOR, F, P, kLanes / VECTOR::width>;
  else
    return nullptr;
}

template <class V>
constexpr bool kHasLimbs = GRAD_INPUT_I16<V>::kWords == 2;

template <class V>
constexpr Rounder round_gradient() {
  if constexpr (kHasLimbs<V>)
    return round_to_limbs<V>;
  else
    return round_to<int16_t>;
}

void pack_vectors(const WeightView &view, const Packing &to, int lanes) {
  if (lanes == VECTOR::width) return pack<VECTOR, 1>(view, to);
  pack<VECTOR, 2>(view, to);
}

}  // namespace

extern const TileKernel JOINED(conv_kernels_, ISA)[] = {
#define CONV_KERNEL(op, isa, pixels, lanes, sum) \
  instance<Isa::isa == Isa::ISA, op<Variant::sum == Variant::add>, pixels, lanes>(),
#include "kernels.inc"
};

extern const AuxiliaryKernels JOINED(conv_auxiliary_, ISA) = {
    pack_vectors,
    source_sums<VECTOR, OfFloats<VECTOR>>,
    source_sums<VECTOR, OfBytes<VECTOR>>,
    source_sums<VECTOR, std::conditional_t<kHasLimbs<VECTOR>, OfLimbs<VECTOR>, OfPairs<VECTOR>>>,
    forward_f32<false>::kSourceSum,
    grad_input_f32<false>::kSourceSum,
    transpose<VECTOR>,
    sign_gradient_kernel<VECTOR, SIGN_ROWS>,
    VECTOR::width,
    range<VECTOR>,
    round_to<uint8_t>,
    round_gradient<VECTOR>(),
    kHasLimbs<VECTOR>,
};

}  // namespace torchadder
