// The engine's vector type of Arm's NEON (AArch64): a block of 8 channels is four 128-bit registers.
//
//   instruction     computes                             Cortex-A53          Cortex-A72          Neoverse N1
//                                                        latency, a cycle    latency, a cycle    latency, a cycle
//   uabd            |x - w| of 16 bytes                  6, 1                3, 2                2, 2
//   uadalp          16-bit sums of pairs, added          6, 1                4, 1                4, 1
//   smull, smlal    8 products of bytes, 16 bits         6, 1                5, 1                4, 1
//   sadalp          32-bit sums of pairs, added          6, 1                4, 1                4, 1
//   cnt             bits of each byte                    6, 1                3, 2                2, 2
//   udot, sdot      16 products of bytes, 32-bit sums    none                none                2, 2
//
// The numbers are those of LLVM 19's models of these cores for 128-bit vectors.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "engine/job.h"

namespace torchadder::engine {
namespace {

// 8 lanes of 32 bits, for requantization.
struct NeonLanes {
  struct T {
    int32x4_t low, high;
  };
  static constexpr int width = 8;
  static T load(const int32_t *p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static void store(int32_t *p, T a) {
    vst1q_s32(p, a.low);
    vst1q_s32(p + 4, a.high);
  }
  static T load_u8(const uint8_t *p) {
    const uint16x8_t words = vmovl_u8(vld1_u8(p));
    return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words))), vreinterpretq_s32_u32(vmovl_high_u16(words))};
  }
  static T set(int32_t value) { return {vdupq_n_s32(value), vdupq_n_s32(value)}; }
  static T add(T a, T b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
  static T sub(T a, T b) { return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)}; }
  static T mul(T a, T b) { return {vmulq_s32(a.low, b.low), vmulq_s32(a.high, b.high)}; }
  static T abs(T a) { return {vabsq_s32(a.low), vabsq_s32(a.high)}; }
  static T shift_right(T a, T by) {
    return {vshlq_s32(a.low, vnegq_s32(by.low)), vshlq_s32(a.high, vnegq_s32(by.high))};
  }
  static T min(T a, T b) { return {vminq_s32(a.low, b.low), vminq_s32(a.high, b.high)}; }
  static T max(T a, T b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
  // Stores the low 8 bits of each lane, 0 for a negative one. No lane is above 255.
  static void store_u8(const T &a, uint8_t *to) {
    vst1_u8(to, vqmovn_u16(vcombine_u16(vqmovun_s32(a.low), vqmovun_s32(a.high))));
  }
  static void store_u8_of_four(const T *a, uint8_t *const *to) {
    for (int i = 0; i < 4; ++i) store_u8(a[i], to[i]);
  }
};

