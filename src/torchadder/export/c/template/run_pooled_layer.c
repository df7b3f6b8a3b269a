#include "requantize.c"

/* Returns the accumulator with the larger quantized value: requantize() rises with it, or falls if the multiplier is
 * negative. */
static int32_t better(const requantization *r, int32_t channel, int32_t a, int32_t b) {
  return (a < b) == (r->multiplier[channel] < 0) ? a : b;
}

/* Computes a layer and the largest value of each window of its result, two pixels of a window at a time. `scratch` has
 * room for an accumulator of each filter and for two patches. */
static void run_pooled_layer(const layer *l, const uint8_t *source, uint8_t *result, uint32_t *scratch) {
  const requantization *const r = &l->epilogue;
  const int32_t pixels = l->pool_height * l->pool_width;
  const int32_t bottom = l->out_height * l->pool_height, right = l->out_width * l->pool_width;
  int32_t *const best = (int32_t *)scratch;
  uint32_t *const patches = scratch + l->filters;
  for (int32_t top = 0; top < bottom; top += l->pool_height)
    for (int32_t left = 0; left < right; left += l->pool_width, result += l->filters) {
      int32_t y = top, x = left;
      for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
        for (int32_t p = 0; p < 2; ++p) {
          l->patch(l, source, y * l->stride_y - l->padding_y, x * l->stride_x - l->padding_x,
                   patches + p * PATCH_WORDS);
          if (pixel + p + 1 == pixels) continue; /* the last of an odd number of pixels is computed twice */
          if (++x == left + l->pool_width) x = left, ++y;
        }
        const uint32_t *weight = l->weight;
        for (int32_t filter = 0; filter < l->filters; filter += 4, weight += l->block_words) {
          int32_t sum[8];
          l->tile(l, patches, weight, sum);
          for (int32_t f = filter; f < filter + 4 && f < l->filters; ++f) {
            const int32_t of_pair = better(r, f, sum[f - filter], sum[4 + f - filter]);
            best[f] = pixel ? better(r, f, best[f], of_pair) : of_pair;
          }
        }
      }
      for (int32_t f = 0; f < l->filters; ++f) result[f] = requantize(r, best[f], f, 0);
    }
}
