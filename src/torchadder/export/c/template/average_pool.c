/* Pooling: the requantized sum of each window. */
#include "requantize.c"

typedef struct {
  int32_t width, channels; /* of the source */
  int32_t out_height, out_width, kernel_height, kernel_width, stride_y, stride_x;
  requantization epilogue;
} average_pooling;

static void average_pool(const average_pooling *p, const uint8_t *source, uint8_t *result) {
  for (int32_t oy = 0; oy < p->out_height; ++oy)
    for (int32_t ox = 0; ox < p->out_width; ++ox, result += p->channels)
      for (int32_t c = 0; c < p->channels; ++c) {
        int32_t sum = 0;
        for (int32_t ky = 0; ky < p->kernel_height; ++ky)
          for (int32_t kx = 0; kx < p->kernel_width; ++kx)
            sum += source[((oy * p->stride_y + ky) * p->width + ox * p->stride_x + kx) * p->channels + c];
        result[c] = requantize(&p->epilogue, sum, c, 0);
      }
}
