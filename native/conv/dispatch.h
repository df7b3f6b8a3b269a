// The kernel table: what kernels.inc lists, and which of it the CPU at hand runs.
#pragma once
#include "conv/tile.h"

namespace torchadder {

enum class Op {
  forward_f32,
  grad_input_f32,
  grad_input_sign_f32,
  grouped_f32,
  grouped_grad_f32,
  grouped_sign_f32,
  depthwise_f32,
  depthwise_grad_f32,
  depthwise_sign_f32,
};
enum class Isa { reference, avx2, avx512 };
enum class Sum { any, fma, add };

struct Kernel {
  const char *name;
  Op op;
  Isa isa;
  int pixels, lanes;
  Sum sum;
  TileKernel run;
};

// What an instruction set has once, whatever the tile.
struct IsaFunctions {
  Packer pack;  // for the kernels whose lanes lie evenly in the weight; pack_by_lane() is for all
  SourceSums source_sums;
  bool forward_sums, gradient_sums;  // whether forward_f32 and grad_input_f32 want source sums
  Transposer transpose;
  SignGradientKernel sign_gradient;
  int sign_lanes;
};

void pack_by_lane(const WeightView &, const Packing &, int lanes_of_kernel);
bool runs_here(Isa isa);
Isa selected_isa();

// The narrowest kernel of the selected instruction set that holds `lanes` channels, or the widest there is.
const Kernel &kernel_for(Op op, int64_t lanes);
const IsaFunctions &isa_functions(Isa isa);

}  // namespace torchadder
