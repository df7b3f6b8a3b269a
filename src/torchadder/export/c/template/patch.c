#include "layer.c"

/* Fills pixels of the padding with the value that stands for 0. */
static uint8_t *fill_padding(const layer *l, uint8_t *to, int32_t pixels) {
  for (; pixels > 0; --pixels, to += l->channels) memcpy(to, l->zero_point, (size_t)l->channels);
  return to;
}

/* Copies a patch as bytes: rows from top to bottom, pixels from left to right, their channels. */
static void copy_patch(const layer *l, const uint8_t *source, int32_t row, int32_t column, uint8_t *to) {
  const uint8_t *const end = to + l->values;
  const int32_t right_end = column + l->kernel_width;
  const int32_t left = column < 0 ? -column : 0, right = right_end > l->width ? right_end - l->width : 0;
  const int32_t inside = (l->kernel_width - left - right) * l->channels;
  const int32_t row_bytes = l->width * l->channels;
  int32_t at = row * row_bytes + (column + left) * l->channels;
  for (int32_t y = row; y < row + l->kernel_height; ++y, at += row_bytes) {
    if (y < 0 || y >= l->height) {
      to = fill_padding(l, to, l->kernel_width);
      continue;
    }
    to = fill_padding(l, to, left);
    memcpy(to, source + at, (size_t)inside);
    to = fill_padding(l, to + inside, right);
  }
  while (to < end) *to++ = 0; /* the weights are 0 there, too */
}
