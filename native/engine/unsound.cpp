#include "unsound.h"

#include <cstdarg>
#include <cstdio>

void torchadder::engine::unsound(const char *format, ...) {
  char line[256];
  va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof line, format, values);
  va_end(values);
  throw Unsound(line);
}
