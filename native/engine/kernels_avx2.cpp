#include "engine/adder_by_max.h"
#include "engine/layer_kernel.h"
#include "engine/moves.h"

namespace torchadder::engine {
namespace {

constexpr Kernels with(const char *name, LayerKernel adder, const char *adder_name) {
  return {
      name,
      adder,
      layer<Avx2, Conv<Avx2>, 4, 1>,
      layer<Avx2, Binary<Avx2>, 4, 1>,
      adder_name,
      "conv_u8_avx2_4x8",
      "binary_avx2_4x8",
      moves<Signs32, int16_t>(),
      Avx2::order,
  };
}

}  // namespace

extern const Kernels kernels_avx2 = with("avx2", layer<Avx2, Adder<Avx2>, 5, 1>, "adder_u8_avx2_5x8");
extern const Kernels kernels_avx2max = with("avx2max", AdderByMax::run, "adder_u8_avx2max_5x8");

}  // namespace torchadder::engine
