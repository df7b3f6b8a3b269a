// The engine's vector type of NEON with the dot product (Armv8.2 udot and sdot): it sums four bytes into 32 bits at
// once, so no accumulator has to be widened.
#pragma once
#include "engine/vector_neon.h"

namespace torchadder::engine {
namespace {

struct NeonDot : Neon {
  static constexpr int64_t kNarrowSteps = 0;
  static T add_differences(T sum, T x, T w) { return add_bytes(sum, differences(x, w)); }
  static T add_differing_bits(T sum, T x, T w) { return add_bytes(sum, differing_bits(x, w)); }
  static T add_products(T sum, T x, T w) {
    for (int i = 0; i < 4; ++i)
      sum.val[i] = vreinterpretq_u8_s32(
          vdotq_s32(vreinterpretq_s32_u8(sum.val[i]), vreinterpretq_s8_u8(x.val[i]), vreinterpretq_s8_u8(w.val[i])));
    return sum;
  }

 private:
  static T add_bytes(T sum, T bytes) {
    for (int i = 0; i < 4; ++i)
      sum.val[i] = vreinterpretq_u8_u32(vdotq_u32(vreinterpretq_u32_u8(sum.val[i]), bytes.val[i], vdupq_n_u8(1)));
    return sum;
  }
};

}  // namespace
}  // namespace torchadder::engine
