#include "conv/dispatch.h"

#include <atomic>
#include <iterator>

#include "conv/timing.h"
#include "torchadder.h"

namespace torchadder {

// Each instruction set with float kernels has a table with an entry for every CONV_KERNEL line. An entry is null if the
// line is of another set.
#define DECLARE_yes(name)                        \
  extern const TileKernel conv_kernels_##name[]; \
  extern const AuxiliaryKernels conv_auxiliary_##name;
#define DECLARE_no(name)
#define INSTRUCTION_SET(name, selected_as, conv, ...) DECLARE_##conv(name)
#include "common/isa.inc"

namespace {

constexpr Kernel kListed[] = {
#define CONV_KERNEL(op, isa, pixels, lanes, sum) \
  {#op "_" #isa "_" #pixels "x" #lanes "_" #sum, Op::op, Isa::isa, pixels, lanes, Variant::sum, nullptr},
#include "kernels.inc"
};
constexpr int kKernelCount = static_cast<int>(std::size(kListed));

struct KernelTable {
  Kernel kernels[kKernelCount];
  KernelTable() {
    const TileKernel *const tables[] = {
#define TABLE_yes(name) conv_kernels_##name,
#define TABLE_no(name) nullptr,
#define INSTRUCTION_SET(name, selected_as, conv, ...) TABLE_##conv(name)
#include "common/isa.inc"
    };
    for (int i = 0; i < kKernelCount; ++i) {
      kernels[i] = kListed[i];
      kernels[i].run = tables[static_cast<int>(kListed[i].isa)][i];
    }
  }
};

const Kernel (&kernels()) [kKernelCount] {
  static const KernelTable table;
  return table.kernels;
}

// Returns the widest forward kernel of `isa` that accumulates by `sum`, or null.
const Kernel *widest(Isa isa, Variant sum) {
  const Kernel *found = nullptr;
  for (const Kernel &kernel : kernels())
    if (kernel.op == Op::forward_f32 && kernel.isa == isa && kernel.sum == sum &&
        (!found || kernel.lanes > found->lanes))
      found = &kernel;
  return found;
}

// Returns the set whose vectors are half as wide, or `isa` if there is none. Its forward passes give the same bits.
Isa half_of(Isa isa) {
#if TORCHADDER_X86
  if (isa == Isa::avx512 && is_supported(Isa::avx2)) return Isa::avx2;
#endif
  return isa;
}

bool leaves_few_channels(Op op) { return op == Op::forward_f32 || op == Op::grad_input_f32; }

// Calls compute(isa) once for each set, and returns what it returned.
template <class Result, class Compute>
Result once(Isa isa, std::atomic<Result> (&results)[kIsaCount], std::atomic<bool> (&is_known)[kIsaCount],
            Compute &&compute) {
  const auto at = static_cast<std::size_t>(isa);
  if (!is_known[at]) {
    results[at] = compute(isa);
    is_known[at] = true;
  }
  return results[at];
}

// Returns how the kernels of `isa` accumulate, whether or not halves are faster: as forced, else the faster way here.
Variant variant_of(Isa isa) {
  static std::atomic<Variant> results[kIsaCount];
  static std::atomic<bool> is_known[kIsaCount];
  if (const Variant forced = forced_variant(); forced != Variant::any && widest(isa, forced)) return forced;
  return once(isa, results, is_known, [](Isa of) {
    const Kernel *const fma = widest(of, Variant::fma), *const add = widest(of, Variant::add);
    return !fma || !add ? Variant::any : is_faster(*add, *fma) ? Variant::add : Variant::fma;
  });
}

bool is_half_faster(Isa isa) {
  static std::atomic<bool> results[kIsaCount], is_known[kIsaCount];
  return once(isa, results, is_known, [](Isa of) {
    const Isa half = half_of(of);
    return half != of && is_faster(*widest(half, variant_of(half)), *widest(of, variant_of(of)));
  });
}

// Returns the last set that lists `op`, up to the sets that extend `isa`.
Isa isa_of(Op op, Isa isa) {
  Isa found = Isa::reference;
  for (const Kernel &kernel : kListed)
    if (kernel.op == op && kernel.isa > found && selected_as(kernel.isa) <= isa && is_supported(kernel.isa))
      found = kernel.isa;
  return found;
}

bool is_in_use(const Kernel &kernel, Op op, Isa isa, Variant sum) {
  return kernel.op == op && kernel.isa == isa && (kernel.sum == Variant::any || kernel.sum == sum);
}

}  // namespace

Variant selected_variant() {
  const Isa isa = selected_isa();
  const Variant forced = forced_variant();
  if (forced == Variant::half && half_of(isa) != isa) return forced;
  if (forced == Variant::fma || forced == Variant::add) return variant_of(isa);
  return is_half_faster(isa) ? Variant::half : variant_of(isa);
}

Isa isa_for(Op op, int64_t channels) {
  const Isa isa = selected_isa();
  const bool is_half = (op == Op::forward_f32 && selected_variant() == Variant::half) ||
                       (channels <= kFewChannels && leaves_few_channels(op));
  return isa_of(op, is_half ? half_of(isa) : isa);
}

const Kernel &kernel_for(Op op, Isa isa, int64_t lanes) {
  const Variant sum = variant_of(isa);
  const Kernel *best = nullptr;
  for (const Kernel &kernel : kernels()) {
    if (!is_in_use(kernel, op, isa, sum)) continue;
    const bool holds = kernel.lanes >= lanes;
    if (!best || (holds ? best->lanes < lanes || kernel.lanes < best->lanes : kernel.lanes > best->lanes))
      best = &kernel;
  }
  return *best;
}

Op grad_input_op(int64_t channels, int64_t depth) {
  constexpr Op few = Op::few_grad_f32;
  const Isa isa = isa_of(few, selected_isa());
  if (isa == Isa::reference || depth < 2 * kFewChannels) return Op::grad_input_f32;
  return channels <= kernel_for(few, isa, channels).lanes ? few : Op::grad_input_f32;
}

const AuxiliaryKernels &auxiliary_kernels(Isa isa) {
  static const AuxiliaryKernels *const auxiliary[] = {
#define AUXILIARY_yes(name) &conv_auxiliary_##name,
#define AUXILIARY_no(name) nullptr,
#define INSTRUCTION_SET(name, selected_as, conv, ...) AUXILIARY_##conv(name)
#include "common/isa.inc"
  };
  return *auxiliary[static_cast<int>(isa)];
}

}  // namespace torchadder

using namespace torchadder;

extern "C" {

const char *torchadder_selected_variant(void) {
  static const char *const names[][4] = {
#define INSTRUCTION_SET(name, ...) {#name, #name ":fma", #name ":add", #name ":half"},
#include "common/isa.inc"
  };
  return names[static_cast<int>(selected_isa())][static_cast<int>(selected_variant())];
}

int torchadder_kernel_count(void) { return kKernelCount; }

const char *torchadder_kernel_name(int index) {
  return index >= 0 && index < kKernelCount ? kListed[index].name : nullptr;
}

int torchadder_kernel_in_use(int index) {
  if (index < 0 || index >= kKernelCount) return 0;
  const Op op = kListed[index].op;
  for (const int64_t channels : {int64_t{1}, kFewChannels + 1})
    if (const Isa isa = isa_for(op, channels); is_in_use(kListed[index], op, isa, variant_of(isa))) return 1;
  return 0;
}

}  // extern "C"
