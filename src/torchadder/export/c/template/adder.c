/* Adder layers: accumulator = sum |x - w|, over unsigned bytes. Four filters' weights of 4 values each are adjacent; a
 * block begins with the sum of each filter's weights. */
#include "halves.c"
#include "patch.c"

#ifndef ADDER_MAX
#define ADDER_MAX 255 /* the largest value or weight of an adder layer in the network */
#endif

#if defined(TORCHADDER_DSP)

static void adder_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                        uint32_t *to) {
  copy_patch(l, source, channel, row, column, to);
}

/* Step i of a round: 4 values of both patches with 4 filters. */
#define STEP(i)                                                    \
  {                                                                \
    const uint32_t a = x[i], b = x[PATCH_WORDS + i];               \
    const uint32_t w0 = weight[4 * i], w1 = weight[4 * i + 1];     \
    const uint32_t w2 = weight[4 * i + 2], w3 = weight[4 * i + 3]; \
    a0 = __usada8(a, w0, a0);                                      \
    b0 = __usada8(b, w0, b0);                                      \
    a1 = __usada8(a, w1, a1);                                      \
    b1 = __usada8(b, w1, b1);                                      \
    a2 = __usada8(a, w2, a2);                                      \
    b2 = __usada8(b, w2, b2);                                      \
    a3 = __usada8(a, w3, a3);                                      \
    b3 = __usada8(b, w3, b3);                                      \
  }

static void adder_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                       int32_t sum[8]) {
  (void)pixels, (void)filters; /* all 8 are computed */
  uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  const uint32_t *const end = x + l->steps;
  for (weight += 4; x < end; x += 4, weight += 16) {
    STEP(0)
    STEP(1)
    STEP(2)
    STEP(3)
  }
  sum[0] = (int32_t)a0, sum[1] = (int32_t)a1, sum[2] = (int32_t)a2, sum[3] = (int32_t)a3;
  sum[4] = (int32_t)b0, sum[5] = (int32_t)b1, sum[6] = (int32_t)b2, sum[7] = (int32_t)b3;
}

#undef STEP

#elif defined(TORCHADDER_SCALAR)

static void adder_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                        uint32_t *to) {
  copy_patch(l, source, channel, row, column, to);
}

static int32_t distance(int32_t x, int32_t w) { return x > w ? x - w : w - x; }

static void adder_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                       int32_t sum[8]) {
  (void)pixels, (void)filters; /* all 8 are computed */
  const uint8_t *a = (const uint8_t *)x, *b = (const uint8_t *)(x + PATCH_WORDS), *w = (const uint8_t *)(weight + 4);
  memset(sum, 0, 8 * sizeof *sum);
  for (int32_t step = 0; step < l->steps; ++step, a += 4, b += 4)
    for (int32_t f = 0; f < 4; ++f, w += 4)
      for (int32_t i = 0; i < 4; ++i) {
        sum[f] += distance(a[i], w[i]);
        sum[4 + f] += distance(b[i], w[i]);
      }
}

#elif ADDER_MAX < 128

/* Four values of 7 bits side by side, in the bytes of a word. In each byte of a patch bit 7 is set, so that x - w takes
 * nothing from the next byte, and bit 7 of the difference says that x >= w: then its low bits are x - w. That sums
 * max(x - w, 0), and |x - w| = 2 * max(x - w, 0) - x + w, where the sums of x and of w are known. */
#define ABOVE 0x80808080u /* bit 7 of each byte */
#define EVEN 0x00FF00FFu  /* every second byte */

static uint32_t positive_differences(uint32_t x, uint32_t w) {
  const uint32_t difference = x - w, is_positive = difference & ABOVE;
  return difference & (is_positive - (is_positive >> 7));
}

/* The sum of the bytes of words: `even` sums their first and third bytes, two 16-bit numbers, and `above` the words
 * without the first byte. There the third byte stands next to the second, too: take it away. */
static uint32_t sum_of_bytes(uint32_t even, uint32_t above) { return sum_of_halves(even + above - (even >> 16 << 8)); }

/* Writes minus the sum of the patch, and its values. */
static void adder_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                        uint32_t *to) {
  uint32_t total = 0, *const words = to + 1;
  copy_patch(l, source, channel, row, column, words);
  for (int32_t i = 0; i < l->steps; i += 2) {
    const uint32_t bytes = words[i] + words[i + 1];
    total += sum_of_bytes(bytes & EVEN, bytes >> 8);
    words[i] |= ABOVE, words[i + 1] |= ABOVE;
  }
  to[0] = 0u - total;
}

