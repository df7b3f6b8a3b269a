#include "product.c"

static void conv_tap(const layer *l, const uint8_t *x, const uint8_t *weight, int32_t *sum) {
  const int8_t *const w = (const int8_t *)weight;
  if (!x) x = l->zero_point;
  for (int32_t c = 0; c < l->channels; ++c) sum[c] += PRODUCT(x[c], w[c]);
}
