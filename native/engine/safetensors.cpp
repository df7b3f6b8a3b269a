#include "engine/safetensors.h"

#include <algorithm>

#include "common/error.h"
#include "engine/json.h"

namespace torchadder::engine {
namespace {

constexpr std::size_t kLengthBytes = 8;  // the length of the header, little-endian, before the header
constexpr uint64_t kMaxHeader = 100'000'000;
constexpr int64_t kMaxTensor = int64_t{1} << 48;  // bytes

int64_t item_bytes(const std::string &dtype) {
  if (dtype == "U8" || dtype == "I8") return 1;
  if (dtype == "I32" || dtype == "F32") return 4;
  reject("a tensor has dtype '%.20s', expected U8, I8, I32 or F32", dtype.c_str());
}

}  // namespace

Safetensors Safetensors::view(std::string_view bytes, const char *metadata_entry) {
  if (bytes.size() < kLengthBytes) reject("it is too short for a .tadder file: %zu bytes", bytes.size());
  uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<uint8_t>(bytes[i]);
  if (length > kMaxHeader || length > bytes.size() - kLengthBytes)
    reject("it is no .tadder file, or a part of one: expected a whole one, as torchadder quantize writes it");
  const Json head = Json::parse(bytes.substr(kLengthBytes, length));
  const std::string_view data = bytes.substr(kLengthBytes + length);
  const auto size = static_cast<int64_t>(data.size());
  Safetensors file;
  std::vector<std::pair<int64_t, int64_t>> ranges;  // [begin, end) of each tensor in the data
  for (const auto &[name, entry] : head.object("its head")) {
    if (name == "__metadata__") continue;
    TensorView tensor;
    tensor.dtype = entry.at("dtype").text("dtype");
    tensor.bytes = item_bytes(tensor.dtype);
    for (const Json &side : entry.at("shape").list("shape")) {
      tensor.shape.push_back(side.whole("size of a tensor", 0, kMaxTensor));
      if (tensor.shape.back() && tensor.bytes > kMaxTensor / tensor.shape.back())
        reject("tensor '%.60s' is too large", name.c_str());
      tensor.bytes *= tensor.shape.back();
    }
    const auto &offsets = entry.at("data_offsets").list("data_offsets");
    if (offsets.size() != 2) reject("tensor '%.60s' has %zu data offsets, expected 2", name.c_str(), offsets.size());
    const int64_t begin = offsets[0].whole("data offset", 0, size), end = offsets[1].whole("data offset", begin, size);
    if (end - begin != tensor.bytes)
      reject("tensor '%.60s' has %lld bytes, its shape needs %lld", name.c_str(), static_cast<long long>(end - begin),
             static_cast<long long>(tensor.bytes));
    tensor.data = reinterpret_cast<const uint8_t *>(data.data()) + begin;
    ranges.emplace_back(begin, end);
    file.tensors.emplace(name, std::move(tensor));
  }
  std::sort(ranges.begin(), ranges.end());
  int64_t covered = 0;
  for (const auto &[begin, end] : ranges) {
    if (begin != covered) reject("its tensors overlap or leave a gap at byte %lld", static_cast<long long>(covered));
    covered = end;
  }
  if (covered != size) reject("it has %lld bytes after its tensors", static_cast<long long>(size - covered));
  const Json *metadata = head.find("__metadata__");
  const Json *entry = metadata ? metadata->find(metadata_entry) : nullptr;
  if (!entry) reject("it is not a .tadder file: its metadata lacks '%s'", metadata_entry);
  file.metadata = entry->text("metadata");
  return file;
}

}  // namespace torchadder::engine
