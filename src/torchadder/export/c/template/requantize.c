#include "multiply.c"

/* Returns the quantized value of an accumulator; `addend` is shortcut * factor. */
static uint8_t requantize(const requantization *r, int32_t accumulator, int32_t channel, int32_t addend) {
  const int32_t scaled = multiply(accumulator >> r->pre_shift, r->multiplier[channel]) + addend + r->offset[channel];
  const int32_t q = scaled >> r->shift[channel];
  return (uint8_t)(q < 0 ? 0 : q > r->qmax ? r->qmax : q);
}
