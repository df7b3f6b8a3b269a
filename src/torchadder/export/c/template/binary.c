/* Binary layers: accumulator = sum sign(x) * sign(w), as bits: values inside the image - 2 * differing signs. A word
 * holds 32 signs of a filter. */
#include "layer.c"

/* Writes the number of values inside the image, and for 32 values a word of signs, x >= zero_point, and a word that
 * says which of them lie inside. */
static void binary_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                         uint32_t *to) {
  uint32_t signs = 0, inside = 0, bit = 1, count = 0;
  uint32_t *word = to + 1;
  for (int32_t y = row; y < row + l->window_height; y += l->dilation_y)
    for (int32_t x = column; x < column + l->window_width; x += l->dilation_x) {
      const int is_inside = y >= 0 && y < l->height && x >= 0 && x < l->width;
      const uint8_t *const pixel = is_inside ? source + (y * l->width + x) * l->channels : NULL;
      for (int32_t c = channel; c < channel + l->group_channels; ++c) {
        if (pixel) {
          inside |= bit;
          if (pixel[c] >= l->zero_point[c]) signs |= bit;
          ++count;
        }
        bit <<= 1;
        if (bit) continue;
        *word++ = signs;
        *word++ = inside;
        signs = inside = 0;
        bit = 1;
      }
    }
  if (bit != 1) {
    *word++ = signs;
    *word++ = inside;
  }
  to[0] = count;
}

/* The number of bits in each byte of a word. */
static uint32_t bits_of_bytes(uint32_t v) {
  v -= (v >> 1) & 0x55555555u;
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  return (v + (v >> 4)) & 0x0F0F0F0Fu;
}

#if defined(TORCHADDER_DSP)

static uint32_t add_bytes(uint32_t sum, uint32_t bytes) { return __usada8(bytes, 0, sum); }

#else

static uint32_t add_bytes(uint32_t sum, uint32_t bytes) {
  bytes = (bytes & 0x00FF00FFu) + ((bytes >> 8) & 0x00FF00FFu);
  return sum + (bytes & 0xFFFFu) + (bytes >> 16);
}

#endif

static void binary_tile(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
                        int32_t sum[8]) {
  (void)pixels;
  for (int32_t f = 0; f < filters; ++f) {
    uint32_t differing_a = 0, differing_b = 0;
    const uint32_t *a = x + 1, *b = a + PATCH_WORDS, *w = weight + f;
    const uint32_t *const end = a + 2 * l->steps;
    while (a < end) {
      /* After 31 steps a byte may hold 31 * 8, which is nearly all that it can. */
      const uint32_t *const full = end - a > 62 ? a + 62 : end;
      uint32_t bytes_a = 0, bytes_b = 0;
      for (; a < full; a += 2, b += 2, w += 4) {
        bytes_a += bits_of_bytes((a[0] ^ w[0]) & a[1]);
        bytes_b += bits_of_bytes((b[0] ^ w[0]) & b[1]);
      }
      differing_a = add_bytes(differing_a, bytes_a);
      differing_b = add_bytes(differing_b, bytes_b);
    }
    sum[f] = (int32_t)(x[0] - 2 * differing_a);
    sum[4 + f] = (int32_t)(x[PATCH_WORDS] - 2 * differing_b);
  }
}
