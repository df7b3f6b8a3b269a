#include "layer.c"

/* Returns the row or column nearest to `at` from 0 to `size`. */
static int32_t inside(int32_t at, int32_t size) { return at < 0 ? 0 : at > size ? size : at; }
