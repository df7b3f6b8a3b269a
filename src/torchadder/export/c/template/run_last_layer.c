#include "layer.c"

/* Turns the accumulators of the last layer into logits, accumulator * multiplier / 2^shift + offset. */
typedef struct {
  const int32_t *multiplier, *offset; /* [filters] */
  int32_t shift;
} logit_epilogue;

/* Computes the last layer, whose result is one pixel, and returns the class with the largest logit. */
static int32_t run_last_layer(const layer *l, const logit_epilogue *e, const uint8_t *source, uint32_t *patches,
                              int32_t *logits) {
  const uint32_t *weight = l->weight;
  int32_t best = 0;
  l->patch(l, source, -l->padding_y, -l->padding_x, patches);
  l->patch(l, source, -l->padding_y, -l->padding_x, patches + PATCH_WORDS); /* a tile takes two */
  for (int32_t filter = 0; filter < l->filters; filter += 4, weight += l->block_words) {
    int32_t sum[8];
    l->tile(l, patches, weight, sum);
    for (int32_t f = 0; f < 4 && filter + f < l->filters; ++f) {
      const int32_t c = filter + f;
      logits[c] = (int32_t)(((int64_t)sum[f] * e->multiplier[c]) >> e->shift) + e->offset[c];
      if (logits[c] > logits[best]) best = c;
    }
  }
  return best;
}
