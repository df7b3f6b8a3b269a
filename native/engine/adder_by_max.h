// The adder layer for AVX2 CPUs that compute one psadbw a cycle (Intel). psadbw runs on port 5 only. To use the other
// vector ports too, every fifth pixel is computed without it, by |x - w| = 2 max(x, w) - x - w. On Haswell and
// Broadwell psadbw and maddubs both run on port 0 only, so that nothing is gained or lost there.
//
// A step covers 8 bytes of a patch, 8 channels and five pixels. Four pixels take 8 psadbw and 8 additions; the fifth
// takes 2 each of max, maddubs and addition. These are 22 instructions for 3 ports. The sums of psadbw are added by
// vpaddusw, which runs on ports 0 and 1 only and so leaves port 5 free; it never saturates (kRun).
//
//   instruction    latency, ports (Intel, Skylake to Alder Lake; from uops.info)
//   vpsadbw        3, p5
//   vpaddusw       1, p01
//   vpmaxub        1, p01
//   vpmaddubsw     5, p01
//   vpaddw         1, p015
#pragma once
#include "engine/layer_kernel.h"
#include "engine/vector_avx2.h"

namespace torchadder::engine {
namespace {

struct AdderByMax {
  static constexpr int kPixels = 5, kDirectPixels = kPixels - 1;
  static constexpr int64_t kTiles = 32;  // tiles whose patch sums are computed together
  static constexpr int64_t kRun = 32;    // steps whose accumulators fit 16 bits: 32 * 8 * 255 < 2^16

  using Direct = Adder<Avx2>;
  using T = __m256i;

  // Returns the sum over the patch of one pixel, without the bytes after its rows.
  template <bool kMasked>
  static int32_t patch_sum(const LayerJob &job, const uint8_t *source) {
    const int64_t bytes = int64_t{job.steps} * kStep, whole = bytes - (kMasked ? kStep : 0);
    const __m128i zero = _mm_setzero_si128();
    T wide = Avx2::zero();
    __m128i sum = zero;
    for (int r = 0; r < job.rows; ++r) {
      const uint8_t *const patch = source + job.row_offset[r];
      int64_t at = 0;
      for (; at + 32 <= whole; at += 32)
        wide = _mm256_add_epi64(wide, _mm256_sad_epu8(Avx2::load(patch + at), Avx2::zero()));
      if (at + 16 <= whole) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i *>(patch + at));
        sum = _mm_add_epi64(sum, _mm_sad_epu8(some, zero));
        at += 16;
      }
      for (; at < bytes; at += kStep) {
        uint64_t some;
        std::memcpy(&some, patch + at, sizeof some);
        if (kMasked && at == whole) some &= job.tail_mask;
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_cvtsi64_si128(static_cast<int64_t>(some)), zero));
      }
    }
    sum = _mm_add_epi64(sum, _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
    return static_cast<int32_t>(_mm_cvtsi128_si64(sum) + _mm_extract_epi64(sum, 1));
  }

  template <bool kMasked>
  static inline __attribute__((always_inline)) void step(T (&sum)[kPixels][2], const uint8_t *const (&source)[kPixels],
                                                         int64_t at, const uint8_t *weight, T tail_mask) {
    const T w[2] = {Avx2::load(weight), Avx2::load(weight + 32)};
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      T x = Avx2::broadcast(source[p] + at);
      if constexpr (kMasked) x = Avx2::keep(x, tail_mask);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v)
        sum[p][v] =
            p < kDirectPixels
                ? _mm256_adds_epu16(sum[p][v], _mm256_sad_epu8(x, w[v]))
                : _mm256_add_epi16(sum[p][v], _mm256_maddubs_epi16(_mm256_max_epu8(x, w[v]), _mm256_set1_epi8(1)));
    }
  }

  // Returns the 16-bit accumulators of pixel p as 32-bit ones.
  static inline __attribute__((always_inline)) T wider(T sum, int p) {
    return p < kDirectPixels ? sum : _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }

  // Adds the 16-bit accumulators to the 32-bit ones, and clears them.
  static inline __attribute__((always_inline)) void widen(T (&sum)[kPixels][2], T (&wide)[kPixels][2]) {
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        wide[p][v] = _mm256_add_epi32(wide[p][v], wider(sum[p][v], p));
        sum[p][v] = Avx2::zero();
      }
  }

  // kShort: a patch has at most kRun steps, so that its accumulators fit 16 bits to the end.
  template <bool kMasked, bool kShort>
  [[gnu::noinline]] static void tile(const LayerJob &job, Position &at, int block, int32_t patch) {
    Pixels<kPixels> pixels;
    pixels.take<false>(at);
    T sum[kPixels][2], wide[kPixels][2];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      sum[p][0] = sum[p][1] = Avx2::zero();
      if constexpr (!kShort) wide[p][0] = wide[p][1] = Avx2::zero();
    }
    const uint8_t *weight = job.weight + block * job.block_bytes;
    const T tail_mask = Avx2::mask(job.tail_mask);
    const int64_t whole = job.steps - kMasked;
    int64_t room = kRun;
    for (int r = 0; r < job.rows; ++r) {
      int64_t at = job.row_offset[r], left = whole;
      while (left) {
        const int64_t run = kShort || left < room ? left : room;
        for (int64_t i = 0; i < run; ++i, at += kStep, weight += kBlock * kStep)
          step<false>(sum, pixels.source, at, weight, tail_mask);
        left -= run;
        if (kShort || (room -= run)) continue;
        widen(sum, wide);
        room = kRun;
      }
      if constexpr (kMasked) {
        step<true>(sum, pixels.source, at, weight, tail_mask);
        weight += kBlock * kStep;
        if (kShort || --room) continue;
        widen(sum, wide);
        room = kRun;
      }
    }
    if constexpr (kShort) {
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) wide[p][v] = wider(sum[p][v], p);
    } else {
      widen(sum, wide);
    }
    const int channel = block * kBlock;
    T total[kPixels];
