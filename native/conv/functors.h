// The functors: the arithmetic of each operator, for any vector type V.
//
//   Words                    the type of what a step reads of the source, and of the accumulator: OneWord
//   source(p), zero()        what a step reads at p; an accumulator of 0
//   step(sum, w, x, state)   one step of the inner loop; `x` is dy in gradients
//   finish(...)              the result, from the accumulator and the plain sums of source and weight
//   kSource                  which source channel a lane reads, or that lanes are along the depth
//   kSourceSum               finish() reads the plain sum of the source
//   kState, State, state(x)  gradients: what is kept in registers for each pixel, made of the forward input x
//
//   operator            identity                                              vector instructions an element
//   convolution         x w                                                   1: fma
//   forward, x86        sum |x-w| = 2 sum max(x, w) - sum x - sum w           2: max, add (or fma with 1)
//   forward, NEON       |x-w|                                                 2: fabd, add
//   grad_input, AVX2    HardTanh(w-x) = min(max(w, x-1), x+1) - x             3: max, min, fma
//   grad_input, AVX-512 HardTanh(w-x) = range(w-x, 1)                         3: sub, range, fma
//   sign gradients      sign(w-x): fixupimm (AVX-512) or masks (AVX2)         3 or 8
//   few channels        as above, with lanes along the depth                  3, and a sum of lanes a result
//   groups              as above, with one permutation of the source          + 1
//   forward_u8          as forward on x86, of four bytes a lane               2 for four: max, dot product
//   grad_input_i16      as grad_input on AVX2, of two 16-bit numbers a lane   4 for two: max, min, madd, add
//   the same, VNNI      HardTanh(w-x) + 1 = min(w - (x-1), 2), bytes          4 for four: sub, min, two dot products
//   depthwise forward   |x-w|                                                 3: sub, and, add (NEON: 2)
//
// docs/performance.md derives each identity. NaN: max and min of x86 return their second operand if either is NaN. So
// the operands are ordered for NaN to survive, or finish() restores it.
#pragma once
#include "conv/tile.h"

