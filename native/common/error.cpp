#include "common/error.h"

#include <cstdarg>
#include <cstdio>

#include "torchadder.h"

namespace {
thread_local char last_error[256] = "";
}

int torchadder::fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  std::vsnprintf(last_error, sizeof last_error, format, values);
  va_end(values);
  return -1;
}

void torchadder::reject(const char *format, ...) {
  char line[256];
  va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof line, format, values);
  va_end(values);
  throw FileError(line);
}

const char *torchadder_last_error(void) { return last_error; }
