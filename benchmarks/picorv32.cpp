// Runs a program on the RTL of PicoRV32, compiled by Verilator, and prints what it writes to address 0x10000000: the
// number of wrong test vectors, then the cycles of one image. Memory answers in the next cycle.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "Vpicorv32.h"
#include "verilated.h"

int main(int argc, char **argv) {
  constexpr uint32_t kOutput = 0x10000000;
  constexpr uint64_t kLimit = 4'000'000'000;
  if (argc < 2) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  std::vector<char> memory(std::istreambuf_iterator<char>(file), {});
  memory.resize(1 << 20);
  Vpicorv32 core;
  core.mem_ready = 1;
  int outputs = 0;
  for (uint64_t cycle = 0; cycle < kLimit && outputs < 2; ++cycle) {
    core.resetn = cycle >= 10;
    core.clk = 0;
    core.eval();
    const uint32_t address = core.mem_la_addr;
    const bool reads = core.mem_la_read, writes = core.mem_la_write;
    const uint32_t data = core.mem_la_wdata, lanes = core.mem_la_wstrb;
    core.clk = 1;
    core.eval();
    if (core.trap || (address >= memory.size() && address != kOutput && (reads || writes))) return 1;
    if (reads) std::memcpy(&core.mem_rdata, &memory[address], 4);
    if (!writes) continue;
    if (address == kOutput) {
      std::printf("%u\n", data);
      ++outputs;
      continue;
    }
    for (uint32_t lane = 0; lane < 4; ++lane)
      if (lanes >> lane & 1) memory[address + lane] = static_cast<char>(data >> 8 * lane);
  }
  return outputs < 2;
}
