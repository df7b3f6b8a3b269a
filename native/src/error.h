// The calling thread's last error, one line.
#pragma once

namespace torchadder {

// Keeps the line for torchadder_last_error() and returns -1.
[[gnu::format(printf, 1, 2)]] int fail(const char *format, ...);

}  // namespace torchadder
