// Vectors of the engine, AVX-512 (F, BW, DQ, VL): a block is one vector; two blocks are requantised as one.
#pragma once
#include "engine/lanes_avx2.h"

namespace torchadder::engine {
namespace {

struct Lanes16 {
  using T = __m512i;
  static constexpr int width = 16;
  static T load(const int32_t *p) { return _mm512_loadu_si512(p); }
  static void store(int32_t *p, T a) { _mm512_storeu_si512(p, a); }
  static T codes(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  }
  static T set(int32_t value) { return _mm512_set1_epi32(value); }
  static T add(T a, T b) { return _mm512_add_epi32(a, b); }
  static T sub(T a, T b) { return _mm512_sub_epi32(a, b); }
  static T mul(T a, T b) { return _mm512_mullo_epi32(a, b); }
  static T shift(T a, T by) { return _mm512_srav_epi32(a, by); }
  static T min(T a, T b) { return _mm512_min_epi32(a, b); }
  static void bytes(const T &a, uint8_t *to) {
    const T positive = _mm512_max_epi32(a, _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(positive));
  }
  static void bytes_of_four(const T *a, uint8_t *const *to) {
    for (int i = 0; i < 4; ++i) bytes(a[i], to[i]);
  }
};

struct Avx512 {
  using T = __m512i;
  static constexpr int vectors = 1;
  static T zero() { return _mm512_setzero_si512(); }
  static T load(const uint8_t *p) { return _mm512_loadu_si512(p); }
  static T broadcast(const uint8_t *p) {
    int64_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return _mm512_set1_epi64(bytes);
  }
  static T mask(uint64_t bytes) { return _mm512_set1_epi64(static_cast<int64_t>(bytes)); }
  static T keep(T a, T mask) { return _mm512_and_si512(a, mask); }
  static T absolute_differences(T sum, T x, T w) { return _mm512_add_epi32(sum, _mm512_sad_epu8(x, w)); }
  static T products(T sum, T x, T w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w)); }
  static T differing_bits(T sum, T x, T w) {
    const T bits = _mm512_xor_si512(x, w), nibble = _mm512_set1_epi8(15);
    const T count = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const T low = _mm512_shuffle_epi8(count, _mm512_and_si512(bits, nibble));
    const T high = _mm512_shuffle_epi8(count, _mm512_and_si512(_mm512_srli_epi16(bits, 4), nibble));
    return _mm512_add_epi32(sum, _mm512_sad_epu8(_mm512_add_epi8(low, high), zero()));
  }
  static T fold(T a) { return _mm512_add_epi32(a, _mm512_srli_epi64(a, 32)); }
  static __m256i narrow(const T *a) { return _mm512_cvtepi64_epi32(a[0]); }
  static __m512i narrow_two(const T *a) {
    const T even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_epi32(a[0], even, a[1]);
  }
};

#if defined(__AVX512VNNI__) && defined(__AVX512VPOPCNTDQ__)
// With the dot product of bytes and the count of bits (Ice Lake, Zen 4 and later).
struct Avx512Vnni : Avx512 {
  static T products(T sum, T x, T w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static T differing_bits(T sum, T x, T w) {
    return _mm512_add_epi32(sum, _mm512_popcnt_epi64(_mm512_xor_si512(x, w)));
  }
};
#endif

}  // namespace
}  // namespace torchadder::engine
