// The adder layer for CPUs that compute one psadbw a cycle, on a port of its own (Intel): the ports beside it compute
// every fifth pixel by |x - w| = 2 max(x, w) - x - w.
//
// Of three vector ports psadbw takes one and its addition a part of another. Per 8 bytes of a patch and 8 channels,
// four pixels take 8 psadbw and 8 additions, the fifth 2 of each max, maddubs and addition: 22 instructions for 3
// ports.
#pragma once
#include "engine/layer_kernel.h"

namespace torchadder::engine {
namespace {

struct AdderByMax {
  static constexpr int kPixels = 5, kDirect = kPixels - 1;
  static constexpr int64_t kTiles = 32;  // whose patches are summed up at once
  static constexpr int64_t kRun = 32;    // steps whose sums fit 16 bits: 32 * 8 * 255 < 2^16

  using Direct = Adder<Avx2>;
  using T = __m256i;

  // Sum of the patch of one pixel, without what lies behind its rows.
  template <bool kMasked>
  static int32_t patch_sum(const LayerJob &job, const uint8_t *patch) {
    const int64_t bytes = int64_t{job.steps} * kStep, whole = bytes - (kMasked ? kStep : 0);
    const __m128i zero = _mm_setzero_si128();
    T wide = Avx2::zero();
    __m128i sum = zero;
    for (int r = 0; r < job.rows; ++r, patch += job.kernel_row) {
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
        if (kMasked && at == whole) some &= job.tail;
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_cvtsi64_si128(static_cast<int64_t>(some)), zero));
      }
    }
    sum = _mm_add_epi64(sum, _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
    return static_cast<int32_t>(_mm_cvtsi128_si64(sum) + _mm_extract_epi64(sum, 1));
  }

  template <bool kMasked>
  static inline __attribute__((always_inline)) void step(T (&sum)[kPixels][2], const uint8_t *const (&source)[kPixels],
                                                         int64_t at, const uint8_t *weight, T tail) {
    const T w[2] = {Avx2::load(weight), Avx2::load(weight + 32)};
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      T x = Avx2::broadcast(source[p] + at);
      if constexpr (kMasked) x = Avx2::keep(x, tail);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v)
        sum[p][v] = p < kDirect ? _mm256_adds_epu16(sum[p][v], _mm256_sad_epu8(x, w[v]))
                                : _mm256_add_epi16(sum[p][v],
                                                   _mm256_maddubs_epi16(_mm256_max_epu8(x, w[v]), _mm256_set1_epi8(1)));
    }
  }

  // A sum of 16 bits, of pixel p, as one of 32.
  static inline __attribute__((always_inline)) T wider(T sum, int p) {
    return p < kDirect ? sum : _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }

  // Sums of 16 bits into those of 32.
  static inline __attribute__((always_inline)) void widen(T (&sum)[kPixels][2], T (&wide)[kPixels][2]) {
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        wide[p][v] = _mm256_add_epi32(wide[p][v], wider(sum[p][v], p));
        sum[p][v] = Avx2::zero();
      }
  }

  // kShort: a patch is a run at most, so that its sums fit 16 bits to the end.
  template <bool kMasked, bool kShort>
  [[gnu::noinline]] static void tile(const LayerJob &job, Walk &walk, int block, int32_t patch) {
    Pixels<kPixels> pixels;
    pixels.take<false>(walk);
    T sum[kPixels][2], wide[kPixels][2];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      sum[p][0] = sum[p][1] = Avx2::zero();
      if constexpr (!kShort) wide[p][0] = wide[p][1] = Avx2::zero();
    }
    const uint8_t *weight = job.weight + block * job.block_bytes;
    const T tail = Avx2::mask(job.tail);
    const int64_t whole = job.steps - kMasked;
    int64_t row = 0, room = kRun;
    for (int r = 0; r < job.rows; ++r, row += job.kernel_row) {
      int64_t at = row, left = whole;
      while (left) {
        const int64_t run = kShort || left < room ? left : room;
        for (int64_t i = 0; i < run; ++i, at += kStep, weight += kBlock * kStep)
          step<false>(sum, pixels.source, at, weight, tail);
        left -= run;
        if (kShort || (room -= run)) continue;
        widen(sum, wide);
        room = kRun;
      }
      if constexpr (kMasked) {
        step<true>(sum, pixels.source, at, weight, tail);
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
    for (int p = 0; p < kDirect; ++p) total[p] = Avx2::narrow(wide[p]);
    const T folded[2] = {Avx2::fold(wide[kDirect][0]), Avx2::fold(wide[kDirect][1])}, largest = Avx2::narrow(folded);
    total[kDirect] = Lanes8::sub(Lanes8::add(largest, largest),
                                 Lanes8::add(Lanes8::load(job.weight_sum + channel), Lanes8::set(patch)));
    leave<Lanes8, kPixels>(job, pixels, total, channel);
  }

  template <bool kMasked, bool kShort>
  static void layer(const LayerJob &job, const Part &part) {
    Tiles tiles(part.last - part.first, kPixels);
    Walk begin(job, part.first);
    for (int64_t first = 0; first < tiles.count; first += kTiles) {
      const int64_t count = tiles.count - first < kTiles ? tiles.count - first : kTiles;
      int32_t patches[kTiles];
      int sizes[kTiles];
      Walk ahead(begin);
      for (int64_t t = 0; t < count; ++t) {
        sizes[t] = static_cast<int>(tiles.next());
        ahead.skip(sizes[t] - 1);
        if (sizes[t] == kPixels) patches[t] = patch_sum<kMasked>(job, ahead.source);
        ahead.skip(1);
      }
      for (int block = part.first_block; block < part.last_block; ++block) {
        Walk walk(begin);
        for (int64_t t = 0; t < count; ++t)
          if (sizes[t] == kPixels)
            tile<kMasked, kShort>(job, walk, block, patches[t]);
          else
            tile_of<Avx2, Direct, kDirect, 1, kMasked>(job, walk, block, sizes[t]);
      }
      begin = ahead;
    }
  }

  static void run(const LayerJob &job, const Part &part) {
    const bool masked = job.tail != ~uint64_t{0};
    if (int64_t{job.rows} * job.steps <= kRun)
      masked ? layer<true, true>(job, part) : layer<false, true>(job, part);
    else
      masked ? layer<true, false>(job, part) : layer<false, false>(job, part);
  }
};

}  // namespace
}  // namespace torchadder::engine