/* Adds 2 * max(x - w, 0) for the words of a patch up to `end`, at most 256, and two filters. Two differences fit into a
 * byte, and four bytes sum to 128 * 4 * 2 * 127 at most, so that a half holds the sum of two. */
static void add_differences(const uint32_t *x, const uint32_t *end, const uint32_t *weight, uint32_t total[2]) {
  uint32_t even0 = 0, even1 = 0, above0 = 0, above1 = 0;
  for (; x < end; x += 2, weight += 8) {
    const uint32_t bytes0 = positive_differences(x[0], weight[0]) + positive_differences(x[1], weight[4]);
    const uint32_t bytes1 = positive_differences(x[0], weight[1]) + positive_differences(x[1], weight[5]);
    even0 += bytes0 & EVEN, above0 += bytes0 >> 8;
    even1 += bytes1 & EVEN, above1 += bytes1 >> 8;
  }
  total[0] += 2 * sum_of_bytes(even0, above0);
  total[1] += 2 * sum_of_bytes(even1, above1);
}

static void adder_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                       int32_t sum[8]) {
  for (; pixels > 0; --pixels, x += PATCH_WORDS, sum += 4)
    for (int32_t f = 0; f < filters; f += 2) {
      const uint32_t *a = x + 1, *w = weight + 4 + f, *const end = a + l->steps;
      uint32_t total[2] = {x[0] + weight[f], x[0] + weight[f + 1]};
      for (; end - a > 256; a += 256, w += 1024) add_differences(a, a + 256, w, total);
      add_differences(a, end, w, total);
      sum[f] = (int32_t)total[0], sum[f + 1] = (int32_t)total[1];
    }
}

#undef ABOVE
#undef EVEN

#else

/* Two values side by side, in the 16-bit lanes of a word. In each lane of a patch bit 8 is set, so that x - w takes
 * nothing from the other lane, and bit 8 of the difference says that x >= w: then its low bits are x - w. That sums
 * max(x - w, 0), and |x - w| = 2 * max(x - w, 0) - x + w, where the sums of x and of w are known. */
#define ABOVE 0x01000100u /* bit 8 of each lane */
#define LOW 0x00FF00FFu   /* a value in each lane */

static uint32_t positive_differences(uint32_t x, uint32_t w) {
  const uint32_t difference = x - w, is_positive = difference & ABOVE;
  return difference & (is_positive - (is_positive >> 8));
}

/* Writes minus the sum of the patch, and its values: of 4 the first and third, then the second and fourth. */
static void adder_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                        uint32_t *to) {
  uint32_t total = 0, *const words = to + 1;
  copy_patch(l, source, channel, row, column, words);
  for (int32_t i = l->steps - 1; i >= 0; --i) {
    const uint32_t x = words[i], even = x & LOW, odd = (x >> 8) & LOW;
    total += sum_of_halves(even + odd);
    words[2 * i] = even | ABOVE;
    words[2 * i + 1] = odd | ABOVE;
  }
  to[0] = 0u - total;
}

static void adder_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                       int32_t sum[8]) {
  for (int32_t p = 0; p < pixels; ++p, x += PATCH_WORDS, sum += 4)
    for (int32_t f = 0; f < filters; f += 2) { /* two filters at a time */
      uint32_t total0 = 0, total1 = 0;
      const uint32_t *a = x + 1, *w = weight + 4 + f, *const end = a + 2 * l->steps;
      while (a < end) {
        /* After 128 steps a lane may hold 128 * 2 * 255, which is nearly all that it can. */
        const uint32_t *const full = end - a > 256 ? a + 256 : end;
        uint32_t lanes0 = 0, lanes1 = 0;
        for (; a < full; a += 2, w += 4) {
          lanes0 += positive_differences(a[0], w[0] & LOW) + positive_differences(a[1], (w[0] >> 8) & LOW);
          lanes1 += positive_differences(a[0], w[1] & LOW) + positive_differences(a[1], (w[1] >> 8) & LOW);
        }
        total0 += sum_of_halves(lanes0);
        total1 += sum_of_halves(lanes1);
      }
      sum[f] = (int32_t)(2 * total0 + x[0] + weight[f]);
      sum[f + 1] = (int32_t)(2 * total1 + x[0] + weight[f + 1]);
    }
}

#undef ABOVE
#undef LOW
#endif
