// The engine's kernels of one instruction set: each of its lines in kernels.inc with its vector type and tile.
// The including file defines ISA, the instruction set as in isa.inc, and VECTOR, its vector type.
#include <type_traits>

#include "common/isa.h"
#include "engine/auxiliary.h"
#include "engine/depthwise_kernel.h"
#include "engine/layer_kernel.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

namespace torchadder::engine {
namespace {

using adder_u8 = Adder<VECTOR>;
using conv_u8 = Conv<VECTOR>;
using binary = Binary<VECTOR>;
using adder_depthwise = AdderDepthwise;
using conv_depthwise = ConvDepthwise;

// Returns the kernels of a line, or null if the line is of another instruction set.
template <bool kIsOwn, class F, int P, int kChannels>
constexpr LayerKernels instance() {
  constexpr bool is_depthwise = std::is_same_v<F, AdderDepthwise> || std::is_same_v<F, ConvDepthwise>;
  constexpr int W = kChannels / kBlock, windows = P < kWindow ? 1 : P / kWindow;
  if constexpr (kIsOwn && is_depthwise)
    return {depthwise_layer<VECTOR, F, P, W>, nullptr};
  else if constexpr (kIsOwn)
    return {layer<VECTOR, F, P, W, 1>, layer<VECTOR, F, windows * kWindow, W, kWindow>};
  else
    return {};
}

}  // namespace

extern const LayerKernels JOINED(engine_kernels_, ISA)[] = {
#define ENGINE_KERNEL(op, isa, pixels, channels) instance<Isa::isa == Isa::ISA, op, pixels, channels>(),
#include "kernels.inc"
};

extern const AuxiliaryKernels JOINED(engine_auxiliary_, ISA) = auxiliary<VECTOR>();

}  // namespace torchadder::engine
