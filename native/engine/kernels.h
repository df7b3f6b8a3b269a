// The engine's kernels of kernels.inc, and which of them an instruction set uses.
#pragma once
#include "common/isa.h"
#include "engine/job.h"
#include "engine/program.h"

namespace torchadder::engine {

// One line of kernels.inc.
struct ListedKernel {
  const char *name;
  Op op;
  Isa isa;
  int pixels, channels;  // of the tile
};

// The kernels that an engine runs on.
class Kernels {
 public:
  // Returns those of `name`, or for null the best that the selected instruction set allows. Null: this CPU cannot run
  // `name`, or it is unknown.
  static const Kernels *find(const char *name);

  explicit Kernels(Isa isa);
  const char *name(Op op) const;  // of the kernel of a layer; else the operator's
  LayerKernel layer(Op op) const { return layers_[static_cast<int>(op)]; }
  const AuxiliaryKernels &auxiliary() const { return *auxiliary_; }

 private:
  const char *names_[3];
  LayerKernel layers_[3];
  const AuxiliaryKernels *auxiliary_;
};

}  // namespace torchadder::engine
