#include "engine/kernels.h"

#include <cstring>

#include "conv/dispatch.h"

namespace torchadder::engine {

extern const Kernels kernels_reference;
#if TORCHADDER_X86
extern const Kernels kernels_avx2, kernels_avx2max, kernels_avx512, kernels_avx512vnni;
#endif

namespace {

// From the fastest on: the instruction set of dispatch.h that allows it, and whether this CPU can run it at all.
struct Choice {
  const Kernels *kernels;
  Isa allowed_by;
  bool runs, better;  // than what follows
};

template <class Body>
const Kernels *first_that(Body &&wanted) {
#if TORCHADDER_X86
  __builtin_cpu_init();
  const bool wide = runs_here(Isa::avx512) && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool one_sad_a_cycle = __builtin_cpu_is("intel");  // AMD's Zen computes two
  const bool dots = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vpopcntdq");
#endif
  const Choice choices[] = {
#if TORCHADDER_X86
      {&kernels_avx512vnni, Isa::avx512, wide && dots, true},
      {&kernels_avx512, Isa::avx512, wide, true},
      {&kernels_avx2max, Isa::avx2, runs_here(Isa::avx2), one_sad_a_cycle},
      {&kernels_avx2, Isa::avx2, runs_here(Isa::avx2), true},
#endif
      {&kernels_reference, Isa::reference, true, true},
  };
  for (const Choice &choice : choices)
    if (choice.runs && wanted(choice)) return choice.kernels;
  return nullptr;
}

}  // namespace

const Kernels *kernels_in_use() {
  return first_that([](const Choice &choice) { return choice.better && choice.allowed_by <= selected_isa(); });
}

const Kernels *kernels_named(const char *name) {
  return first_that([name](const Choice &choice) { return !std::strcmp(choice.kernels->name, name); });
}

}  // namespace torchadder::engine
