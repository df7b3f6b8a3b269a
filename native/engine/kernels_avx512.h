// The kernels of one of the AVX-512 instruction sets, V: alike but for products and counts of bits.
#pragma once
#include "engine/lanes_avx512.h"
#include "engine/layer_kernel.h"
#include "engine/moves.h"

namespace torchadder::engine {
namespace {

template <class V>
struct LanesOf<V, 2> {
  using L = Lanes16;
  static __m512i narrow(const __m512i *sum) { return V::narrow_two(sum); }
};

// T: what a conv layer reads.
template <class V, class T>
constexpr Kernels kernels_of(const char *name, const char *adder, const char *conv, const char *binary) {
  return {
      name,
      layer<V, Adder<V>, 8, 2>,
      layer<V, Conv<V>, 8, 2>,
      layer<V, Binary<V>, 8, 2>,
      adder,
      conv,
      binary,
      moves<Signs32, T>(),
      kInOrder,
  };
}

}  // namespace
}  // namespace torchadder::engine
