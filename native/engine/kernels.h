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
  const char *name(const Step &step) const;  // the kernel of a layer; the operator of another step
  LayerKernel layer(const Step &step) const { return layers_[static_cast<int>(step.work())].layer; }
  LayerKernel pooling_layer(const Step &step) const { return layers_[static_cast<int>(step.work())].pooling; }
  const AuxiliaryKernels &auxiliary() const { return *auxiliary_; }

 private:
  const char *names_[kWorks];
  LayerKernels layers_[kWorks];
  const AuxiliaryKernels *auxiliary_;
};

}  // namespace torchadder::engine
