#include "layer.c"

/* Fills pixels of the padding with the value that stands for 0. */
static uint8_t *fill_padding(const layer *l, uint8_t *to, int32_t pixels) {
  for (; pixels > 0; --pixels, to += l->channels) memcpy(to, l->zero_point, (size_t)l->channels);
  return to;
}

static int32_t clamp(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

/* Copies a patch as bytes: rows from top to bottom, pixels from left to right, their channels. */
static void copy_patch(const layer *l, const uint8_t *source, int32_t row, int32_t column, uint8_t *to) {
  const uint8_t *const end = to + l->values;
  const int32_t width = l->kernel_width, row_bytes = l->width * l->channels;
  const int32_t first = clamp(-column, 0, width), last = clamp(l->width - column, first, width); /* inside the image */
  const int32_t bytes = (last - first) * l->channels;
  int32_t at = row * row_bytes + (column + first) * l->channels;
  for (int32_t y = row; y < row + l->kernel_height; ++y, at += row_bytes) {
    if (y < 0 || y >= l->height || bytes == 0) {
      to = fill_padding(l, to, width);
      continue;
    }
    to = fill_padding(l, to, first);
    memcpy(to, source + at, (size_t)bytes);
    to = fill_padding(l, to + bytes, width - last);
  }
  while (to < end) *to++ = 0; /* the weights are 0 there, too */
}
