// What is wrong with a program file, in one line.
#pragma once
#include <stdexcept>
#include <string>

namespace torchadder::engine {

struct Unsound : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Unsound with a line made as printf makes it.
[[noreturn, gnu::format(printf, 1, 2)]] void unsound(const char *format, ...);

}  // namespace torchadder::engine