// Without the dot product. The accumulators of differences and of bits have 16 bits for kNarrowSteps steps: a step adds
// at most 2 * 255 to each. A function computes all its differences before it adds the first, since a core that executes
// in order (Cortex-A53) waits for each.
struct Neon {
  using T = uint8x16x4_t;  // two channels each: their 8 bytes, or their accumulators
  using ConvValue = int8_t;
  template <int W>
  using Lanes = NeonLanes;
  static constexpr int vectors = 1, kSigns = 16, kConvOffset = 128;
  static constexpr int lane_order[kBlock] = {0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr int64_t kNarrowSteps = 128;
  static T all(uint8x16_t a) { return {{a, a, a, a}}; }
  static T zero() { return all(vdupq_n_u8(0)); }
  static T load(const uint8_t *p) { return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}}; }
  static T mask(uint64_t bytes) { return all(vreinterpretq_u8_u64(vdupq_n_u64(bytes))); }
  static T broadcast(const uint8_t *p) {
    uint64_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return mask(bytes);
  }
  static T keep(T a, T mask) { return all(vandq_u8(a.val[0], mask.val[0])); }  // `a` is a broadcast
  static T add_differences(T sum, T x, T w) { return add_pairs(sum, differences(x, w)); }
  static T add_differing_bits(T sum, T x, T w) { return add_pairs(sum, differing_bits(x, w)); }
  // A 16-bit sum of products holds bytes i and i + 4 of a channel: 2 * 128 * 127 < 2^15, since no weight is -128.
  static T add_products(T sum, T x, T w) {
    const int8x16_t x_first = half<0>(x.val[0], x.val[0]), x_last = half<1>(x.val[0], x.val[0]);
    int16x8_t products[4];
    for (int i = 0; i < 2; ++i) {
      const int8x16_t first = half<0>(w.val[2 * i], w.val[2 * i + 1]), last = half<1>(w.val[2 * i], w.val[2 * i + 1]);
      products[2 * i] =
          vmlal_s8(vmull_s8(vget_low_s8(x_first), vget_low_s8(first)), vget_low_s8(x_last), vget_low_s8(last));
      products[2 * i + 1] = vmlal_high_s8(vmull_high_s8(x_first, first), x_last, last);
    }
    for (int i = 0; i < 4; ++i)
      sum.val[i] = vreinterpretq_u8_s32(vpadalq_s16(vreinterpretq_s32_u8(sum.val[i]), products[i]));
    return sum;
  }
  // Adds 16-bit accumulators to 32-bit ones.
  static T widen(T wide, T sum) {
    for (int i = 0; i < 4; ++i)
      wide.val[i] =
          vreinterpretq_u8_u32(vpadalq_u16(vreinterpretq_u32_u8(wide.val[i]), vreinterpretq_u16_u8(sum.val[i])));
    return wide;
  }
  // Two 32-bit accumulators of a channel are adjacent. The result is in the first two registers.
  static T fold_differences(T sum) {
    const auto pairs = [&](int i) {
      return vreinterpretq_u8_u32(vpaddq_u32(vreinterpretq_u32_u8(sum.val[i]), vreinterpretq_u32_u8(sum.val[i + 1])));
    };
    return {{pairs(0), pairs(2), sum.val[2], sum.val[3]}};
  }
  static T fold_products(T sum) { return fold_differences(sum); }
  static T fold_bits(T sum) { return fold_differences(sum); }
  template <int W>
  static NeonLanes::T narrow(const T *sum) {
    return {vreinterpretq_s32_u8(sum->val[0]), vreinterpretq_s32_u8(sum->val[1])};
  }
  // 16 values against their zero points, to bits: 1 where q >= zero_point.
  static void pack_signs(const uint8_t *q, const uint8_t *zero_point, uint8_t *to) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const uint8x16_t signs = vandq_u8(vcgeq_u8(vld1q_u8(q), vld1q_u8(zero_point)), bit);
    to[0] = vaddv_u8(vget_low_u8(signs));
    to[1] = vaddv_u8(vget_high_u8(signs));
  }

 protected:
  static T differences(T x, T w) {
    for (int i = 0; i < 4; ++i) w.val[i] = vabdq_u8(x.val[i], w.val[i]);
    return w;
  }
  static T differing_bits(T x, T w) {
    for (int i = 0; i < 4; ++i) w.val[i] = vcntq_u8(veorq_u8(x.val[i], w.val[i]));
    return w;
  }

 private:
  static T add_pairs(T sum, T bytes) {
    for (int i = 0; i < 4; ++i)
      sum.val[i] = vreinterpretq_u8_u16(vpadalq_u8(vreinterpretq_u16_u8(sum.val[i]), bytes.val[i]));
    return sum;
  }
  // The first or the last four bytes of four channels.
  template <int kHalf>
  static int8x16_t half(uint8x16_t a, uint8x16_t b) {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    return vreinterpretq_s8_u32(kHalf ? vuzp2q_u32(x, y) : vuzp1q_u32(x, y));
  }
};

}  // namespace
}  // namespace torchadder::engine
