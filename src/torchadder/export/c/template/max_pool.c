/* Pooling: the largest value of each window; padding counts as 0, the smallest. */
#include "layer.c"

typedef struct {
  int32_t height, width, channels; /* of the source */
  int32_t out_height, out_width, kernel, stride, padding;
} max_pooling;

static void max_pool(const max_pooling *m, const uint8_t *source, uint8_t *result) {
  memset(result, 0, (size_t)(m->out_height * m->out_width * m->channels));
  for (int32_t oy = 0; oy < m->out_height; ++oy)
    for (int32_t ox = 0; ox < m->out_width; ++ox, result += m->channels)
      for (int32_t ky = 0; ky < m->kernel; ++ky)
        for (int32_t kx = 0; kx < m->kernel; ++kx) {
          const int32_t y = oy * m->stride - m->padding + ky, x = ox * m->stride - m->padding + kx;
          if (y < 0 || y >= m->height || x < 0 || x >= m->width) continue;
          const uint8_t *const pixel = source + (y * m->width + x) * m->channels;
          for (int32_t c = 0; c < m->channels; ++c)
            if (result[c] < pixel[c]) result[c] = pixel[c];
        }
}
