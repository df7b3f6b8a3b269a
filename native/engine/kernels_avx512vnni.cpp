#include "engine/kernels_avx512.h"

namespace torchadder::engine {

extern const Kernels kernels_avx512vnni = kernels_of<Avx512Vnni, uint8_t>(
    "avx512vnni", "adder_u8_avx512vnni_8x16", "conv_u8_avx512vnni_8x16", "binary_avx512vnni_8x16");

}  // namespace torchadder::engine
