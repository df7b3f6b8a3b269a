#include "requantize.c"

/* Computes a layer, two pixels of the result at a time. `patches` has room for two. */
static void run_layer(const layer *l, const uint8_t *source, const uint8_t *shortcut, uint8_t *result,
                      uint32_t *patches) {
  const requantization *const r = &l->epilogue;
  const int32_t bottom = l->out_height * l->stride_y - l->padding_y, right = l->out_width * l->stride_x - l->padding_x;
  int32_t y = -l->padding_y, x = -l->padding_x;
  while (y < bottom) {
    int32_t pixels = 0, row[2], column[2];
    for (; pixels < 2 && y < bottom; ++pixels) {
      row[pixels] = y, column[pixels] = x;
      if ((x += l->stride_x) == right) x = -l->padding_x, y += l->stride_y;
    }
    const uint32_t *weight = l->weight;
    for (int32_t channel = 0, first = 0; first < l->filters; channel += l->group_channels, first += l->group_filters) {
      for (int32_t p = 0; p < pixels; ++p) l->patch(l, source, channel, row[p], column[p], patches + p * PATCH_WORDS);
      for (int32_t filter = 0; filter < l->group_filters; filter += 4, weight += l->block_words) {
        const int32_t filters = l->group_filters - filter < 4 ? l->group_filters - filter : 4;
        int32_t sum[8];
        l->tile(l, patches, weight, pixels, filters, sum);
        for (int32_t p = 0; p < pixels; ++p)
          for (int32_t f = 0; f < filters; ++f) {
            const int32_t to = first + filter + f, at = p ? l->filters + to : to;
            const int32_t addend = shortcut ? multiply(shortcut[at], r->factor[to]) : 0;
            result[at] = requantize(r, sum[4 * p + f], to, addend);
          }
      }
    }
    result += 2 * l->filters;
    if (shortcut) shortcut += 2 * l->filters;
  }
}
