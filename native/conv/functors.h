// The arithmetic of each operator: one step of the inner loop and what becomes of a finished sum.
//
// Each identity is derived in docs/performance.md. NaN: x86's max and min return their second operand when either
// is NaN, so the operands below are ordered for NaN to survive, or the last line of `finish` brings it back.
#pragma once

namespace torchadder {

// What the lanes of a vector meet: one number for all, each its own channel's, or each a channel of its own group.
enum class Source { one, own, group };

// |x - w| = 2 max(x, w) - x - w: two instructions an element; the two plain sums are made once a patch and filter.
template <class V, bool kAdd>
struct Forward {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = true, kState = false;
  T one = V::broadcast(1.0f);
  struct State {};
  static State state(T) { return {}; }
  T step(T sum, T w, T x, State) const {
    const T larger = V::max(w, x);
    return kAdd ? V::add(sum, larger) : V::fma(one, larger, sum);
  }
  static T finish(T sum, T source_sum, T weight_sum, T constant, T) {
    return V::sub(V::add(constant, V::add(source_sum, weight_sum)), V::add(sum, sum));
  }
};

// HardTanh(w - x) = min(max(w, x - 1), x + 1) - x: three instructions, the last term once a patch.
template <class V>
struct GradInputMinMax {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = true, kState = true;
  struct State {
    T low, high;
  };
  static State state(T x) {
    const T one = V::broadcast(1.0f);
    return {V::sub(x, one), V::add(x, one)};
  }
  static T step(T sum, T w, T dy, State s) { return V::fma(dy, V::min(s.high, V::max(s.low, w)), sum); }
  static T finish(T sum, T source_sum, T, T, T x) { return V::sub(sum, V::mul(x, source_sum)); }
};

// HardTanh(w - x) in one instruction where there is one (AVX-512 vrangeps): no cancellation, fewer registers.
template <class V>
struct GradInputClamp {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = false, kState = true;
  struct State {
    T x;
  };
  static State state(T x) { return {x}; }
  static T step(T sum, T w, T dy, State s) { return V::fma(dy, V::hardtanh(V::sub(w, s.x)), sum); }
  static T finish(T sum, T, T, T constant, T x) { return V::keep_nan(V::add(sum, constant), x); }
};

// sign(w - x) * dy: the true derivative of the L1 distance (ablation).
template <class V>
struct GradInputSign {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = false, kState = true;
  struct State {
    T x;
  };
  static State state(T x) { return {x}; }
  static T step(T sum, T w, T dy, State s) { return V::add_signed(sum, w, s.x, dy); }
  static T finish(T sum, T, T, T, T) { return sum; }
};

// Groups of few channels: several of them fill a vector.
template <class F>
struct Grouped : F {
  static constexpr Source kSource = Source::group;
};

// Depthwise: source and weight are both vectors along the channels, so the plain sums would not be shared.
template <class V>
struct Depthwise {
  using T = typename V::T;
  static constexpr Source kSource = Source::own;
  static constexpr bool kSourceSum = false, kState = false;
  struct State {};
  static State state(T) { return {}; }
  static T step(T sum, T w, T x, State) { return V::add(sum, V::abs(V::sub(x, w))); }
  static T finish(T sum, T, T, T constant, T) { return V::sub(constant, sum); }
};

template <class V>
struct DepthwiseGradInput {
  using T = typename V::T;
  static constexpr Source kSource = Source::own;
  static constexpr bool kSourceSum = false, kState = true;
  struct State {
    T x, one, minus_one;
  };
  static State state(T x) { return {x, V::broadcast(1.0f), V::broadcast(-1.0f)}; }
  static T step(T sum, T w, T dy, State s) {
    return V::fma(dy, V::min(s.one, V::max(s.minus_one, V::sub(w, s.x))), sum);
  }
  static T finish(T sum, T, T, T, T) { return sum; }
};

// Depthwise: any other functor that needs no source sum.
template <class F>
struct OwnChannel : F {
  static constexpr Source kSource = Source::own;
};

template <class V>
using DepthwiseGradInputClamp = OwnChannel<GradInputClamp<V>>;

}  // namespace torchadder
