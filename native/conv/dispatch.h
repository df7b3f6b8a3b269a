// The float kernels of kernels.inc, and which of them the selected instruction set uses.
#pragma once
#include "common/isa.h"
#include "conv/tile.h"

namespace torchadder {

enum class Op {
  forward_f32,
  grad_input_f32,
  few_grad_f32,
  grad_input_sign_f32,
  grouped_f32,
  grouped_grad_f32,
  grouped_sign_f32,
  depthwise_f32,
  depthwise_grad_f32,
  depthwise_sign_f32,
  forward_u8,
  grad_input_i16,
};

// One line of kernels.inc.
struct Kernel {
  const char *name;
  Op op;
  Isa isa;
  int pixels, lanes;  // of the tile
  Variant sum;
  TileKernel run;
};

// The functions that an instruction set has once, whatever the tile.
struct AuxiliaryKernels {
  Packer pack;                                // for lanes that are evenly spaced in the weight; else pack_by_lane()
  SourceSums sums, byte_sums, gradient_sums;  // of floats; of the words of rounded calls
  bool forward_reads_sums, grad_input_reads_sums;  // whether forward_f32 and grad_input_f32 read Tile::source_sum
  Transposer transpose;
  SignGradientKernel sign_gradient;
  int sign_lanes;  // of sign_gradient
  RangeKernel range;
  Rounder round_to_bytes, round_gradient;
  bool has_limbs;  // of grad_input_i16: four channels take a word of weight and two of dy; else two take one of each
};

void pack_by_lane(const WeightView &, const Packing &, int lanes_of_kernel);
void pack_along_depth(const WeightView &, const Packing &, int lanes_of_kernel);  // for few_grad_f32

// Returns how the float kernels of the selected instruction set accumulate: as torchadder_select_isa() forces, else the
// faster way on this CPU, timed at the first call for each set.
Variant selected_variant();

constexpr int64_t kFewChannels = 8;  // half a vector of AVX-512

// Returns the set whose kernels compute `op` on `channels` channels: the selected one, with two exceptions. An operator
// that it does not list has the kernels of a set that extends it, if this CPU can run that, or of the one before it.
// AVX-512 leaves to AVX2 forward passes where that is faster (Variant::half), and forward_f32 and grad_input_f32 of up
// to 8 channels: half a vector is enough: as many instructions, and Zen 4 takes twice as long for those of 512 bits.
Isa isa_for(Op op, int64_t channels);

// Returns the narrowest kernel of `isa` that holds `lanes` channels, else the widest there is.
const Kernel &kernel_for(Op op, Isa isa, int64_t lanes);

// Returns the operator that computes HardTanh's input gradient of `channels` channels, each a sum over `depth`
// gradients a tap: few_grad_f32 if the selected set has it and it is faster, else grad_input_f32.
Op grad_input_op(int64_t channels, int64_t depth);
const AuxiliaryKernels &auxiliary_kernels(Isa isa);

}  // namespace torchadder
