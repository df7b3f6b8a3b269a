/* Concatenation: the requantized channels of several values follow one another. */
#include "requantize.c"

typedef struct {
  int32_t pixels, channels; /* of the result */
  requantization epilogue;
} concatenation;

/* Writes the channels of one value, `count` from `first` on. */
static void concat(const concatenation *j, const uint8_t *source, int32_t first, int32_t count, uint8_t *result) {
  result += first;
  for (int32_t pixel = 0; pixel < j->pixels; ++pixel, result += j->channels)
    for (int32_t c = 0; c < count; ++c) result[c] = requantize(&j->epilogue, *source++, first + c, 0);
}
