// The engine's kernels of one instruction set: each of its lines in kernels.inc with its vector type and tile.
// The including file defines ISA, the instruction set as in isa.inc, and VECTOR, its vector type.
#include "common/isa.h"
#include "engine/auxiliary.h"
#include "engine/layer_kernel.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

namespace torchadder::engine {
namespace {

using adder_u8 = Adder<VECTOR>;
using conv_u8 = Conv<VECTOR>;
using binary = Binary<VECTOR>;

// Returns the kernel of a line, or null if the line is of another instruction set.
template <bool kIsOwn, class F, int P, int kChannels>
constexpr LayerKernel instance() {
  if constexpr (kIsOwn)
    return layer<VECTOR, F, P, kChannels / kBlock>;
  else
    return nullptr;
}

}  // namespace

extern const LayerKernel JOINED(engine_kernels_, ISA)[] = {
#define ENGINE_KERNEL(op, isa, pixels, channels) instance<Isa::isa == Isa::ISA, op, pixels, channels>(),
#include "kernels.inc"
};

extern const AuxiliaryKernels JOINED(engine_auxiliary_, ISA) = auxiliary<VECTOR>();

}  // namespace torchadder::engine
