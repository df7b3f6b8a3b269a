// The vector type of AVX-512 (F, DQ, BW): 16 floats.
//
//   instruction                                Intel server cores: latency, ports (from uops.info)
//   vmaxps, vaddps, vsubps, vfmadd231ps        4, p05
//   vrangeps (HardTanh), vfixupimmps (sign)    4, p05
//   vpermps (groups)                           3, p5
//   vpmaxub, vpminub, vpsubusb, vpaddd         1, p05
//   vpmaddubsw, vpmaddwd, vpdpbusd             5, p05
//
// All the arithmetic shares ports 0 and 5: two instructions a cycle. On Zen 4 and 5 max and add share two pipes, and
// fma has two others.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace torchadder {
namespace {

struct Avx512 {
  using T = __m512;
  static constexpr int width = 16;
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static T zero() { return _mm512_setzero_ps(); }
  static T broadcast(float x) { return _mm512_set1_ps(x); }
  static T load(const float *p) { return _mm512_loadu_ps(p); }
  static T load_partial(const float *p, int n) { return _mm512_maskz_loadu_ps(first(n > 0 ? n : 0), p); }
  static T load_strided(const float *p, int64_t stride, int n) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(stride)));
    const __mmask16 mask = n >= width ? static_cast<__mmask16>(-1) : first(n > 0 ? n : 0);
    return _mm512_mask_i32gather_ps(zero(), mask, index, p, 4);
  }
  static T permute(T a, const int32_t *lanes) { return _mm512_permutexvar_ps(_mm512_loadu_si512(lanes), a); }
  static void store(float *p, T a) { _mm512_storeu_ps(p, a); }
  static void store_partial(float *p, T a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static T add(T a, T b) { return _mm512_add_ps(a, b); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static T max(T a, T b) { return _mm512_max_ps(a, b); }
  static T min(T a, T b) { return _mm512_min_ps(a, b); }
  static T abs(T a) { return _mm512_abs_ps(a); }
  static T distance(T a, T b) { return abs(sub(a, b)); }
  // Immediate 2 selects the operand of the smaller magnitude, with the sign of the first.
  static T hardtanh(T a) { return _mm512_range_ps(a, _mm512_set1_ps(1.0f), 2); }
  static T keep_nan(T a, T x) { return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x); }
  // sum + sign(a - b) * d. vfixupimm maps each class of numbers (from the right: quiet and signalling NaN, zero, one,
  // -inf, inf, negative, positive) to one of NaN (2), zero (8), -1 (9) and 1 (A).
  static T add_signed(T sum, T a, T b, T d) {
    const T t = sub(a, b);
    return fma(_mm512_fixupimm_ps(t, t, _mm512_set1_epi32(static_cast<int>(0xA9A9A822)), 0), d, sum);
  }
  // Of 32-bit integers, of bytes and of pairs, for rounded calls (AVX-512BW; Avx512Vnni has faster sums of products).
  static __m512i bits(T a) { return _mm512_castps_si512(a); }
  static T from_bits(__m512i a) { return _mm512_castsi512_ps(a); }
  static T broadcast_int(int x) { return from_bits(_mm512_set1_epi32(x)); }
  static T add_ints(T a, T b) { return from_bits(_mm512_add_epi32(bits(a), bits(b))); }
  static T sub_ints(T a, T b) { return from_bits(_mm512_sub_epi32(bits(a), bits(b))); }
  static T mul_ints(T a, T b) { return from_bits(_mm512_mullo_epi32(bits(a), bits(b))); }
  static T to_floats(T a) { return _mm512_cvtepi32_ps(bits(a)); }
  static T round(T x, float levels, int zero) {
    return add_ints(from_bits(_mm512_cvtps_epi32(mul(x, broadcast(levels)))), broadcast_int(zero));
  }
  static T pair(T a) {
    const __m512i low = _mm512_and_si512(bits(a), _mm512_set1_epi32(0xFFFF));
    return from_bits(_mm512_or_si512(low, _mm512_slli_epi32(low, 16)));
  }
  static T max_bytes(T a, T b) { return from_bits(_mm512_max_epu8(bits(a), bits(b))); }
  static T add_products(T sum, T a, T b) { return add_ints(sum, from_bits(_mm512_madd_epi16(bits(a), bits(b)))); }
  static T add_bytes(T sum, T a) {
    const __m512i pairs = _mm512_maddubs_epi16(bits(a), _mm512_set1_epi8(1));
    return add_ints(sum, from_bits(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
  }
  // Lane p of the result is the sum of a[p]'s lanes: a tree of shuffles and adds, 46 instructions for 16 sums.
  template <bool kInts>
  static T sum_each(const T *a) {
    const auto add = [](T x, T y) { return kInts ? add_ints(x, y) : Avx512::add(x, y); };
    T half[8], quarter[4], pair[2];
    for (int i = 0; i < 8; ++i)
      half[i] = add(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44), _mm512_shuffle_f32x4(a[i], a[i + 8], 0xEE));
    for (int i = 0; i < 4; ++i)
      quarter[i] = add(_mm512_unpacklo_ps(half[i], half[i + 4]), _mm512_unpackhi_ps(half[i], half[i + 4]));
    for (int i = 0; i < 2; ++i) {
      const __m512d x = _mm512_castps_pd(quarter[i]), y = _mm512_castps_pd(quarter[i + 2]);
      pair[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const T sums = add(_mm512_shuffle_f32x4(pair[0], pair[1], 0x88), _mm512_shuffle_f32x4(pair[0], pair[1], 0xDD));
    const __m512i order = _mm512_setr_epi32(0, 8, 2, 10, 1, 9, 3, 11, 4, 12, 6, 14, 5, 13, 7, 15);
    return _mm512_permutexvar_ps(order, sums);
  }
  // Row p of the result is lane p of each a: interleaves pairs, fours, then quarters of the vectors, in 64 shuffles.
  static void transpose(T *a) {
    T pair[16], four[16], eight[16];
    for (int i = 0; i < 16; i += 2) {
      pair[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      pair[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int k = 0; k < 2; ++k) {
        four[i + 2 * k] = _mm512_shuffle_ps(pair[i + k], pair[i + k + 2], 0x44);
        four[i + 2 * k + 1] = _mm512_shuffle_ps(pair[i + k], pair[i + k + 2], 0xEE);
      }
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half) {
        const T x = four[8 * half + i], y = four[8 * half + i + 4];
        eight[8 * half + i] = _mm512_shuffle_f32x4(x, y, 0x88);
        eight[8 * half + i + 4] = _mm512_shuffle_f32x4(x, y, 0xDD);
      }
    for (int i = 0; i < 8; ++i) {
      // eight[i]: quarters 0 and 2 (i < 4) or 1 and 3 of rows 0-7; eight[i + 8] the same of rows 8-15
      const int row = i % 4 + (i / 4) * 4;
      a[row] = _mm512_shuffle_f32x4(eight[i], eight[i + 8], 0x88);
      a[row + 8] = _mm512_shuffle_f32x4(eight[i], eight[i + 8], 0xDD);
    }
  }
};

#if defined(__AVX512VNNI__)
// With dot products of bytes (Ice Lake, Zen 4 and later), for rounded calls.
struct Avx512Vnni : Avx512 {
  static T add_bytes(T sum, T a) { return from_bits(_mm512_dpbusd_epi32(bits(sum), bits(a), _mm512_set1_epi8(1))); }
  static T add_byte_products(T sum, T a, T b) { return from_bits(_mm512_dpbusd_epi32(bits(sum), bits(a), bits(b))); }
  static T sub_bytes(T a, T b) { return from_bits(_mm512_subs_epu8(bits(a), bits(b))); }
  static T min_bytes(T a, T b) { return from_bits(_mm512_min_epu8(bits(a), bits(b))); }
  static T repeat_byte(T a) {
    return from_bits(_mm512_shuffle_epi8(bits(a), _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0)));
  }
  static T join_limbs(T a) { return from_bits(_mm512_mask_slli_epi32(bits(a), 0x5555, bits(a), 8)); }
  static void split(T x, float levels, int8_t *to) {
    const __m512i q = _mm512_cvtps_epi32(mul(x, broadcast(levels)));
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8));
    const __m128i low = _mm512_cvtepi32_epi8(q);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_unpacklo_epi32(high, low));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 16), _mm_unpackhi_epi32(high, low));
  }
};
#endif

}  // namespace
}  // namespace torchadder
