/* Functions of one number: each value is looked up in the table of its channel, or in one for all channels. */
#include "layer.c"

typedef struct {
  int32_t pixels, channels, step; /* step: from a channel's table to the next, 256 or 0 */
  const uint8_t *table;
} lookup;

static void look_up(const lookup *t, const uint8_t *source, uint8_t *result) {
  for (int32_t pixel = 0; pixel < t->pixels; ++pixel) {
    const uint8_t *table = t->table;
    for (int32_t c = 0; c < t->channels; ++c, table += t->step) *result++ = table[*source++];
  }
}
