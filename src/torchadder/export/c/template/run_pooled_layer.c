#include "requantize.c"

/* Returns the accumulator with the larger quantized value. */
static int32_t better(int falls, int32_t a, int32_t b) { return (a < b) == falls ? a : b; }

/* Computes a layer and the largest value of each window of its result, two pixels of a window at a time. `scratch` has
 * room for an accumulator of each filter and for two patches. */
static void run_pooled_layer(const layer *l, const uint8_t *source, uint8_t *result, uint32_t *scratch) {
  const requantization *const r = &l->epilogue;
  int32_t *const best = (int32_t *)scratch;
  uint32_t *const patches = scratch + l->filters;
  const int32_t height = l->pool_height * l->stride_y, width = l->pool_width * l->stride_x;
  int32_t top = -l->padding_y;
  for (int32_t out_y = 0; out_y < l->out_height; ++out_y, top += height) {
    int32_t left = -l->padding_x;
    for (int32_t out_x = 0; out_x < l->out_width; ++out_x, left += width, result += l->filters) {
      int32_t y = top, x = left;
      while (y < top + height) {
        const int is_first = y == top && x == left;
        int32_t pixels = 0;
        for (; pixels < 2 && y < top + height; ++pixels) {
          l->patch(l, source, 0, y, x, patches + pixels * PATCH_WORDS);
          if ((x += l->stride_x) == left + width) x = left, y += l->stride_y;
        }
        const uint32_t *weight = l->weight;
        for (int32_t filter = 0; filter < l->filters; filter += 4, weight += l->block_words) {
          const int32_t filters = l->filters - filter < 4 ? l->filters - filter : 4;
          int32_t sum[8];
          l->tile(l, patches, weight, pixels, filters, sum);
          for (int32_t f = 0; f < filters; ++f) {
            const int32_t to = filter + f;
            const int falls =
                r->multiplier[to] < 0; /* requantize() of a channel rises with the accumulator, or falls */
            if (pixels == 2) sum[f] = better(falls, sum[f], sum[4 + f]);
            best[to] = is_first ? sum[f] : better(falls, best[to], sum[f]);
          }
        }
      }
      for (int32_t f = 0; f < l->filters; ++f) result[f] = requantize(r, best[f], f, 0);
    }
  }
}
