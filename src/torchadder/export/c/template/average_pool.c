/* Pooling: the requantized sum of each window. */
#include "requantize.c"

typedef struct {
  int32_t width, channels; /* of the source */
  int32_t out_height, out_width, kernel_height, kernel_width, stride_y, stride_x;
  requantization epilogue;
} average_pooling;

static void average_pool(const average_pooling *p, const uint8_t *source, uint8_t *result) {
  const int32_t row_bytes = p->width * p->channels;
  for (int32_t oy = 0; oy < p->out_height; ++oy)
    for (int32_t ox = 0; ox < p->out_width; ++ox, result += p->channels) {
      const uint8_t *const window = source + oy * p->stride_y * row_bytes + ox * p->stride_x * p->channels;
      for (int32_t c = 0; c < p->channels; ++c) {
        const uint8_t *row = window + c;
        int32_t sum = 0;
        for (int32_t y = 0; y < p->kernel_height; ++y, row += row_bytes) {
          const uint8_t *value = row;
          for (int32_t x = 0; x < p->kernel_width; ++x, value += p->channels) sum += *value;
        }
        result[c] = requantize(&p->epilogue, sum, c, 0);
      }
    }
}
