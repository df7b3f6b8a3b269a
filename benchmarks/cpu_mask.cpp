// Hides AVX-512, AVX-VNNI and AMX from a process: Linux makes the CPUID instruction fault, and a signal handler answers
// it.
//
// `torchadder bench latency --cpu avx2` compiles this file (c++ -O2 -shared -fPIC) and preloads it (LD_PRELOAD, with
// TORCHADDER_CPU=avx2 in the environment). Every library then chooses as on a CPU that has no more than AVX2. Threads
// inherit the fault; exec ends it, and the preload sets it again. glibc has looked at the CPU before that.
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

struct sigaction previous;
bool active = false;

bool set_cpuid_faults(bool fault) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, fault ? 0UL : 1UL) == 0; }

template <typename... Bits>
constexpr uint32_t without(Bits... bits) {
  return ~(... | (uint32_t{1} << bits));
}

struct Answer {
  uint32_t eax, ebx, ecx, edx;
};

Answer masked(uint32_t leaf, uint32_t subleaf) {
  Answer answer{};
  set_cpuid_faults(false);
  __cpuid_count(leaf, subleaf, answer.eax, answer.ebx, answer.ecx, answer.edx);
  set_cpuid_faults(true);
  if (leaf == 7 && subleaf == 0) {
    // AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL
    answer.ebx &= without(16, 17, 21, 26, 27, 28, 30, 31);
    // AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
    answer.ecx &= without(1, 6, 11, 12, 14);
    // AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16, AMX-BF16, AMX-TILE, AMX-INT8
    answer.edx &= without(2, 3, 8, 23, 22, 24, 25);
  } else if (leaf == 7 && subleaf == 1) {
    // AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA
    answer.eax &= without(4, 5, 21, 23);
    // AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10, APX
    answer.edx &= without(4, 5, 8, 10, 19, 21);
  } else if (leaf == 0xd && subleaf == 0) {
    // the state of mask, ZMM and tile registers, and of APX
    answer.eax &= without(5, 6, 7, 17, 18, 19);
  } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
    answer = {};  // tiles and AVX10
  }
  return answer;
}

void answer_cpuid(int signal, siginfo_t *info, void *context) {
  greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
  const auto *code = reinterpret_cast<const unsigned char *>(registers[REG_RIP]);
  if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
    const Answer answer = masked(registers[REG_RAX], registers[REG_RCX]);
    registers[REG_RAX] = answer.eax;
    registers[REG_RBX] = answer.ebx;
    registers[REG_RCX] = answer.ecx;
    registers[REG_RDX] = answer.edx;
    registers[REG_RIP] += 2;
  } else {
    // The instruction runs again and faults for the handler that was there before.
    sigaction(signal, &previous, nullptr);
  }
}

__attribute__((constructor)) void hide() {
  const char *cpu = getenv("TORCHADDER_CPU");
  if (cpu == nullptr || strcmp(cpu, "avx2") != 0) return;
  struct sigaction action = {};
  action.sa_sigaction = answer_cpuid;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, &previous) != 0 || !set_cpuid_faults(true)) {
    const char message[] = "this kernel or CPU cannot hide instruction sets (no CPUID faulting)\n";
    const ssize_t written = write(STDERR_FILENO, message, sizeof message - 1);
    _exit(written < 0 ? 2 : 1);
  }
  active = true;
}

}  // namespace

// Tells the process that the mask works: a dynamic linker that cannot load the library only warns.
extern "C" int torchadder_cpu_is_masked() { return active; }
