// A block of channels before it meets a class of pixels, and the memory that it is packed into.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

#include "conv/dispatch.h"

namespace torchadder {

struct FreeAligned {
  void operator()(float *p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float[], FreeAligned>;
inline Buffer make_buffer(int64_t floats) {
  const std::size_t bytes = static_cast<std::size_t>(floats > 0 ? floats : 1) * sizeof(float);
  return Buffer(static_cast<float *>(::operator new[](bytes, std::align_val_t{64})));
}

// The calling thread's own memory for one use, kept between calls and grown when needed; the next call for the same use
// gets it again.
enum class Use { packing, source, state, result };
template <Use>
float *scratch(int64_t floats) {
  thread_local Buffer memory;
  thread_local int64_t size = 0;
  if (floats > size) {
    memory.reset();
    size = 0;
    memory = make_buffer(floats);
    size = floats;
  }
  return memory.get();
}

struct ChannelBlock {
  const Kernel *kernel;
  int64_t source_channel, channel;
  Packing packing;
  int source_lanes = 0;  // grouped
};

}  // namespace torchadder
