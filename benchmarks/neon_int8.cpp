// The inner loop of an int8 matrix product in the form that XNNPACK uses on cores without the dot product ("2x8c8
// mlal"): 2 pixels by 8 channels, 16 products of each a step, as a widening product, a second one added, and a pairwise
// sum of both. The weights are packed in the order in which it reads them. neon_model.py models it beside the engine's
// loops.
#include <arm_neon.h>

#include <cstdint>

// Adds the products of `steps` steps to out[pixel][channel][4].
void int8_2x8c8(const int8_t *a0, const int8_t *a1, const int8_t *weight, long steps, int32_t *out) {
  constexpr int kPixels = 2, kChannels = 8;
  int32x4_t sum[kPixels][kChannels];
  for (int p = 0; p < kPixels; ++p)
    for (int c = 0; c < kChannels; ++c) sum[p][c] = vld1q_s32(out + (p * kChannels + c) * 4);
  for (; steps > 0; --steps, a0 += 16, a1 += 16) {
    const int8x16_t a[kPixels] = {vld1q_s8(a0), vld1q_s8(a1)};
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c, weight += 16) {
      const int8x16_t w = vld1q_s8(weight);
#pragma GCC unroll 2
      for (int p = 0; p < kPixels; ++p) {
        const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a[p]));
        sum[p][c] = vpadalq_s16(sum[p][c], vmlal_high_s8(low, w, a[p]));
      }
    }
  }
  for (int p = 0; p < kPixels; ++p)
    for (int c = 0; c < kChannels; ++c) vst1q_s32(out + (p * kChannels + c) * 4, sum[p][c]);
}
