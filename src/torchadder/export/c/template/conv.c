/* Ordinary convolutions: accumulator = sum x * w, x an unsigned and w a signed byte. Four filters' weights of 4 values
 * each are adjacent. */
#include "patch.c"
#include "product.c"

#if defined(TORCHADDER_DSP)

#define LOW 0x00FF00FFu

/* Writes the values as 16-bit numbers: of 4 the first and third, then the second and fourth. */
static void conv_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                       uint32_t *to) {
  copy_patch(l, source, channel, row, column, to);
  for (int32_t i = l->steps - 1; i >= 0; --i) {
    const uint32_t x = to[i];
    to[2 * i] = x & LOW;
    to[2 * i + 1] = (x >> 8) & LOW;
  }
}

static int32_t add_products(uint32_t x, int16x2_t w, int32_t sum) { return __smlad((int16x2_t)x, w, sum); }

/* Step i of a round: 4 values of both patches with 2 filters. */
#define STEP(i)                                                          \
  {                                                                      \
    const int8x4_t w0 = (int8x4_t)w[4 * i], w1 = (int8x4_t)w[4 * i + 1]; \
    const int16x2_t even0 = __sxtb16(w0), even1 = __sxtb16(w1);          \
    const int16x2_t odd0 = __sxtb16(w0 >> 8), odd1 = __sxtb16(w1 >> 8);  \
    a0 = add_products(x[2 * i], even0, a0);                              \
    b0 = add_products(x[PATCH_WORDS + 2 * i], even0, b0);                \
    a1 = add_products(x[2 * i], even1, a1);                              \
    b1 = add_products(x[PATCH_WORDS + 2 * i], even1, b1);                \
    a0 = add_products(x[2 * i + 1], odd0, a0);                           \
    b0 = add_products(x[PATCH_WORDS + 2 * i + 1], odd0, b0);             \
    a1 = add_products(x[2 * i + 1], odd1, a1);                           \
    b1 = add_products(x[PATCH_WORDS + 2 * i + 1], odd1, b1);             \
  }

static void conv_tile(const layer *l, const uint32_t *patches, const uint32_t *weight, int32_t pixels, int32_t filters,
                      int32_t sum[8]) {
  (void)pixels;
  const uint32_t *const end = patches + 2 * l->steps;
  for (int32_t f = 0; f < filters; f += 2) { /* two filters at a time: 4 accumulators */
    int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
    const uint32_t *w = weight + f;
    for (const uint32_t *x = patches; x < end; x += 8, w += 16) {
      STEP(0)
      STEP(1)
      STEP(2)
      STEP(3)
    }
    sum[f] = a0, sum[f + 1] = a1, sum[4 + f] = b0, sum[5 + f] = b1;
  }
}

#undef STEP
#undef LOW

#else

static void conv_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                       uint32_t *to) {
  copy_patch(l, source, channel, row, column, to);
}

#if defined(TORCHADDER_NO_MULTIPLIER) || (defined(__thumb__) && !defined(__thumb2__))

/* One patch at a time, because there are few registers on a Cortex-M0, or the table of products needs them. */
#if defined(TORCHADDER_NO_MULTIPLIER)

/* Value i of 4 with 2 filters; both products begin at one place of the table. */
#define STEP(i)                                                   \
  {                                                               \
    const uint16_t *const quarter = quarter_squares + 128 + a[i]; \
    sum0 += quarter[w[i]] - quarter[-w[i]];                       \
    sum1 += quarter[w[4 + i]] - quarter[-w[4 + i]];               \
  }

#else
#define STEP(i) sum0 += a[i] * w[i], sum1 += a[i] * w[4 + i];
#endif

static void conv_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                      int32_t sum[8]) {
  const int32_t values = 4 * l->steps;
  for (; pixels > 0; --pixels, x += PATCH_WORDS, sum += 4)
    for (int32_t f = 0; f < filters; f += 2) {
      int32_t sum0 = 0, sum1 = 0;
      const uint8_t *a = (const uint8_t *)x, *const end = a + values;
      for (const int8_t *w = (const int8_t *)(weight + f); a < end; a += 4, w += 16) {
        STEP(0)
        STEP(1)
        STEP(2)
        STEP(3)
      }
      sum[f] = sum0, sum[f + 1] = sum1;
    }
}

#undef STEP

#else

/* Step i of a round: 1 value of both patches, or of one, with 2 filters. */
#define STEP(i)                         \
  {                                     \
    const int32_t p = a[i], q = b[i];   \
    a0 += p * w[i], a1 += p * w[4 + i]; \
    b0 += q * w[i], b1 += q * w[4 + i]; \
  }
#define STEP_OF_ONE(i) a0 += a[i] * w[i], a1 += a[i] * w[4 + i];

static void conv_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                      int32_t sum[8]) {
  for (int32_t f = 0; f < filters; f += 2) { /* two filters at a time: 4 accumulators */
    int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
    const uint8_t *a = (const uint8_t *)x, *b = (const uint8_t *)(x + PATCH_WORDS), *const end = a + 4 * l->steps;
    const int8_t *w = (const int8_t *)(weight + f);
    for (; a < end && pixels == 2; a += 4, b += 4, w += 16) {
      STEP(0)
      STEP(1)
      STEP(2)
      STEP(3)
    }
    for (; a < end; a += 4, w += 16) {
      STEP_OF_ONE(0)
      STEP_OF_ONE(1)
      STEP_OF_ONE(2)
      STEP_OF_ONE(3)
    }
    sum[f] = a0, sum[f + 1] = a1, sum[4 + f] = b0, sum[5 + f] = b1;
  }
}

#undef STEP
#undef STEP_OF_ONE
#endif
#endif
