// The adder kernel of AVX2 for CPUs with one psadbw a cycle; the other kernels are those of kernels_avx2.cpp.
#include "common/isa.h"
#include "engine/adder_by_max.h"
#include "engine/auxiliary.h"

namespace torchadder::engine {

extern const LayerKernels engine_kernels_avx2max[] = {
#define ENGINE_KERNEL(op, isa, ...) {Isa::isa == Isa::avx2max ? AdderByMax::layer : nullptr, nullptr},
#include "kernels.inc"
};

extern const AuxiliaryKernels engine_auxiliary_avx2max = auxiliary<Avx2>();

}  // namespace torchadder::engine
