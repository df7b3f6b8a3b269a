#include "lanes_avx512.h"
#include "layer_kernel.h"
#include "moves.h"

namespace torchadder::engine {
namespace {
template <>
struct LanesOf<Avx512, 2> {
  using L = Lanes16;
  static __m512i narrow(const __m512i *sum) { return Avx512::narrow_two(sum); }
};
}  // namespace

extern const Kernels kernels_avx512 = {
    "avx512",
    layer<Avx512, Adder<Avx512>, 8, 2>,
    layer<Avx512, Conv<Avx512>, 8, 2>,
    layer<Avx512, Binary<Avx512>, 8, 2>,
    "adder_u8_avx512_8x16",
    "conv_u8_avx512_8x16",
    "binary_avx512_8x16",
    copy_binary<Signs32>,
    copy_conv<int16_t>,
    2,
    max_pool,
    channel_sums,
    codes,
    {0, 1, 2, 3, 4, 5, 6, 7},
};

}  // namespace torchadder::engine