#pragma GCC unroll 8
    for (int p = 0; p < kDirectPixels; ++p) total[p] = Avx2::narrow<1>(wide[p]);
    const T folded[2] = {Avx2::fold_products(wide[kDirectPixels][0]), Avx2::fold_products(wide[kDirectPixels][1])};
    const T largest = Avx2::narrow<1>(folded);  // sum of max(x, w)
    total[kDirectPixels] = Lanes8::sub(Lanes8::add(largest, largest),
                                       Lanes8::add(Lanes8::load(job.weight_sum + channel), Lanes8::set(patch)));
    epilogue<Lanes8, kPixels>(job, pixels, total, channel);
  }

  template <bool kMasked, bool kShort>
  static void tiles(const LayerJob &job, const Part &part) {
    Tiles split(part.last - part.first, kPixels);
    Position begin(job, part.first);
    for (int64_t first = 0; first < split.count; first += kTiles) {
      const int64_t count = split.count - first < kTiles ? split.count - first : kTiles;
      int32_t patches[kTiles];
      int sizes[kTiles];
      Position ahead(begin);
      for (int64_t t = 0; t < count; ++t) {
        sizes[t] = static_cast<int>(split.next());
        ahead.advance(sizes[t] - 1);
        if (sizes[t] == kPixels) patches[t] = patch_sum<kMasked>(job, ahead.source);
        ahead.advance(1);
      }
      for (int block = part.first_block; block < part.last_block; ++block) {
        Position at(begin);
        for (int64_t t = 0; t < count; ++t)
          if (sizes[t] == kPixels)
            tile<kMasked, kShort>(job, at, block, patches[t]);
          else
            tile_of<Avx2, Direct, kDirectPixels, 1, kMasked ? Row::steps_and_tail : Row::steps>(job, at, block,
                                                                                                sizes[t]);
      }
      begin = ahead;
    }
  }

  static void layer(const LayerJob &job, const Part &part) {
    const bool is_masked = job.tail_mask != ~uint64_t{0};
    if (int64_t{job.rows} * job.steps <= kRun)
      is_masked ? tiles<true, true>(job, part) : tiles<false, true>(job, part);
    else
      is_masked ? tiles<true, false>(job, part) : tiles<false, false>(job, part);
  }
};

}  // namespace
}  // namespace torchadder::engine
