#include "layer.c"

#if defined(TORCHADDER_NO_MULTIPLIER)

/* Adds shifted copies of the larger factor, for two bits of the smaller one in a round. The compiler's own function has
 * no smaller one: of a negative factor it takes all 32 bits. */
static int32_t multiply(int32_t a, int32_t b) {
  const uint32_t size_a = a < 0 ? 0u - (uint32_t)a : (uint32_t)a, size_b = b < 0 ? 0u - (uint32_t)b : (uint32_t)b;
  uint32_t larger = size_a < size_b ? size_b : size_a, smaller = size_a < size_b ? size_a : size_b, product = 0;
  for (; smaller; smaller >>= 2, larger <<= 2) {
    if (smaller & 1) product += larger;
    if (smaller & 2) product += larger << 1;
  }
  return (int32_t)((a ^ b) < 0 ? 0u - product : product);
}

#else

static int32_t multiply(int32_t a, int32_t b) { return a * b; }

#endif
