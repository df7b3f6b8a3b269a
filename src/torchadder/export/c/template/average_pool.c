/* Pooling: the requantized mean of each window, of those pixels that are no padding. */
#include "inside.c"
#include "requantize.c"

typedef struct {
  int32_t height, width, channels; /* of the source */
  int32_t out_height, out_width, kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x;
  int32_t unit; /* an accumulator is the mean times this number, which the counts of pixels of all windows divide */
  requantization epilogue;
} average_pooling;

static void average_pool(const average_pooling *p, const uint8_t *source, uint8_t *result) {
  int32_t top = -p->padding_y;
  for (int32_t oy = 0; oy < p->out_height; ++oy, top += p->stride_y) {
    const int32_t first_row = inside(top, p->height), rows = inside(top + p->kernel_height, p->height) - first_row;
    int32_t left = -p->padding_x;
    for (int32_t ox = 0; ox < p->out_width; ++ox, left += p->stride_x) {
      const int32_t first = inside(left, p->width), columns = inside(left + p->kernel_width, p->width) - first;
      const int32_t weight = p->unit / (rows * columns);
      for (int32_t c = 0; c < p->channels; ++c) {
        const uint8_t *row = source + (first_row * p->width + first) * p->channels + c;
        int32_t sum = 0;
        for (int32_t y = 0; y < rows; ++y, row += p->width * p->channels) {
          const uint8_t *value = row;
          for (int32_t x = 0; x < columns; ++x, value += p->channels) sum += *value;
        }
        *result++ = requantize(&p->epilogue, multiply(sum, weight), c, 0);
      }
    }
  }
}
