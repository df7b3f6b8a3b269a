// What is worked out once when a program is loaded: where every value lies in the arena, packed weights, tables.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/job.h"
#include "engine/program.h"

namespace torchadder::engine {

// Memory on a cache line.
struct AlignedDelete {
  void operator()(uint8_t *bytes) const;
};
using Bytes = std::unique_ptr<uint8_t[], AlignedDelete>;
Bytes aligned_bytes(int64_t size);  // zeroed

// Rows of pixels in the arena, with a halo of rows and columns around them, for layers that pad.
struct Layout {
  int64_t offset = 0;  // of the first byte, halo included
  int64_t pixel = 0;   // bytes
  int64_t height = 0, width = 0, halo[2] = {0, 0};
  std::vector<uint8_t> border;  // a row of the halo; empty without one
  int64_t row() const { return (width + 2 * halo[1]) * pixel; }
  int64_t rows() const { return height + 2 * halo[0]; }
  int64_t bytes() const { return rows() * row(); }
  int64_t origin() const { return offset + halo[0] * row() + halo[1] * pixel; }  // of pixel (0, 0)
};

// A layer: the copy of its input that it reads, if it does not read the value itself, and its numbers.
struct LayerPlan {
  bool copies = false;
  Layout copy;
  std::vector<uint8_t> zero_row;  // binary: the zeros of a row of the value
  int rows = 0, steps = 0, blocks = 0;
  uint64_t tail = 0;
  int64_t block_bytes = 0;
  Bytes weight;
  std::vector<int32_t> multiplier, offset, shift, factor, weight_sum, base, row_class, column_class;
};

struct Plan {
  Program program;  // whose weights are packed, and gone
  const Kernels *kernels;
  std::vector<Layout> values;
  std::vector<LayerPlan> layers;  // one a step; of a pool empty
  int64_t arena_bytes, weight_bytes;

  // keep_values: no two values share memory. Throws Unsound.
  Plan(Program program, const Kernels *kernels, bool keep_values);
};

}  // namespace torchadder::engine
