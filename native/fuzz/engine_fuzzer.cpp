// Gives damaged .tadder files to the engine. Each must be rejected with one line, or run within its buffers.
//
// With clang, as a libFuzzer target:
//     clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -DTORCHADDER_LIBFUZZER ... engine_fuzzer.cpp
// With any compiler, as a program that mutates the files of the corpus for a number of seconds:
//     engine_fuzzer SECONDS SEED FILE...
// tests/native/test_fuzzer.py has the sources and flags that both need.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "torchadder_engine.h"

namespace {

constexpr int64_t kMaxWork = 30'000'000, kMaxMemory = 1 << 24;  // so that a case takes milliseconds

using Random = std::mt19937;

std::size_t below(Random &random, std::size_t limit) { return random() % limit; }

// Replacements that are at a limit, of another type, or no JSON.
const char *const kNumbers[] = {"0",
                                "1",
                                "2",
                                "3",
                                "-1",
                                "7",
                                "8",
                                "255",
                                "256",
                                "16384",
                                "16385",
                                "65536",
                                "1e3",
                                "0.5",
                                "null",
                                "[]",
                                "true",
                                "2147483647",
                                "2147483648",
                                "4294967295",
                                "\"adder\"",
                                "{}",
                                "\\\"",
                                "-2147483648",
                                "9223372036854775807",
                                "18446744073709551616",
                                "\"\\u0041\""};

// Replaces one number of the head by one of kNumbers.
void mutate_number(std::string &head, Random &random) {
  std::vector<std::pair<std::size_t, std::size_t>> found;
  for (std::size_t i = 0; i < head.size();) {
    std::size_t end = i;
    while (end < head.size() && std::isdigit(static_cast<unsigned char>(head[end]))) ++end;
    if (end > i) found.emplace_back(i, end - i);
    i = end + 1;
  }
  if (found.empty()) return;
  const auto [at, length] = found[below(random, found.size())];
  head.replace(at, length, kNumbers[below(random, std::size(kNumbers))]);
}

void mutate_bytes(std::string &text, Random &random) {
  if (text.empty()) return;
  const std::size_t at = below(random, text.size());
  switch (below(random, 4)) {
    case 0:
      text[at] = static_cast<char>(random());
      break;
    case 1:
      text.erase(at, 1 + below(random, 16));
      break;
    case 2:
      text.insert(at, text.substr(below(random, text.size()), below(random, 32)));
      break;
    default:
      text[at] = static_cast<char>(text[at] ^ 1 << below(random, 8));
  }
}

// Returns the file with a few changes. The length of its head is correct in most cases: a file with a wrong length is
// rejected before anything else is read.
std::string mutated(const std::string &file, Random &random) {
  uint64_t length = 0;
  if (file.size() >= 8) std::memcpy(&length, file.data(), 8);
  if (length > file.size() - 8 || file.size() < 8) length = 0;
  std::string head = file.substr(file.size() < 8 ? 0 : 8, length),
              data = file.substr(std::min<std::size_t>(file.size(), 8 + length));
  for (std::size_t i = 0; i <= below(random, 4); ++i) {
    const std::size_t what = below(random, 10);
    if (what < 6)
      mutate_number(head, random);
    else if (what < 8)
      mutate_bytes(head, random);
    else
      mutate_bytes(data, random);
  }
  length = below(random, 50) ? head.size() : random();
  std::string changed(8, '\0');
  std::memcpy(changed.data(), &length, 8);
  return changed + head + data;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char *const isas[] = {"reference", "avx2", "avx2max", "avx512", "avx512vnni"};
  const char *const isa = isas[size % std::size(isas)];
  torchadder_engine *engine = torchadder_engine_read(data, size, 1 + static_cast<int>(size % 2), isa, size % 3 == 0);
  if (!engine) {
    const std::size_t length = std::strlen(torchadder_last_error());
    if (!length || std::strchr(torchadder_last_error(), '\n')) std::abort();
    return 0;
  }
  const torchadder_engine_about about = torchadder_engine_describe(engine);
  torchadder_engine_note(engine, "mean");
  if (about.arena_bytes < kMaxMemory && about.weight_bytes < kMaxMemory &&
      about.arena_bytes < kMaxWork / about.weight_bytes) {
    std::vector<float> logits(static_cast<std::size_t>(3 * about.classes));
    const auto size_of_three = static_cast<std::size_t>(3 * about.channels * about.height * about.width);
    const std::vector<uint8_t> images(size_of_three, 200);
    const std::vector<float> numbers(size_of_three, 0.5f);
    if (torchadder_engine_run_u8(engine, images.data(), 3, logits.data(), nullptr)) std::abort();
    if (torchadder_engine_run_f32(engine, numbers.data(), 3, logits.data(), nullptr)) std::abort();
  }
  torchadder_engine_free(engine);
  return 0;
}

#if defined(TORCHADDER_LIBFUZZER)

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
  Random random(seed);
  std::string file = mutated({reinterpret_cast<char *>(data), size}, random);
  file.resize(std::min(file.size(), most));
  std::memcpy(data, file.data(), file.size());
  return file.size();
}

#else

int main(int argc, char **argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s SECONDS SEED FILE...\n", argv[0]);
    return 2;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(argv[1]));
  Random random(static_cast<unsigned>(std::atoi(argv[2])));
  std::vector<std::string> corpus;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (!file.good() && corpus.back().empty()) return std::fprintf(stderr, "cannot read %s\n", argv[i]), 2;
  }
  long cases = 0, accepted = 0;
  const auto run = [&](const std::string &file) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(file.data()), file.size());
    ++cases;
  };
  for (const std::string &file : corpus) run(file);
  while (std::chrono::steady_clock::now() < end) {
    std::string file = mutated(corpus[below(random, corpus.size())], random);
    run(file);
    if (torchadder_engine *engine = torchadder_engine_read(file.data(), file.size(), 1, "reference", 0)) {
      ++accepted;
      torchadder_engine_free(engine);
      if (file.size() < 20000 && corpus.size() < 2000)
        corpus.push_back(std::move(file));  // accepted files are mutated further
    }
  }
  std::printf("%ld files, %ld of them accepted\n", cases, accepted);
  return 0;
}

#endif
