#include "lanes_avx512.h"
#include "layer_kernel.h"
#include "moves.h"

namespace torchadder::engine {
namespace {
template <>
struct LanesOf<Avx512Vnni, 2> {
  using L = Lanes16;
  static __m512i narrow(const __m512i *sum) { return Avx512Vnni::narrow_two(sum); }
};
}  // namespace

extern const Kernels kernels_avx512vnni = {
    "avx512vnni",
    layer<Avx512Vnni, Adder<Avx512Vnni>, 8, 2>,
    layer<Avx512Vnni, Conv<Avx512Vnni>, 8, 2>,
    layer<Avx512Vnni, Binary<Avx512Vnni>, 8, 2>,
    "adder_u8_avx512vnni_8x16",
    "conv_u8_avx512vnni_8x16",
    "binary_avx512vnni_8x16",
    copy_binary<Signs32>,
    copy_conv<uint8_t>,
    1,
    max_pool,
    channel_sums,
    codes,
    {0, 1, 2, 3, 4, 5, 6, 7},
};

}  // namespace torchadder::engine
