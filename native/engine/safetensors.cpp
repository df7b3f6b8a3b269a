#include "safetensors.h"

#include <algorithm>
#include <cstring>

#include "json.h"
#include "unsound.h"

namespace torchadder::engine {
namespace {

constexpr std::size_t kLength = 8;  // of the length of the header
constexpr uint64_t kMostHeader = 100'000'000;
constexpr int64_t kMost = int64_t{1} << 48;

int64_t item_bytes(const std::string &dtype) {
  static constexpr struct {
    const char *name;
    int64_t bytes;
  } known[] = {{"U8", 1}, {"I8", 1}, {"I32", 4}, {"F32", 4}};
  for (const auto &one : known)
    if (dtype == one.name) return one.bytes;
  unsound("a tensor is of type '%.20s', expected U8, I8, I32 or F32", dtype.c_str());
}

}  // namespace

Safetensors Safetensors::view(std::string_view bytes, const char *metadata_entry) {
  if (bytes.size() < kLength) unsound("it is too short for a safetensors file (%zu bytes)", bytes.size());
  uint64_t length = 0;
  for (std::size_t i = kLength; i-- > 0;) length = length << 8 | static_cast<uint8_t>(bytes[i]);
  if (length > kMostHeader || length > bytes.size() - kLength)
    unsound("its header is %llu bytes long, the file %zu", static_cast<unsigned long long>(length), bytes.size());
  const Json head = Json::parse(bytes.substr(kLength, length));
  const std::string_view data = bytes.substr(kLength + length);
  Safetensors found;
  std::vector<std::pair<int64_t, int64_t>> parts;
  const auto size = static_cast<int64_t>(data.size());
  for (const auto &[name, about] : head.object("its head")) {
    if (name == "__metadata__") continue;
    TensorView tensor;
    tensor.dtype = about.at("dtype").text("dtype");
    tensor.bytes = item_bytes(tensor.dtype);
    for (const Json &length_of_axis : about.at("shape").list("shape")) {
      tensor.shape.push_back(length_of_axis.whole("size of a tensor", 0, kMost));
      if (tensor.shape.back() && tensor.bytes > kMost / tensor.shape.back()) unsound("a tensor is too large");
      tensor.bytes *= tensor.shape.back();
    }
    const auto &offsets = about.at("data_offsets").list("data_offsets");
    if (offsets.size() != 2) unsound("data_offsets of '%.60s' are not two", name.c_str());
    const int64_t begin = offsets[0].whole("data offset", 0, size), end = offsets[1].whole("data offset", begin, size);
    if (end - begin != tensor.bytes) unsound("'%.60s' is not as long as its shape", name.c_str());
    tensor.data = reinterpret_cast<const uint8_t *>(data.data()) + begin;
    parts.emplace_back(begin, end);
    found.tensors.emplace(name, std::move(tensor));
  }
  std::sort(parts.begin(), parts.end());
  int64_t at = 0;
  for (const auto &[begin, end] : parts) {
    if (begin != at) unsound("its tensors overlap, or leave a gap at byte %lld", static_cast<long long>(at));
    at = end;
  }
  if (at != size) unsound("it holds %lld bytes behind its tensors", static_cast<long long>(size - at));
  const Json *metadata = head.find("__metadata__");
  const Json *entry = metadata ? metadata->find(metadata_entry) : nullptr;
  if (!entry) unsound("it is no .tadder file");
  found.metadata = entry->text("metadata");
  return found;
}

}  // namespace torchadder::engine
