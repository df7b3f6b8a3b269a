// Errors: the last error line of a thread, for the C interface, and the exception for a damaged file.
#pragma once
#include <stdexcept>

namespace torchadder {

// Keeps the line, formatted as by printf, for torchadder_last_error() and returns -1.
[[gnu::format(printf, 1, 2)]] int fail(const char *format, ...);

// A .tadder file that cannot be accepted. what() is one line that names the step and the value.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws FileError with a line formatted as by printf.
[[noreturn, gnu::format(printf, 1, 2)]] void reject(const char *format, ...);

}  // namespace torchadder
