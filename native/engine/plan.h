// The plan of a program, computed once when it is loaded: the byte offset of each buffer in the arena, packed weights,
// and tables by channel.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kernels.h"
#include "engine/program.h"

namespace torchadder::engine {

struct AlignedDelete {
  void operator()(uint8_t *bytes) const;
};
using Bytes = std::unique_ptr<uint8_t[], AlignedDelete>;

// Returns memory at a cache line, zeroed, with kSlack more bytes.
Bytes aligned_bytes(int64_t size);

// A value in the arena: rows of pixels, with a halo of rows and columns around them for the layers that pad.
struct Layout {
  int64_t offset = 0;                               // of its first byte in the arena, halo included
  int64_t pixel = 0;                                // bytes
  int64_t height = 0, width = 0, halo[2] = {0, 0};  // pixels; the halo is on either side
  std::vector<uint8_t> border;                      // a row of the halo; empty without a halo
  int64_t row() const { return (width + 2 * halo[1]) * pixel; }
  int64_t rows() const { return height + 2 * halo[0]; }
  int64_t bytes() const { return rows() * row(); }
  int64_t origin() const { return offset + halo[0] * row() + halo[1] * pixel; }  // of pixel (0, 0)
};

// The constants of a layer; job.h says what they mean.
struct LayerPlan {
  CopyKernel copies = nullptr;          // makes the copy of the source that the layer reads; null if it reads that
  Layout copy;                          // if the source is copied
  std::vector<uint8_t> zero_point_row;  // signs: the zero points of a row of the source
  std::vector<int64_t> row_offset;
  int rows = 0, steps = 0;  // rows of a patch, steps of each
  int groups = 1;           // that run one after the other
  int blocks = 0;           // of output channels, of a group
  int source_offset = 0;
  uint64_t tail_mask = 0;
  int64_t block_bytes = 0, weight_bytes = 0;
  Bytes weight;
  bool pools = false;  // the layer computes the max pooling after it as well; its own value is in no memory
  std::vector<int32_t> multiplier, offset, shift, factor, weight_sum, base, row_class, column_class;
};

struct Plan {
  Program program;  // without its weights, which are packed
  const Kernels *kernels;
  std::vector<Layout> values;
  std::vector<LayerPlan> layers;  // one a step; of a pool empty
  int64_t arena_bytes, weight_bytes;

  // Returns whether a step is the max pooling that the layer before it computes.
  bool is_in_layer_before(std::size_t step) const { return step > 0 && layers[step - 1].pools; }
  // Returns the value that a step writes.
  std::size_t value_of(std::size_t step) const { return step + (layers[step].pools ? 2 : 1); }

  // keep_values: every value is kept, and no two share memory. Throws FileError for a program that needs too much
  // memory.
  Plan(Program program, const Kernels *kernels, bool keep_values);
};

}  // namespace torchadder::engine
