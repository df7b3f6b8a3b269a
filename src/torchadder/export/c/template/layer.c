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

/* Cores without a multiplier: GCC and clang say what a RISC-V core has. All Cortex-M have one. */
#if defined(__riscv) && !defined(__riscv_mul)
#define TORCHADDER_NO_MULTIPLIER
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
  int32_t group_channels, group_filters;            /* of one group, all where there are no groups */
  int32_t kernel_height, kernel_width;              /* taps */
  int32_t window_height, window_width;              /* pixels of the source that a dilated kernel spans */
  int32_t stride_y, stride_x, padding_y, padding_x; /* pixels; padding above and at the left; the size says the rest */
  int32_t dilation_y, dilation_x;                   /* pixels from a tap to the next */
  int32_t row_step, tap_step;                       /* bytes of the source from a tap to the next */
  int32_t adjacent;                                 /* bytes of a row of taps; 0 where other bytes lie between them */
  int32_t pool_height, pool_width;                  /* of a layer whose values are pooled: pixels of a window */
  int32_t values;                                   /* of a patch, rounded up to whole rounds of the tile's loop */
  int32_t steps;                                    /* words of weight of one filter */
  int32_t block_words;                              /* of the weights of 4 filters */
  const uint8_t *zero_point; /* [channels]: the value that stands for 0; NULL where nothing needs it */
  const uint32_t *weight;    /* [blocks of 4 filters][steps][4], or bytes [taps][channels] of a depthwise layer */
  requantization epilogue;

  /* Writes the patch whose first row and column are given as words: the channels of the group that begins at one. */
  void (*patch)(const layer *l, const uint8_t *source, int32_t channel, int32_t row, int32_t column, uint32_t *to);
  /* Writes the accumulators of patches x and x + PATCH_WORDS with the filters of a block: sum[0..3], sum[4..7]; those
   * of the first `pixels` patches and `filters` filters are needed. */
  void (*tile)(const layer *l, const uint32_t *x, const uint32_t *weight, int32_t pixels, int32_t filters,
               int32_t sum[8]);
  /* In place of them, of a depthwise layer: adds one tap to the accumulator of each channel. `x` is the pixel there, or
   * NULL outside the image; the weights of a tap are adjacent bytes. */
  void (*tap)(const layer *l, const uint8_t *x, const uint8_t *weight, int32_t *sum);
};
