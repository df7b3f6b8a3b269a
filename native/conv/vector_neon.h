// The vector type of Arm's NEON (AArch64): 4 floats.
//
//   instruction                    Cortex-A53          Cortex-A72          Neoverse N1
//                                  latency, a cycle    latency, a cycle    latency, a cycle
//   fabd, fadd, fsub, fmax, fmin   6, 1                5, 1                2, 2
//   fmla                           10, 1               10, 1               4, 2
//
// The numbers are those of LLVM 19's models of these cores for 128-bit vectors. fabd computes |x - w| at once, so the
// forward pass takes two instructions an element without the plain sums that x86 needs. All of these return NaN if an
// operand is NaN.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace torchadder {
namespace {

struct Neon {
  using T = float32x4_t;
  static constexpr int width = 4;
  static T zero() { return vdupq_n_f32(0.0f); }
  static T broadcast(float x) { return vdupq_n_f32(x); }
  static T load(const float *p) { return vld1q_f32(p); }
  static T load_partial(const float *p, int n) { return load_strided(p, 1, n); }
  static T load_strided(const float *p, int64_t stride, int n) {
    float lanes[width] = {};
    for (int i = 0; i < n && i < width; ++i) lanes[i] = p[i * stride];
    return vld1q_f32(lanes);
  }
  static T permute(T a, const int32_t *lanes) {  // byte b of lane i is byte 4 * lanes[i] + b of a
    const int32x4_t bytes = vmlaq_n_s32(vdupq_n_s32(0x03020100), vld1q_s32(lanes), 0x04040404);
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(a), vreinterpretq_u8_s32(bytes)));
  }
  static void store(float *p, T a) { vst1q_f32(p, a); }
  static void store_partial(float *p, T a, int n) {
    float lanes[width];
    vst1q_f32(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static T add(T a, T b) { return vaddq_f32(a, b); }
  static T sub(T a, T b) { return vsubq_f32(a, b); }
  static T mul(T a, T b) { return vmulq_f32(a, b); }
  static T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
  static T max(T a, T b) { return vmaxq_f32(a, b); }
  static T min(T a, T b) { return vminq_f32(a, b); }
  static T abs(T a) { return vabsq_f32(a); }
  static T distance(T a, T b) { return vabdq_f32(a, b); }
  static T keep_nan(T a, T x) { return vbslq_f32(vceqq_f32(x, x), a, x); }
  static T add_signed(T sum, T a, T b, T d) {  // sum + sign(a - b) * d, NaN where a - b is
    const T t = sub(a, b);
    const uint32x4_t one = vreinterpretq_u32_f32(vbslq_f32(vdupq_n_u32(0x80000000), t, broadcast(1.0f)));
    const uint32x4_t sign = vbicq_u32(one, vceqzq_f32(t));
    return fma(vreinterpretq_f32_u32(vornq_u32(sign, vceqq_f32(t, t))), d, sum);
  }
  // Of 32-bit integers, of bytes and of pairs, for rounded calls.
  static int32x4_t ints(T a) { return vreinterpretq_s32_f32(a); }
  static int16x8_t pairs(T a) { return vreinterpretq_s16_f32(a); }
  static uint8x16_t bytes(T a) { return vreinterpretq_u8_f32(a); }
  static T of_ints(int32x4_t a) { return vreinterpretq_f32_s32(a); }
  static T of_pairs(int16x8_t a) { return vreinterpretq_f32_s16(a); }
  static T broadcast_int(int x) { return of_ints(vdupq_n_s32(x)); }
  static T add_ints(T a, T b) { return of_ints(vaddq_s32(ints(a), ints(b))); }
  static T sub_ints(T a, T b) { return of_ints(vsubq_s32(ints(a), ints(b))); }
  static T mul_ints(T a, T b) { return of_ints(vmulq_s32(ints(a), ints(b))); }
  static T to_floats(T a) { return vcvtq_f32_s32(ints(a)); }
  static T round(T x, float levels, int zero) {
    return add_ints(of_ints(vcvtnq_s32_f32(mul(x, broadcast(levels)))), broadcast_int(zero));
  }
  static T pair(T a) { return of_pairs(vtrn1q_s16(pairs(a), pairs(a))); }
  static T max_bytes(T a, T b) { return vreinterpretq_f32_u8(vmaxq_u8(bytes(a), bytes(b))); }
  static T max_pairs(T a, T b) { return of_pairs(vmaxq_s16(pairs(a), pairs(b))); }
  static T min_pairs(T a, T b) { return of_pairs(vminq_s16(pairs(a), pairs(b))); }
  static T add_pairs(T a, T b) { return of_pairs(vaddq_s16(pairs(a), pairs(b))); }
  static T sub_pairs(T a, T b) { return of_pairs(vsubq_s16(pairs(a), pairs(b))); }
  static T add_products(T sum, T a, T b) {
    const int32x4_t low = vmull_s16(vget_low_s16(pairs(a)), vget_low_s16(pairs(b)));
    return add_ints(sum, of_ints(vpaddq_s32(low, vmull_high_s16(pairs(a), pairs(b)))));
  }
  static T add_bytes(T sum, T a) {
    return vreinterpretq_f32_u32(vpadalq_u16(vreinterpretq_u32_f32(sum), vpaddlq_u8(bytes(a))));
  }
  template <bool kInts>
  static T sum_each(const T *a) {  // lane p of the result is the sum of a[p]'s lanes
    if constexpr (kInts)
      return of_ints(vpaddq_s32(vpaddq_s32(ints(a[0]), ints(a[1])), vpaddq_s32(ints(a[2]), ints(a[3]))));
    else
      return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
  }
  static void transpose(T *a) {  // row p of the result is lane p of each a
    const float32x4x2_t low = vzipq_f32(a[0], a[2]), high = vzipq_f32(a[1], a[3]);
    const float32x4x2_t first = vzipq_f32(low.val[0], high.val[0]), last = vzipq_f32(low.val[1], high.val[1]);
    a[0] = first.val[0], a[1] = first.val[1], a[2] = last.val[0], a[3] = last.val[1];
  }
};

}  // namespace
}  // namespace torchadder
