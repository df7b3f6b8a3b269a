// The engine's vector type of AVX2: a block of 8 channels is two vectors, of 4 lanes with 64 bits.
//
//   instruction    computes                           Zen 3               Skylake to Alder Lake
//                                                     latency, a cycle    latency, ports
//   vpsadbw        sum |x - w| of 8 bytes, 4 lanes    3, 2                3, p5
//   vpaddd         32-bit addition                    1, 4                1, p015
//   vpmaddwd       x * w, two 16-bit products         3, 2                5, p01
//   vpshufb        bits of a nibble, by table         1, 2                1, p5 (Ice Lake on: p15)
//   vpmulld        requantization                     3, 2                10, 2 x p01
//
// Zen 3 was measured; there vpsadbw and vpmaddwd share two pipes, on Zen 2 one. The Intel columns are from uops.info.
// Haswell and Broadwell run vpsadbw (latency 5) and vpmaddwd on p0 only.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "engine/job.h"

namespace torchadder::engine {
namespace {

// 8 lanes of 32 bits, for requantization.
struct Lanes8 {
  using T = __m256i;
  static constexpr int width = 8;
  static T load(const int32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
  static void store(int32_t *p, T a) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), a); }
  static T load_u8(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
  }
  static T set(int32_t value) { return _mm256_set1_epi32(value); }
  static T add(T a, T b) { return _mm256_add_epi32(a, b); }
  static T sub(T a, T b) { return _mm256_sub_epi32(a, b); }
  static T mul(T a, T b) { return _mm256_mullo_epi32(a, b); }
  static T abs(T a) { return _mm256_abs_epi32(a); }
  static T shift_right(T a, T by) { return _mm256_srav_epi32(a, by); }
  static T min(T a, T b) { return _mm256_min_epi32(a, b); }
  static T max(T a, T b) { return _mm256_max_epi32(a, b); }
  // Stores the low 8 bits of each lane, 0 for a negative one. No lane is above 255.
  static void store_u8(const T &a, uint8_t *to) {
    const __m256i words = _mm256_packus_epi32(a, a);
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_unpacklo_epi32(low, high));
  }
  static void store_u8_of_four(const T *a, uint8_t *const *to) {
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(a[0], a[1]), _mm256_packus_epi32(a[2], a[3]));
    const __m256i pixels = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m128i low = _mm256_castsi256_si128(pixels), high = _mm256_extracti128_si256(pixels, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to[0]), low);
    _mm_storeh_pi(reinterpret_cast<__m64 *>(to[1]), _mm_castsi128_ps(low));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to[2]), high);
    _mm_storeh_pi(reinterpret_cast<__m64 *>(to[3]), _mm_castsi128_ps(high));
  }
};

struct Avx2 {
  using T = __m256i;
  using ConvValue = int16_t;
  static constexpr int kConvOffset = 0;
  template <int W>
  using Lanes = Lanes8;
  static constexpr int vectors = 2, kSigns = 32;
  static constexpr int lane_order[kBlock] = {0, 1, 4, 5, 2, 3, 6, 7};  // so that narrow() needs one shuffle
  static constexpr int64_t kNarrowSteps = 0;
  static T zero() { return _mm256_setzero_si256(); }
  static T load(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
  static T broadcast(const uint8_t *p) {
    int64_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm256_set1_epi64x(bytes);
  }
  static T mask(uint64_t bytes) { return _mm256_set1_epi64x(static_cast<int64_t>(bytes)); }
  static T keep(T a, T mask) { return _mm256_and_si256(a, mask); }
  static T add_differences(T sum, T x, T w) { return _mm256_add_epi32(sum, _mm256_sad_epu8(x, w)); }
  static T add_products(T sum, T x, T w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
  static T add_differing_bits(T sum, T x, T w) {
    const T bits = _mm256_xor_si256(x, w), nibble = _mm256_set1_epi8(15);
    const T count = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3,
                                     2, 3, 3, 4);
    const T low = _mm256_shuffle_epi8(count, _mm256_and_si256(bits, nibble));
    const T high = _mm256_shuffle_epi8(count, _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble));
    return _mm256_add_epi32(sum, _mm256_sad_epu8(_mm256_add_epi8(low, high), zero()));
  }
  static T fold_differences(T sum) { return sum; }
  static T fold_products(T sum) { return _mm256_add_epi32(sum, _mm256_srli_epi64(sum, 32)); }  // a lane holds two sums
  static T fold_bits(T sum) { return sum; }
  template <int W>
  static __m256i narrow(const T *sum) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(sum[0]), _mm256_castsi256_ps(sum[1]), 0x88));
  }
  // 32 values against their zero points, to bits: 1 where q >= zero_point.
  static void pack_signs(const uint8_t *q, const uint8_t *zero_point, uint8_t *to) {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(q));
    const __m256i zero = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(zero_point));
    const int signs = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(value, zero), value));
    std::memcpy(to, &signs, sizeof signs);
  }
};

}  // namespace
}  // namespace torchadder::engine
