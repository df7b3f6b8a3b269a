// The instruction sets: which this CPU supports, and which is selected.
#pragma once

namespace torchadder {

enum class Isa {
#define INSTRUCTION_SET(name, ...) name,
#include "common/isa.inc"
};

// How the float kernels compute a forward pass: they accumulate by fma, by add, or by the same instruction on any CPU
// (kernels.inc). `half`: AVX-512 leaves it to the kernels of AVX2, half a vector at a time. All give the same bits.
enum class Variant { any, fma, add, half };

constexpr int kIsaCount = 0
#define INSTRUCTION_SET(...) +1
#include "common/isa.inc"
    ;

// The properties that isa.inc lists for each set.
bool is_supported(Isa isa);
Isa selected_as(Isa isa);
const char *isa_name(Isa isa);

// The selection holds for the whole process: TORCHADDER_ISA's, or the best set of this CPU, until
// torchadder_select_isa() changes it. is_selected() fails, with a line, while TORCHADDER_ISA is wrong.
bool is_selected();
Isa selected_isa();
Variant forced_variant();  // any: the faster one here, see conv/dispatch.h

}  // namespace torchadder
