/* Layers: a patch of the source is copied into words, and a tile of 2 patches x 4 filters accumulates in registers.
 *
 * Which of three inner loops is compiled, the preprocessor decides. All compute the same numbers:
 *
 *   TORCHADDER_DSP     Cortex-M4, M7, M33, M55: USADA8 sums 4 differences, SMLAD 2 products
 *   TORCHADDER_SCALAR  if you define it: one value after the other
 *   neither            any 32-bit core: 2 or 4 values side by side in a word, without a multiplication
 */
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the tables of this file are for little-endian processors"
#endif
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_SIMD32) && !defined(TORCHADDER_SCALAR)
#define TORCHADDER_DSP
#include <arm_acle.h>
#endif

/* Shifts of negative numbers to the right keep the sign, as with all compilers for these processors. */
typedef char shift_keeps_sign[(-1 >> 1) == -1 ? 1 : -1];

/* Turns the accumulators of a channel into quantized values:
 *   q = clamp(((accumulator >> pre_shift) * multiplier + shortcut * factor + offset) >> shift, 0, qmax) */
typedef struct {
  const int32_t *multiplier, *offset; /* [channels] */
  const uint8_t *shift;               /* [channels] */
  const int32_t *factor;              /* [channels], of the shortcut; NULL without one */
  int32_t pre_shift, qmax;
} requantization;

#ifndef PATCH_WORDS
#define PATCH_WORDS 64 /* from a patch to the next: as long as the longest of the network */
#endif

typedef struct layer layer;
struct layer {
  int32_t height, width, channels;                  /* of the source; a pixel's channels are adjacent bytes */
  int32_t out_height, out_width, filters;           /* of the result */
  int32_t kernel_height, kernel_width;              /* pixels, as are the next four */
  int32_t stride_y, stride_x, padding_y, padding_x; /* padding above and at the left; the size says the rest */
  int32_t pool_height, pool_width;                  /* of a layer whose values are pooled: pixels of a window */
  int32_t values;                                   /* of a patch, rounded up to whole rounds of the tile's loop */
  int32_t steps;                                    /* words of weight of one filter */
  int32_t block_words;                              /* of the weights of 4 filters */
  const uint8_t *zero_point; /* [channels]: the value that stands for 0; NULL where nothing needs it */
  const uint32_t *weight;    /* [blocks of 4 filters][steps][4] */
  requantization epilogue;

  /* Writes the patch whose first row and column are given as words. */
  void (*patch)(const layer *l, const uint8_t *source, int32_t row, int32_t column, uint32_t *to);
  /* Writes the accumulators of patches x and x + PATCH_WORDS with the 4 filters of a block: sum[0..3], sum[4..7]. */
  void (*tile)(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t sum[8]);
};
