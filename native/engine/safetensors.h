// The tensors of a safetensors file that lies in memory, every offset checked.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace torchadder::engine {

struct TensorView {
  std::string dtype;  // as the format names it: U8, I8, I32, F32, ...
  std::vector<int64_t> shape;
  const uint8_t *data;  // not aligned
  int64_t bytes;
};

struct Safetensors {
  std::string metadata;  // the entry asked for
  std::map<std::string, TensorView> tensors;

  // Views of `bytes`, which must outlive them. Throws Unsound.
  static Safetensors view(std::string_view bytes, const char *metadata_entry);
};

}  // namespace torchadder::engine
