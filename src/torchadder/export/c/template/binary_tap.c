#include "layer.c"

static void binary_tap(const layer *l, const uint8_t *x, const uint8_t *weight, int32_t *sum) {
  const int8_t *const w = (const int8_t *)weight;
  if (!x) return; /* outside the image the sign is 0 */
  for (int32_t c = 0; c < l->channels; ++c) sum[c] += x[c] >= l->zero_point[c] ? w[c] : -w[c];
}
