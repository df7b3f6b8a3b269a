// The instruction sets: which this CPU supports, and which is selected.
#pragma once

namespace torchadder {

enum class Isa {
#define INSTRUCTION_SET(name, ...) name,
#include "common/isa.inc"
};

// The instruction with which float kernels accumulate: fma, add, or the same one on any CPU (kernels.inc).
enum class Sum { any, fma, add };

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
Sum forced_sum();  // any: the faster one here, see conv/dispatch.h

}  // namespace torchadder