namespace torchadder {

// The source channel of a lane: one for all lanes, the lane's own, or one of the lane's group. Or, where a result has
// few channels, lanes are along the depth: each lane reads another channel of the source, and the lanes are added at
// the end.
enum class Source { one, own, group, depth };

// A step reads one number of the source, or one word, which is broadcast.
template <class V>
struct OneWord {
  using Words = typename V::T;
  static constexpr int kWords = 1;
  static Words zero() { return V::zero(); }
  static Words source(const float *at) { return V::broadcast(*at); }
};

// |x - w| = 2 max(x, w) - x - w. The two plain sums are computed once a patch and once a filter.
template <class V, bool kAdd>
struct Forward : OneWord<V> {
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

// |x - w| itself, where that is one instruction (NEON fabd).
template <class V, bool>
struct ForwardByDistance : OneWord<V> {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = false, kState = false;
  struct State {};
  static State state(T) { return {}; }
  static T step(T sum, T w, T x, State) { return V::add(sum, V::distance(x, w)); }
  static T finish(T sum, T, T, T constant, T) { return V::sub(constant, sum); }
};

// HardTanh(w - x) = min(max(w, x - 1), x + 1) - x. The last term is subtracted once a patch.
template <class V>
struct GradInputMinMax : OneWord<V> {
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

// HardTanh(w - x) in one instruction, where there is one (AVX-512 vrangeps): no cancellation, fewer registers. It makes
// 1 of NaN; finish() restores NaN where a weight or x is NaN, or both are the same infinity.
template <class V>
struct GradInputClamp : OneWord<V> {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = false, kState = true;
  struct State {
    T x;
  };
  static State state(T x) { return {x}; }
  static T step(T sum, T w, T dy, State s) { return V::fma(dy, V::hardtanh(V::sub(w, s.x)), sum); }
  static T finish(T sum, T, T, T constant, T x) { return V::keep_nan(sum, V::sub(constant, x)); }
};

// sign(w - x) * dy: the true derivative of the L1 distance (ablation).
template <class V>
struct GradInputSign : OneWord<V> {
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

// Forward of a rounded call: |x - w| = 2 max(x, w) - x - w of bytes, four in a lane. All sums are integers.
template <class V>
struct ForwardBytes : OneWord<V> {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = true, kState = false;
  T unit;
  explicit ForwardBytes(const Block &block) : unit(V::broadcast(block.grid->unit)) {}
  struct State {};
  static State state(T) { return {}; }
  static T step(T sum, T w, T x, State) { return V::add_bytes(sum, V::max_bytes(w, x)); }
  T finish(T sum, T source_sum, T weight_sum, T constant, T) const {
    const T rest = V::to_floats(V::sub_ints(V::add_ints(sum, sum), source_sum));
    return V::mul(unit, V::sub(V::add(constant, weight_sum), rest));
  }
};

// The input gradient of a rounded call: HardTanh(w - x) as in GradInputMinMax, in steps of the grid, of 16-bit numbers,
// two in a lane. Sums may wrap: their low 32 bits are exact, and the result fits 32 bits.
template <class V>
struct GradInputPairs : OneWord<V> {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = true, kState = true;
  const Grid &grid;
  explicit GradInputPairs(const Block &block) : grid(*block.grid) {}
  struct State {
    T low, high;
  };
  T steps(T x) const { return V::round(x, grid.levels, grid.zero_point); }
  State state(T x) const {
    const T pair = V::pair(steps(x)), limit = V::pair(V::broadcast_int(grid.limit));
    return {V::sub_pairs(pair, limit), V::add_pairs(pair, limit)};
  }
  static T step(T sum, T w, T dy, State s) {
    return V::add_products(sum, V::min_pairs(s.high, V::max_pairs(s.low, w)), dy);
  }
  T finish(T sum, T source_sum, T, T constant, T x) const {
    const T total = V::to_floats(V::sub_ints(sum, V::mul_ints(steps(x), source_sum)));
    return V::add(V::mul(V::broadcast(grid.unit), total), constant);
  }
};

// The same where a dot product of unsigned and signed bytes exists: HardTanh(w - x) + limit = min(w - low, 2 limit) of
// bytes, four in a lane, with low = x - limit and a difference below 0 as 0. dy is 256 * its high limb + its low one,
// of signed bytes, and each limb has a sum of its own, which may wrap.
template <class V>
struct GradInputLimbs {
  using T = typename V::T;
  static constexpr Source kSource = Source::one;
  static constexpr bool kSourceSum = true, kState = true;
  static constexpr int kWords = 2;
  struct Words {
    T high, low;
  };
  static Words zero() { return {V::zero(), V::zero()}; }
  static Words source(const float *at) { return {V::broadcast(at[0]), V::broadcast(at[1])}; }
  const Grid &grid;
  const T largest;
  explicit GradInputLimbs(const Block &block)
      : grid(*block.grid), largest(V::repeat_byte(V::broadcast_int(2 * grid.limit))) {}
  struct State {
    T low;
  };
  State state(T x) const { return {V::repeat_byte(V::round(x, grid.levels, grid.zero_point - grid.limit))}; }
  Words step(Words sum, T w, Words dy, State s) const {
    const T clamped = V::min_bytes(V::sub_bytes(w, s.low), largest);
    return {V::add_byte_products(sum.high, clamped, dy.high), V::add_byte_products(sum.low, clamped, dy.low)};
  }
  T finish(Words sum, T source_sum, T, T constant, T) const {
    const T joined = V::add_ints(V::mul_ints(sum.high, V::broadcast_int(256)), sum.low);
    const T total = V::to_floats(V::sub_ints(joined, V::mul_ints(source_sum, V::broadcast_int(grid.limit))));
    return V::add(V::mul(V::broadcast(grid.unit), total), constant);
  }
};

// Groups of few channels: several groups fill a vector.
template <class F>
struct Grouped : F {
  static constexpr Source kSource = Source::group;
};

template <class F>
struct AlongDepth : F {
  static constexpr Source kSource = Source::depth;
};

template <class V>
struct DepthwiseGradInput : OneWord<V> {
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

// Makes a functor depthwise: source and weight are both vectors along the channels. The functor must have no source
// sum.
template <class F>
struct OwnChannel : F {
  static constexpr Source kSource = Source::own;
};

// The identity of Forward would save nothing, because no second filter shares the plain sum of the source.
template <class V>
using Depthwise = OwnChannel<ForwardByDistance<V, false>>;

template <class V>
using DepthwiseGradInputClamp = OwnChannel<GradInputClamp<V>>;

}  // namespace torchadder
