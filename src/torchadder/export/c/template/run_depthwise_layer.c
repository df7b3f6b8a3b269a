#include "requantize.c"

/* Computes a layer whose filters see one channel each, pixel by pixel. `sum` has room for an accumulator of each. */
static void run_depthwise_layer(const layer *l, const uint8_t *source, const uint8_t *shortcut, uint8_t *result,
                                int32_t *sum) {
  const requantization *const r = &l->epilogue;
  const int32_t bottom = l->out_height * l->stride_y - l->padding_y, right = l->out_width * l->stride_x - l->padding_x;
  for (int32_t row = -l->padding_y; row < bottom; row += l->stride_y)
    for (int32_t column = -l->padding_x; column < right; column += l->stride_x) {
      const uint8_t *weight = (const uint8_t *)l->weight;
      memset(sum, 0, (size_t)l->channels * sizeof *sum);
      for (int32_t y = row; y < row + l->window_height; y += l->dilation_y)
        for (int32_t x = column; x < column + l->window_width; x += l->dilation_x, weight += l->channels) {
          const int is_inside = y >= 0 && y < l->height && x >= 0 && x < l->width;
          l->tap(l, is_inside ? source + (y * l->width + x) * l->channels : NULL, weight, sum);
        }
      for (int32_t c = 0; c < l->channels; ++c)
        *result++ = requantize(r, sum[c], c, shortcut ? multiply(*shortcut++, r->factor[c]) : 0);
    }
}
