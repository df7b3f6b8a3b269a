/* Pooling: the largest value of each window; padding counts as 0, the smallest. */
#include "inside.c"

typedef struct {
  int32_t height, width, channels; /* of the source */
  int32_t out_height, out_width, kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x;
} max_pooling;

static void max_pool(const max_pooling *m, const uint8_t *source, uint8_t *result) {
  memset(result, 0, (size_t)(m->out_height * m->out_width * m->channels));
  int32_t top = -m->padding_y;
  for (int32_t oy = 0; oy < m->out_height; ++oy, top += m->stride_y) {
    int32_t left = -m->padding_x;
    for (int32_t ox = 0; ox < m->out_width; ++ox, left += m->stride_x, result += m->channels) {
      const int32_t first = inside(left, m->width), last = inside(left + m->kernel_width, m->width);
      for (int32_t y = inside(top, m->height); y < inside(top + m->kernel_height, m->height); ++y) {
        const uint8_t *pixel = source + (y * m->width + first) * m->channels;
        for (int32_t x = first; x < last; ++x, pixel += m->channels)
          for (int32_t c = 0; c < m->channels; ++c)
            if (result[c] < pixel[c]) result[c] = pixel[c];
      }
    }
  }
}
