#include "engine/kernels.h"

#include <atomic>
#include <cstring>
#include <iterator>

#include "engine/timing.h"

namespace torchadder::engine {

// Each instruction set of the engine has a table with an entry for every ENGINE_KERNEL line. An entry is null if the
// line is of another set.
#define DECLARE_yes(name)                            \
  extern const LayerKernels engine_kernels_##name[]; \
  extern const AuxiliaryKernels engine_auxiliary_##name;
#define DECLARE_no(name)
#define INSTRUCTION_SET(name, selected_as, conv, engine, ...) DECLARE_##engine(name)
#include "common/isa.inc"

namespace {

constexpr Work adder_u8 = Work::adder, conv_u8 = Work::conv, binary = Work::binary,
               adder_depthwise = Work::adder_depthwise, conv_depthwise = Work::conv_depthwise;
constexpr struct {
  const char *name;
  Work work;
  Isa isa;
} kListed[] = {
#define ENGINE_KERNEL(op, isa, pixels, channels) {#op "_" #isa "_" #pixels "x" #channels, op, Isa::isa},
#include "kernels.inc"
};

constexpr const LayerKernels *kTables[] = {
#define TABLE_yes(name) engine_kernels_##name,
#define TABLE_no(name) nullptr,
#define INSTRUCTION_SET(name, selected_as, conv, engine, ...) TABLE_##engine(name)
#include "common/isa.inc"
};

constexpr const AuxiliaryKernels *kAuxiliary[] = {
#define AUXILIARY_yes(name) &engine_auxiliary_##name,
#define AUXILIARY_no(name) nullptr,
#define INSTRUCTION_SET(name, selected_as, conv, engine, ...) AUXILIARY_##engine(name)
#include "common/isa.inc"
};

// Returns the line of an operator for `isa`; if there is none, the line of the set that `isa` extends.
int listed(Work work, Isa isa) {
  int found = -1;
  for (int i = 0; i < static_cast<int>(std::size(kListed)); ++i)
    if (kListed[i].work == work && (kListed[i].isa == isa || (found < 0 && kListed[i].isa == selected_as(isa))))
      found = i;
  return found;
}

[[maybe_unused]] constexpr bool no = false, yes = true;
constexpr bool kIsTimed[] = {
#define INSTRUCTION_SET(name, selected_as, conv, engine, is_supported, timed) timed,
#include "common/isa.inc"
};

// Returns whether a set that this CPU supports is at least as fast as the one that it extends.
bool is_chosen(Isa isa) {
  if (!kIsTimed[static_cast<int>(isa)]) return true;
  const auto adder = [](Isa of) { return kTables[static_cast<int>(of)][listed(Work::adder, of)].layer; };
  static std::atomic<int> known[kIsaCount];  // 0: not timed yet, 1: slower, 2: faster
  std::atomic<int> &result = known[static_cast<int>(isa)];
  if (!result) result = 1 + is_faster_adder(adder(isa), adder(selected_as(isa)));
  return result == 2;
}

}  // namespace

Kernels::Kernels(Isa isa) : auxiliary_(kAuxiliary[static_cast<int>(isa)]) {
  for (int work = 0; work < kWorks; ++work) {
    const int line = listed(static_cast<Work>(work), isa);
    names_[work] = kListed[line].name;
    layers_[work] = kTables[static_cast<int>(kListed[line].isa)][line];
  }
}

const char *Kernels::name(const Step &step) const {
  if (step.op == Op::max_pool) return "max_pool";
  if (step.op == Op::average_pool) return "average_pool";
  if (step.op == Op::table) return "table";
  if (step.op == Op::concat) return "concat";
  return names_[static_cast<int>(step.work())];
}

const Kernels *Kernels::find(const char *name) {
  static const Kernels all[] = {
#define INSTRUCTION_SET(name, ...) Kernels(Isa::name),
#include "common/isa.inc"
  };
  for (int i = kIsaCount; i-- > 0;) {
    const Isa isa = static_cast<Isa>(i);
    if (!kTables[i] || !is_supported(isa)) continue;
    if (name ? !std::strcmp(isa_name(isa), name) : selected_as(isa) <= selected_isa() && is_chosen(isa)) return &all[i];
  }
  return nullptr;
}

std::string Kernels::names() {
  std::string found;
  for (int i = 0; i < kIsaCount; ++i)
    if (const Isa isa = static_cast<Isa>(i); kTables[i] && is_supported(isa))
      found += (found.empty() ? "" : ", ") + std::string(isa_name(isa));
  return found;
}

}  // namespace torchadder::engine
