#include "error.h"

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

const char *torchadder_last_error(void) { return last_error; }
