#include "conv/dispatch.h"

#include <atomic>
#include <cstring>

#include "common/error.h"
#include "torchadder.h"

namespace torchadder {

#define KERNEL(op, isa, pixels, lanes, sum) void op##_##isa##_##pixels##x##lanes##_##sum(const Block &, const Tile &);
#include "kernels.inc"
#undef KERNEL
#define ISA(isa)                                                                    \
  void grad_weight_sign_##isa(const SignGradient &);                                \
  void transpose_##isa(const float *, float *, int64_t, int64_t, int64_t, int64_t); \
  void pack_##isa(const WeightView &, const Packing &, int);                        \
  void source_sums_##isa(const Block &, const float *const *, int64_t, float *);
ISA(avx2)
ISA(avx512)
#undef ISA
void grad_weight_sign_reference(const SignGradient &);
void transpose_reference(const float *, float *, int64_t, int64_t, int64_t, int64_t);

namespace {

constexpr Kernel kKernels[] = {
#define KERNEL(op, isa, pixels, lanes, sum)                                                 \
  {#op "_" #isa "_" #pixels "x" #lanes "_" #sum, Op::op, Isa::isa, pixels, lanes, Sum::sum, \
   op##_##isa##_##pixels##x##lanes##_##sum},
#include "kernels.inc"
#undef KERNEL
};
constexpr int kKernelCount = sizeof kKernels / sizeof *kKernels;
constexpr const char *kIsaNames[] = {"reference", "avx2", "avx512"};
#if TORCHADDER_X86
constexpr int kIsaCount = 3;
#else
constexpr int kIsaCount = 1;
#endif

Isa best_isa() {
  for (int i = kIsaCount - 1; i > 0; --i)
    if (runs_here(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return Isa::reference;
}

Sum preferred_sum() {
#if TORCHADDER_X86
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") ? Sum::add : Sum::fma;
#else
  return Sum::any;
#endif
}

std::atomic<Isa> &selected() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

std::atomic<Sum> &sum_in_use() {
  static std::atomic<Sum> sum{preferred_sum()};
  return sum;
}

bool candidate(const Kernel &kernel, Op op) {
  return kernel.op == op && kernel.isa == selected_isa() &&
         (kernel.sum == Sum::any || kernel.sum == sum_in_use().load(std::memory_order_relaxed));
}

}  // namespace

bool runs_here(Isa isa) {
#if TORCHADDER_X86
  __builtin_cpu_init();
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::reference;
}

Isa selected_isa() { return selected().load(std::memory_order_relaxed); }

const Kernel &kernel_for(Op op, int64_t lanes) {
  const Kernel *best = nullptr;
  for (const Kernel &kernel : kKernels) {
    if (!candidate(kernel, op)) continue;
    const bool holds = kernel.lanes >= lanes;
    if (!best || (holds ? best->lanes < lanes || kernel.lanes < best->lanes : kernel.lanes > best->lanes))
      best = &kernel;
  }
  return *best;
}

const IsaFunctions &isa_functions(Isa isa) {
  static const IsaFunctions functions[] = {
      {pack_by_lane, nullptr, false, false, transpose_reference, grad_weight_sign_reference, 8},
#if TORCHADDER_X86
      {pack_avx2, source_sums_avx2, true, true, transpose_avx2, grad_weight_sign_avx2, 8},
      {pack_avx512, source_sums_avx512, true, false, transpose_avx512, grad_weight_sign_avx512, 16},
#endif
  };
  return functions[static_cast<int>(isa)];
}

}  // namespace torchadder

using namespace torchadder;

extern "C" {

int torchadder_isa_count(void) { return kIsaCount; }

const char *torchadder_isa_name(int index) { return index >= 0 && index < kIsaCount ? kIsaNames[index] : nullptr; }

int torchadder_isa_runs_here(int index) {
  return index >= 0 && index < kIsaCount && runs_here(static_cast<Isa>(index));
}

int torchadder_select_isa(const char *name) {
  if (!name || !*name) {
    selected() = best_isa();
    sum_in_use() = preferred_sum();
    return 0;
  }
  const char *colon = std::strchr(name, ':');
  const std::size_t length = colon ? static_cast<std::size_t>(colon - name) : std::strlen(name);
  Sum sum = preferred_sum();
  if (colon) {
    if (std::strcmp(colon, ":fma") && std::strcmp(colon, ":add"))
      return fail("'%s' is not an instruction set: after the colon stands fma or add", name);
    sum = std::strcmp(colon, ":fma") ? Sum::add : Sum::fma;
  }
  for (int i = 0; i < kIsaCount; ++i)
    if (std::strlen(kIsaNames[i]) == length && !std::strncmp(name, kIsaNames[i], length)) {
      if (!runs_here(static_cast<Isa>(i))) return fail("this CPU cannot run the instruction set '%s'", kIsaNames[i]);
      selected() = static_cast<Isa>(i);
      sum_in_use() = sum;
      return 0;
    }
  return fail("'%s' is not an instruction set that this library was built with", name);
}

const char *torchadder_selected_isa(void) { return kIsaNames[static_cast<int>(selected_isa())]; }

const char *torchadder_selected_variant(void) {
  static const char *const names[][2] = {
      {"reference", "reference"}, {"avx2:fma", "avx2:add"}, {"avx512:fma", "avx512:add"}};
  return names[static_cast<int>(selected_isa())][sum_in_use() == Sum::add];
}

int torchadder_kernel_count(void) { return kKernelCount; }

const char *torchadder_kernel_name(int index) {
  return index >= 0 && index < kKernelCount ? kKernels[index].name : nullptr;
}

int torchadder_kernel_in_use(int index) {
  return index >= 0 && index < kKernelCount && candidate(kKernels[index], kKernels[index].op);
}

}  // extern "C"
