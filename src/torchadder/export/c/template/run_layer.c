#include "requantize.c"

/* Computes a layer, two pixels of the result at a time. `patches` has room for two. */
static void run_layer(const layer *l, const uint8_t *source, const uint8_t *shortcut, uint8_t *result,
                      uint32_t *patches) {
  const requantization *const r = &l->epilogue;
  const int32_t pixels = l->out_height * l->out_width;
  int32_t y = 0, x = 0;
  for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
    for (int32_t p = 0; p < 2; ++p) {
      l->patch(l, source, y * l->stride_y - l->padding_y, x * l->stride_x - l->padding_x, patches + p * PATCH_WORDS);
      if (pixel + p + 1 == pixels) continue; /* the last of an odd number of pixels is computed twice */
      if (++x == l->out_width) x = 0, ++y;
    }
    const uint32_t *weight = l->weight;
    for (int32_t filter = 0; filter < l->filters; filter += 4, weight += l->block_words) {
      int32_t sum[8];
      l->tile(l, patches, weight, sum);
      for (int32_t p = 0; p < 2 && pixel + p < pixels; ++p)
        for (int32_t f = filter; f < filter + 4 && f < l->filters; ++f) {
          const int32_t at = p ? l->filters + f : f;
          const int32_t addend = shortcut ? shortcut[at] * r->factor[f] : 0;
          result[at] = requantize(r, sum[4 * p + f - filter], f, addend);
        }
    }
    result += 2 * l->filters;
    if (shortcut) shortcut += 2 * l->filters;
  }
}
