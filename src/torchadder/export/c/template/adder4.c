/* Adder layers whose values and weights have 4 bits: a word holds 8 weights of a filter, the first four in the low
 * halves of its bytes. A block begins with the sum of each filter's weights. */
#include "halves.c"
#include "patch.c"

#define LOW 0x0F0F0F0Fu /* a value in each byte */

#if defined(TORCHADDER_DSP)

static void adder4_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                         uint32_t *to) {
  copy_patch(l, source, channel, row, column, to);
}

/* Step i of a round: 8 values of both patches with 4 filters, by halves. */
#define HALF(a, b, shift)                    \
  a0 = __usada8(a, (w0 >> shift) & LOW, a0); \
  b0 = __usada8(b, (w0 >> shift) & LOW, b0); \
  a1 = __usada8(a, (w1 >> shift) & LOW, a1); \
  b1 = __usada8(b, (w1 >> shift) & LOW, b1); \
  a2 = __usada8(a, (w2 >> shift) & LOW, a2); \
  b2 = __usada8(b, (w2 >> shift) & LOW, b2); \
  a3 = __usada8(a, (w3 >> shift) & LOW, a3); \
  b3 = __usada8(b, (w3 >> shift) & LOW, b3);
#define STEP(i)                                                    \
  {                                                                \
    const uint32_t w0 = weight[4 * i], w1 = weight[4 * i + 1];     \
    const uint32_t w2 = weight[4 * i + 2], w3 = weight[4 * i + 3]; \
    HALF(x[2 * i], x[PATCH_WORDS + 2 * i], 0)                      \
    HALF(x[2 * i + 1], x[PATCH_WORDS + 2 * i + 1], 4)              \
  }

static void adder4_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                        int32_t sum[8]) {
  (void)pixels, (void)filters; /* all 8 are computed */
  uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  const uint32_t *const end = x + 2 * l->steps;
  for (weight += 4; x < end; x += 4, weight += 8) {
    STEP(0)
    STEP(1)
  }
  sum[0] = (int32_t)a0, sum[1] = (int32_t)a1, sum[2] = (int32_t)a2, sum[3] = (int32_t)a3;
  sum[4] = (int32_t)b0, sum[5] = (int32_t)b1, sum[6] = (int32_t)b2, sum[7] = (int32_t)b3;
}

#undef STEP
#undef HALF

#elif defined(TORCHADDER_SCALAR)

static void adder4_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                         uint32_t *to) {
  copy_patch(l, source, channel, row, column, to);
}

static int32_t distance4(int32_t x, int32_t w) { return x > w ? x - w : w - x; }

static void adder4_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                        int32_t sum[8]) {
  (void)pixels, (void)filters; /* all 8 are computed */
  const uint8_t *a = (const uint8_t *)x, *b = (const uint8_t *)(x + PATCH_WORDS), *w = (const uint8_t *)(weight + 4);
  memset(sum, 0, 8 * sizeof *sum);
  for (int32_t step = 0; step < l->steps; ++step, a += 8, b += 8)
    for (int32_t f = 0; f < 4; ++f, w += 4)
      for (int32_t i = 0; i < 4; ++i) {
        sum[f] += distance4(a[i], w[i] & 15) + distance4(a[4 + i], w[i] >> 4);
        sum[4 + f] += distance4(b[i], w[i] & 15) + distance4(b[4 + i], w[i] >> 4);
      }
}

#else

/* Four values side by side, in the bytes of a word. In each byte of a patch bit 7 is set, so that x - w takes nothing
 * from the next byte, and bit 7 of the difference says that x >= w: then its low bits are x - w. That sums
 * max(x - w, 0), and |x - w| = 2 * max(x - w, 0) - x + w, where the sums of x and of w are known. */
#define ABOVE 0x80808080u
#define EVEN 0x00FF00FFu

static uint32_t positive_differences4(uint32_t x, uint32_t w) {
  const uint32_t difference = x - w, is_positive = difference & ABOVE;
  return difference & (is_positive - (is_positive >> 7));
}

/* The sum of four bytes. */
static uint32_t bytes_sum(uint32_t bytes) { return sum_of_halves((bytes & EVEN) + ((bytes >> 8) & EVEN)); }

/* Writes minus the sum of the patch, and its values. */
static void adder4_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                         uint32_t *to) {
  uint32_t total = 0, *const words = to + 1;
  copy_patch(l, source, channel, row, column, words);
  for (int32_t i = 0; i < 2 * l->steps; ++i) {
    total += bytes_sum(words[i]);
    words[i] |= ABOVE;
  }
  to[0] = 0u - total;
}

static void adder4_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                        int32_t sum[8]) {
  for (int32_t p = 0; p < pixels; ++p, x += PATCH_WORDS, sum += 4)
    for (int32_t f = 0; f < filters; f += 2) { /* two filters at a time */
      uint32_t total0 = 0, total1 = 0;
      const uint32_t *a = x + 1, *w = weight + 4 + f, *const end = a + 2 * l->steps;
      while (a < end) {
        /* After 8 steps a byte may hold 8 * 2 * 15, which is nearly all that it can. */
        const uint32_t *const full = end - a > 16 ? a + 16 : end;
        uint32_t bytes0 = 0, bytes1 = 0;
        for (; a < full; a += 2, w += 4) {
          bytes0 += positive_differences4(a[0], w[0] & LOW) + positive_differences4(a[1], (w[0] >> 4) & LOW);
          bytes1 += positive_differences4(a[0], w[1] & LOW) + positive_differences4(a[1], (w[1] >> 4) & LOW);
        }
        total0 += bytes_sum(bytes0);
        total1 += bytes_sum(bytes1);
      }
      sum[f] = (int32_t)(2 * total0 + x[0] + weight[f]);
      sum[f + 1] = (int32_t)(2 * total1 + x[0] + weight[f + 1]);
    }
}

#undef ABOVE
#undef EVEN
#endif
#undef LOW
