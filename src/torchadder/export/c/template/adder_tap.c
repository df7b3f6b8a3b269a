#include "layer.c"

static void adder_tap(const layer *l, const uint8_t *x, const uint8_t *w, int32_t *sum) {
  if (!x) x = l->zero_point;
  for (int32_t c = 0; c < l->channels; ++c) sum[c] += x[c] > w[c] ? x[c] - w[c] : w[c] - x[c];
}
