#include "engine/kernels_avx512.h"

namespace torchadder::engine {

extern const Kernels kernels_avx512 =
    kernels_of<Avx512, int16_t>("avx512", "adder_u8_avx512_8x16", "conv_u8_avx512_8x16", "binary_avx512_8x16");

}  // namespace torchadder::engine
