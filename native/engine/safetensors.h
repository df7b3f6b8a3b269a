// A reader of safetensors files in memory. It checks every offset.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace torchadder::engine {

struct TensorView {
  std::string dtype;  // U8, I8, I32 or F32
  std::vector<int64_t> shape;
  const uint8_t *data;  // not aligned
  int64_t bytes;
};

struct Safetensors {
  std::string metadata;                       // the text of one metadata entry
  std::map<std::string, TensorView> tensors;  // by name

  // Returns views into `bytes`, which must outlive them. Throws FileError.
  static Safetensors view(std::string_view bytes, const char *metadata_entry);
};

}  // namespace torchadder::engine
