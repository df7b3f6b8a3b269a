#include "layer.c"

#if !defined(TORCHADDER_DSP) && !defined(TORCHADDER_SCALAR)

/* The sum of the two 16-bit numbers in a word. */
static uint32_t sum_of_halves(uint32_t word) { return (word & 0xFFFFu) + (word >> 16); }

#endif
