// The engine's kernels of kernels.inc, and which of them an instruction set uses.
#pragma once
#include <string>

#include "common/isa.h"
#include "engine/job.h"
#include "engine/program.h"

namespace torchadder::engine {

// The kernels that an engine runs on.
class Kernels {
 public:
  // Returns the kernels of the instruction set `name`, or for null of the best one that the selection allows. Returns
  // null if this CPU cannot run it or the name is unknown.
  static const Kernels *find(const char *name);

  // The names that find() knows on this CPU, with commas between.
  static std::string names();

  explicit Kernels(Isa isa);
  const char *name(Op op) const;  // the kernel of a layer; the operator of a pool
  LayerKernel layer(Op op) const { return layers_[static_cast<int>(op)]; }
  const AuxiliaryKernels &auxiliary() const { return *auxiliary_; }

 private:
  const char *names_[3];
  LayerKernel layers_[3];
  const AuxiliaryKernels *auxiliary_;
};

}  // namespace torchadder::engine
