// The engine's vector type of AVX-512 (F, BW, DQ, VL): a block of 8 channels is one vector, of 8 lanes with 64 bits;
// two blocks are requantized together.
//
//   instruction    computes                                 Intel server cores: latency, ports (from uops.info)
//   vpsadbw        sum |x - w| of 8 bytes, 8 lanes          3, p5
//   vpaddd         32-bit addition                          1, p05
//   vpmaddwd       x * w, two 16-bit products               5, p05
//   vpdpbusd       a + x * w, four 8-bit products (VNNI)    5, p05
//   vpshufb        bits of a nibble, by table               1, p5
//   vpopcntq       bits of 8 bytes (VPOPCNTDQ)              3, p5
//
// psadbw limits the adder layer to 64 byte operations a cycle; its addition takes port 0.
#pragma once
#include <type_traits>

#include "engine/vector_avx2.h"

namespace torchadder::engine {
namespace {

// 16 lanes of 32 bits, for requantization.
struct Lanes16 {
  using T = __m512i;
  static constexpr int width = 16;
  static T load(const int32_t *p) { return _mm512_loadu_si512(p); }
  static void store(int32_t *p, T a) { _mm512_storeu_si512(p, a); }
  static T load_u8(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  }
  static T set(int32_t value) { return _mm512_set1_epi32(value); }
  static T add(T a, T b) { return _mm512_add_epi32(a, b); }
  static T sub(T a, T b) { return _mm512_sub_epi32(a, b); }
  static T mul(T a, T b) { return _mm512_mullo_epi32(a, b); }
  static T abs(T a) { return _mm512_abs_epi32(a); }
  static T shift_right(T a, T by) { return _mm512_srav_epi32(a, by); }
  static T min(T a, T b) { return _mm512_min_epi32(a, b); }
  static T max(T a, T b) { return _mm512_max_epi32(a, b); }
  static void store_u8(const T &a, uint8_t *to) {
    const T positive = _mm512_max_epi32(a, _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(positive));
  }
  static void store_u8_of_four(const T *a, uint8_t *const *to) {
    for (int i = 0; i < 4; ++i) store_u8(a[i], to[i]);
  }
};

struct Avx512 {
  using T = __m512i;
  using ConvValue = int16_t;
  static constexpr int kConvOffset = 0;
  template <int W>
  using Lanes = std::conditional_t<W == 2, Lanes16, Lanes8>;
  static constexpr int vectors = 1, kSigns = Avx2::kSigns;
  static constexpr int lane_order[kBlock] = {0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr int64_t kNarrowSteps = 0;
  static T zero() { return _mm512_setzero_si512(); }
  static T load(const uint8_t *p) { return _mm512_loadu_si512(p); }
  static T broadcast(const uint8_t *p) {
    int64_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm512_set1_epi64(bytes);
  }
  static T mask(uint64_t bytes) { return _mm512_set1_epi64(static_cast<int64_t>(bytes)); }
  static T keep(T a, T mask) { return _mm512_and_si512(a, mask); }
  static T add_differences(T sum, T x, T w) { return _mm512_add_epi32(sum, _mm512_sad_epu8(x, w)); }
  static T add_products(T sum, T x, T w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w)); }
  static T add_differing_bits(T sum, T x, T w) {
    const T bits = _mm512_xor_si512(x, w), nibble = _mm512_set1_epi8(15);
    const T count = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const T low = _mm512_shuffle_epi8(count, _mm512_and_si512(bits, nibble));
    const T high = _mm512_shuffle_epi8(count, _mm512_and_si512(_mm512_srli_epi16(bits, 4), nibble));
    return _mm512_add_epi32(sum, _mm512_sad_epu8(_mm512_add_epi8(low, high), zero()));
  }
  static T fold_differences(T sum) { return sum; }
  static T fold_products(T sum) { return _mm512_add_epi32(sum, _mm512_srli_epi64(sum, 32)); }  // a lane holds two sums
  static T fold_bits(T sum) { return sum; }
  template <int W>
  static typename Lanes<W>::T narrow(const T *sum) {
    if constexpr (W == 2) {
      const T even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      return _mm512_permutex2var_epi32(sum[0], even, sum[1]);
    } else {
      return _mm512_cvtepi64_epi32(sum[0]);
    }
  }
  static void pack_signs(const uint8_t *q, const uint8_t *zero_point, uint8_t *to) {
    Avx2::pack_signs(q, zero_point, to);
  }
};

#if defined(__AVX512VNNI__) && defined(__AVX512VPOPCNTDQ__)
// With the dot product of bytes and the bit count (Ice Lake, Zen 4 and later).
struct Avx512Vnni : Avx512 {
  using ConvValue = uint8_t;
  static T add_products(T sum, T x, T w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static T add_differing_bits(T sum, T x, T w) {
    return _mm512_add_epi32(sum, _mm512_popcnt_epi64(_mm512_xor_si512(x, w)));
  }
};
#endif

}  // namespace
}  // namespace torchadder::engine
