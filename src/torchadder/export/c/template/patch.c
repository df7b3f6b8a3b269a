#include "layer.c"

static uint8_t *copy_bytes(uint8_t *to, const uint8_t *from, int32_t count) {
  for (; count >= 4; count -= 4, to += 4, from += 4) memcpy(to, from, 4); /* no call: a word or four bytes */
  for (; count > 0; --count) *to++ = *from++;
  return to;
}

/* Copies a patch as bytes: rows from top to bottom, taps from left to right, the channels of the group. */
static void copy_patch(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column,
                       uint32_t *words) {
  const int32_t bottom = row + l->window_height, right = column + l->window_width;
  const int is_inside = row >= 0 && bottom <= l->height && column >= 0 && right <= l->width;
  int32_t at = (row * l->width + column) * l->channels + channel;
  uint8_t *to = (uint8_t *)words;
  uint32_t *const end = words + l->values / 4;
  end[-4] = end[-3] = end[-2] = end[-1] = 0; /* what is no part of the patch: the weights are 0 there, too */
  if (is_inside && l->adjacent) {
    const int32_t bytes = l->adjacent, step = l->row_step;
    const uint8_t *from = source + at;
    for (int32_t y = l->kernel_height; y > 0; --y, from += step) to = copy_bytes(to, from, bytes);
    return;
  }
  for (int32_t y = row; y < bottom; y += l->dilation_y, at += l->row_step) {
    int32_t tap = at;
    for (int32_t x = column; x < right; x += l->dilation_x, tap += l->tap_step) {
      const int is_pixel = y >= 0 && y < l->height && x >= 0 && x < l->width;
      to = copy_bytes(to, is_pixel ? source + tap : l->zero_point + channel, l->group_channels);
    }
  }
}
