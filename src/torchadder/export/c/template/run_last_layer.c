#include "layer.c"

/* Turns the accumulators of the last layer into logits, accumulator * multiplier / 2^shift + offset. */
typedef struct {
  const int32_t *multiplier, *offset; /* [filters] */
  int32_t shift;
} logit_epilogue;

/* Computes the last layer, whose result is one pixel, and returns the class with the largest logit. */
static int32_t run_last_layer(const layer *l, const logit_epilogue *e, const uint8_t *source, uint32_t *patch,
                              int32_t *logits) {
  const uint32_t *weight = l->weight;
  int32_t best = 0;
  for (int32_t channel = 0, first = 0; first < l->filters; channel += l->group_channels, first += l->group_filters) {
    l->patch(l, source, channel, -l->padding_y, -l->padding_x, patch);
    for (int32_t filter = 0; filter < l->group_filters; filter += 4, weight += l->block_words) {
      const int32_t filters = l->group_filters - filter < 4 ? l->group_filters - filter : 4;
      int32_t sum[8];
      l->tile(l, patch, weight, 1, filters, sum);
      for (int32_t f = 0; f < filters; ++f) {
        const int32_t c = first + filter + f;
        logits[c] = (int32_t)(((int64_t)sum[f] * e->multiplier[c]) >> e->shift) + e->offset[c];
        if (logits[c] > logits[best]) best = c;
      }
    }
  }
  return best;
}
