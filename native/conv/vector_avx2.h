// The vector type of AVX2 with FMA: 8 floats.
//
//   instruction      Zen 3               Skylake           Alder Lake (P cores)
//                    latency, a cycle    latency, ports    latency, ports
//   vmaxps, vminps   1, 2                4, p01            4, p01
//   vaddps, vsubps   3, 2                4, p01            3, p15
//   vfmadd231ps      4, 2                4, p01            4, p01
//   vandps           1, 4                1, p015           1, p015
//
// Zen 3 was measured: max and add share two pipes (2.0 of both together a cycle), fma has two others (3.2 of max and
// fma). The Intel columns are from uops.info.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace torchadder {
namespace {

struct Avx2 {
  using T = __m256;
  static constexpr int width = 8;
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static T zero() { return _mm256_setzero_ps(); }
  static T broadcast(float x) { return _mm256_set1_ps(x); }
  static T load(const float *p) { return _mm256_loadu_ps(p); }
  static T load_partial(const float *p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static T load_strided(const float *p, int64_t s, int n) {  // a gather is slow on Zen
    if (n >= width) return _mm256_setr_ps(p[0], p[s], p[2 * s], p[3 * s], p[4 * s], p[5 * s], p[6 * s], p[7 * s]);
    alignas(32) float lanes[8] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i * s];
    return _mm256_load_ps(lanes);
  }
  static T permute(T a, const int32_t *lanes) {
    return _mm256_permutevar8x32_ps(a, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(lanes)));
  }
  static void store(float *p, T a) { _mm256_storeu_ps(p, a); }
  static void store_partial(float *p, T a, int n) {  // a masked store is slow on Zen
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static T add(T a, T b) { return _mm256_add_ps(a, b); }
  static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static T max(T a, T b) { return _mm256_max_ps(a, b); }
  static T min(T a, T b) { return _mm256_min_ps(a, b); }
  static T abs(T a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static T distance(T a, T b) { return abs(sub(a, b)); }
  static T keep_nan(T a, T x) { return _mm256_blendv_ps(a, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }
  static T add_signed(T sum, T a, T b, T d) {  // sum + sign(a - b) * d, NaN where a - b is
    const T t = sub(a, b), one = _mm256_or_ps(_mm256_and_ps(t, broadcast(-0.0f)), broadcast(1.0f));
    const T sign = _mm256_and_ps(one, _mm256_cmp_ps(t, zero(), _CMP_NEQ_UQ));
    return fma(_mm256_or_ps(sign, _mm256_cmp_ps(t, t, _CMP_UNORD_Q)), d, sum);
  }
  // Of 32-bit integers, of bytes and of pairs, for rounded calls.
  static __m256i bits(T a) { return _mm256_castps_si256(a); }
  static T from_bits(__m256i a) { return _mm256_castsi256_ps(a); }
  static T broadcast_int(int x) { return from_bits(_mm256_set1_epi32(x)); }
  static T add_ints(T a, T b) { return from_bits(_mm256_add_epi32(bits(a), bits(b))); }
  static T sub_ints(T a, T b) { return from_bits(_mm256_sub_epi32(bits(a), bits(b))); }
  static T mul_ints(T a, T b) { return from_bits(_mm256_mullo_epi32(bits(a), bits(b))); }
  static T to_floats(T a) { return _mm256_cvtepi32_ps(bits(a)); }
  static T round(T x, float levels, int zero) {
    return add_ints(from_bits(_mm256_cvtps_epi32(mul(x, broadcast(levels)))), broadcast_int(zero));
  }
  static T pair(T a) {
    const __m256i low = _mm256_and_si256(bits(a), _mm256_set1_epi32(0xFFFF));
    return from_bits(_mm256_or_si256(low, _mm256_slli_epi32(low, 16)));
  }
  static T max_bytes(T a, T b) { return from_bits(_mm256_max_epu8(bits(a), bits(b))); }
  static T max_pairs(T a, T b) { return from_bits(_mm256_max_epi16(bits(a), bits(b))); }
  static T min_pairs(T a, T b) { return from_bits(_mm256_min_epi16(bits(a), bits(b))); }
  static T add_pairs(T a, T b) { return from_bits(_mm256_add_epi16(bits(a), bits(b))); }
  static T sub_pairs(T a, T b) { return from_bits(_mm256_sub_epi16(bits(a), bits(b))); }
  static T add_products(T sum, T a, T b) { return add_ints(sum, from_bits(_mm256_madd_epi16(bits(a), bits(b)))); }
  static T add_bytes(T sum, T a) {
    const __m256i pairs = _mm256_maddubs_epi16(bits(a), _mm256_set1_epi8(1));
    return add_ints(sum, from_bits(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  }
  template <bool kInts>
  static T sum_each(const T *a) {  // lane p of the result is the sum of a[p]'s lanes
    const auto sums = [](T x, T y) {
      return kInts ? from_bits(_mm256_hadd_epi32(bits(x), bits(y))) : _mm256_hadd_ps(x, y);
    };
    const auto add = [](T x, T y) { return kInts ? add_ints(x, y) : Avx2::add(x, y); };
    const T low = sums(sums(a[0], a[1]), sums(a[2], a[3])), high = sums(sums(a[4], a[5]), sums(a[6], a[7]));
    return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
  // Row p of the result is lane p of each a: interleaves pairs, then fours, then halves.
  static void transpose(T *a) {
    T pair[8], four[8];
    for (int i = 0; i < 4; ++i) {
      pair[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
      pair[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int k = 0; k < 2; ++k) {
        four[i + 2 * k] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0x44);
        four[i + 2 * k + 1] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0xEE);
      }
    for (int i = 0; i < 4; ++i) {
      a[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
      a[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
  }
};

}  // namespace
}  // namespace torchadder
