#include "common/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#if TORCHADDER_NEON && defined(__APPLE__)
#include <sys/sysctl.h>
#elif TORCHADDER_NEON
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "common/error.h"
#include "torchadder.h"

namespace torchadder {
namespace {

constexpr const char *kNames[] = {
#define INSTRUCTION_SET(name, ...) #name,
#include "common/isa.inc"
};
constexpr Isa kSelectedAs[] = {
#define INSTRUCTION_SET(name, selected_as, ...) Isa::selected_as,
#include "common/isa.inc"
};

Isa best_isa() {
  for (int i = kIsaCount - 1; i > 0; --i)
    if (const Isa isa = static_cast<Isa>(i); kSelectedAs[i] == isa && is_supported(isa)) return isa;
  return Isa::reference;
}

constexpr int kUnknown = -1;
std::atomic<int> selected{kUnknown};  // an Isa, once one was selected by a call or by TORCHADDER_ISA
std::atomic<Variant> forced{Variant::any};

// Returns the set that is number `index` among those that can be selected, or -1 if there are fewer.
int selectable(int index) {
  for (int i = 0; i < kIsaCount; ++i)
    if (kSelectedAs[i] == static_cast<Isa>(i) && index-- == 0) return i;
  return -1;
}

// Returns the names of the sets that this CPU can run, with commas between.
std::string runnable() {
  std::string found;
  for (int i = 0; i < kIsaCount; ++i)
    if (const Isa isa = static_cast<Isa>(i); kSelectedAs[i] == isa && is_supported(isa))
      found += (found.empty() ? "" : ", ") + std::string(kNames[i]);
  return found;
}

}  // namespace

// For the conditions in isa.inc.
#define HAS(feature) __builtin_cpu_supports(feature)

#if TORCHADDER_NEON
static bool has_dot_product() {
#if defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof has;
  return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) && has;
#else
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
}
#endif

bool is_supported(Isa isa) {
#if TORCHADDER_X86
  __builtin_cpu_init();
#endif
  switch (isa) {
#define INSTRUCTION_SET(name, selected_as, conv, engine, is_supported, ...) \
  case Isa::name:                                                           \
    return is_supported;
#include "common/isa.inc"
  }
  return false;
}

Isa selected_as(Isa isa) { return kSelectedAs[static_cast<int>(isa)]; }
const char *isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }
bool is_selected() { return selected.load(std::memory_order_relaxed) != kUnknown || !torchadder_select_isa(nullptr); }
Isa selected_isa() { return is_selected() ? static_cast<Isa>(selected.load(std::memory_order_relaxed)) : best_isa(); }
Variant forced_variant() { return forced.load(std::memory_order_relaxed); }

}  // namespace torchadder

using namespace torchadder;

extern "C" {

int torchadder_isa_count(void) {
  int count = 0;
  while (selectable(count) >= 0) ++count;
  return count;
}

const char *torchadder_isa_name(int index) {
  const int isa = index < 0 ? -1 : selectable(index);
  return isa < 0 ? nullptr : kNames[isa];
}

int torchadder_isa_runs_here(int index) {
  const int isa = index < 0 ? -1 : selectable(index);
  return isa >= 0 && is_supported(static_cast<Isa>(isa));
}

int torchadder_select_isa(const char *name) {
  if (!name) {
    const char *const wanted = std::getenv("TORCHADDER_ISA");
    if (!torchadder_select_isa(wanted ? wanted : "")) return 0;
    return fail("TORCHADDER_ISA=%s: %s", wanted, std::string(torchadder_last_error()).c_str());
  }
  if (!*name) {
    forced = Variant::any;
    selected = static_cast<int>(best_isa());
    return 0;
  }
  const char *colon = std::strchr(name, ':');
  const std::size_t length = colon ? static_cast<std::size_t>(colon - name) : std::strlen(name);
  Variant sum = Variant::any;
  if (colon) {
    const bool has_half = length == 6 && !std::strncmp(name, "avx512", length);
    if (!std::strcmp(colon, ":fma"))
      sum = Variant::fma;
    else if (!std::strcmp(colon, ":add"))
      sum = Variant::add;
    else if (has_half && !std::strcmp(colon, ":half"))
      sum = Variant::half;
    else
      return fail("'%s' is not an instruction set: expected fma%s add after the colon", name,
                  has_half ? ", half or" : " or");
  }
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (kSelectedAs[i] != isa || std::strlen(kNames[i]) != length || std::strncmp(name, kNames[i], length)) continue;
    if (!is_supported(isa))
      return fail("this CPU cannot run the instruction set '%s': choose one of %s", kNames[i], runnable().c_str());
    forced = sum;
    selected = i;
    return 0;
  }
  return fail("'%s' is not an instruction set of this library: choose one of %s", name, runnable().c_str());
}

const char *torchadder_selected_isa(void) { return isa_name(selected_isa()); }

}  // extern "C"
