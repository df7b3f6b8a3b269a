// The engine's vector type in plain C++, for any CPU: a vector is a block of 8 channels.
#pragma once
#include <cstdint>
#include <cstring>

#include "engine/job.h"

namespace torchadder::engine {
namespace {

// 8 lanes of 32 bits, for requantization.
struct PortableLanes {
  struct T {
    int32_t lane[8];
  };
  static constexpr int width = 8;
  template <class Body>
  static T each(Body &&body) {
    T result;
    for (int i = 0; i < width; ++i) result.lane[i] = body(i);
    return result;
  }
  static T load(const int32_t *p) {
    return each([&](int i) { return p[i]; });
  }
  static T load_u8(const uint8_t *p) {
    return each([&](int i) { return int32_t{p[i]}; });
  }
  static T set(int32_t value) {
    return each([&](int) { return value; });
  }
  static T add(T a, T b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static T sub(T a, T b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static T mul(T a, T b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static T abs(T a) {
    return each([&](int i) { return a.lane[i] < 0 ? -a.lane[i] : a.lane[i]; });
  }
  static T shift_right(T a, T by) {
    return each([&](int i) { return a.lane[i] >> by.lane[i]; });
  }
  static T min(T a, T b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static T max(T a, T b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? b.lane[i] : a.lane[i]; });
  }
  static void store(int32_t *p, T a) { std::memcpy(p, a.lane, sizeof a.lane); }
  static void store_u8(const T &a, uint8_t *to) {
    for (int i = 0; i < width; ++i) to[i] = static_cast<uint8_t>(a.lane[i] < 0 ? 0 : a.lane[i]);
  }
  static void store_u8_of_four(const T *a, uint8_t *const *to) {
    for (int i = 0; i < 4; ++i) store_u8(a[i], to[i]);
  }
};

struct Portable {
  struct T {
    uint64_t lane[kBlock];  // 8 bytes of a channel, or its accumulator
  };
  using ConvValue = uint8_t;
  static constexpr int kConvOffset = 0;
  template <int W>
  using Lanes = PortableLanes;
  static constexpr int vectors = 1, kSigns = 8;
  static constexpr int lane_order[kBlock] = {0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr int64_t kNarrowSteps = 0;

  static T zero() { return {}; }
  static T load(const uint8_t *p) {
    T a;
    std::memcpy(a.lane, p, sizeof a.lane);
    return a;
  }
  static T mask(uint64_t bytes) {
    T a;
    for (uint64_t &lane : a.lane) lane = bytes;
    return a;
  }
  static T broadcast(const uint8_t *p) {
    uint64_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return mask(bytes);
  }
  static T keep(T a, T mask) {
    for (int i = 0; i < kBlock; ++i) a.lane[i] &= mask.lane[i];
    return a;
  }

  static T add_differences(T sum, T x, T w) {
    return add_each_byte(sum, x, w, [](uint8_t a, uint8_t b) { return a < b ? b - a : a - b; });
  }
  static T add_products(T sum, T x, T w) {
    return add_each_byte(sum, x, w, [](uint8_t a, uint8_t b) { return a * static_cast<int8_t>(b); });
  }
  static T add_differing_bits(T sum, T x, T w) {
    for (int i = 0; i < kBlock; ++i) sum.lane[i] += static_cast<uint64_t>(__builtin_popcountll(x.lane[i] ^ w.lane[i]));
    return sum;
  }
  static T fold_differences(T sum) { return sum; }
  static T fold_products(T sum) { return sum; }
  static T fold_bits(T sum) { return sum; }
  template <int W>
  static PortableLanes::T narrow(const T *sum) {
    return PortableLanes::each([&](int i) { return static_cast<int32_t>(sum->lane[i]); });
  }

  // 8 values against their zero points, to bits: 1 where q >= zero_point.
  static void pack_signs(const uint8_t *q, const uint8_t *zero_point, uint8_t *to) {
    unsigned signs = 0;
    for (int i = 0; i < kSigns; ++i) signs |= static_cast<unsigned>(q[i] >= zero_point[i]) << i;
    *to = static_cast<uint8_t>(signs);
  }

 private:
  template <class Body>
  static T add_each_byte(T sum, const T &x, const T &w, Body &&body) {
    uint8_t a[kBlock][kStep], b[kBlock][kStep];
    std::memcpy(a, x.lane, sizeof a);
    std::memcpy(b, w.lane, sizeof b);
    for (int i = 0; i < kBlock; ++i) {
      int32_t step = 0;
      for (int k = 0; k < kStep; ++k) step += body(a[i][k], b[i][k]);
      sum.lane[i] += static_cast<uint64_t>(int64_t{step});
    }
    return sum;
  }
};

}  // namespace
}  // namespace torchadder::engine
