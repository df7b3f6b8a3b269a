// The reference of the kernels: each operator as its formula reads, one number at a time, on any machine.
//
// It does not use the skeleton. The kernels of skeleton.h compute rearranged identities, such as 2 max(x, w) - x - w
// for |x - w|; tests compare them with this file, which therefore shares no code with them.
#include <algorithm>
#include <cmath>

#include "conv/dispatch.h"
#include "conv/functors.h"
#include "conv/tile.h"

namespace torchadder {
namespace {

constexpr int kReferenceLanes = 8;  // as in kernels.inc

float distance(float w, float x, float) { return -std::fabs(x - w); }
float hardtanh(float t) { return t > 1.0f ? 1.0f : t < -1.0f ? -1.0f : t; }
float sign(float t) { return t > 0.0f ? 1.0f : t < 0.0f ? -1.0f : t; }
float hardtanh_term(float w, float dy, float x) { return hardtanh(w - x) * dy; }
float sign_term(float w, float dy, float x) { return sign(w - x) * dy; }

// result[lane] = sum over runs of term(weight, source, state[lane]), forward + constant[lane].
template <float (*term)(float, float, float), bool kState, Source kSource>
void sum_of_terms(const Block &block, const Tile &tile) {
  for (int p = 0; p < tile.pixels; ++p)
    for (int lane = 0; lane < block.lanes; ++lane) {
      const float state = kState ? tile.state[p][block.channel + lane] : 0.0f;
      float sum = 0.0f;
      for (const Run *run = block.runs; run != block.runs + block.run_count; ++run)
        for (int64_t k = 0; k < run->length; ++k) {
          const int64_t channel = kSource == Source::own     ? lane
                                  : kSource == Source::group ? block.index[k * kReferenceLanes + lane]
                                                             : k;
          const float *source = tile.source[p] + run->source + block.source_channel + channel;
          sum += term(block.weight[(run->weight + k) * kReferenceLanes + lane], *source, state);
        }
      tile.result[p][block.channel + lane] = kState ? sum : block.constant[lane] + sum;
    }
}

// The operators of rounded calls. A run's length counts words: four bytes, or two 16-bit numbers.
template <class T>
constexpr int64_t kInWord = sizeof(float) / sizeof(T);

// The sum over runs of term(weight, source) for one lane.
template <class T, class Term>
int64_t sum_of_words(const Block &block, const float *pixel, int lane, Term &&term) {
  int64_t sum = 0;
  for (const Run *run = block.runs; run != block.runs + block.run_count; ++run)
    for (int64_t k = 0; k < run->length; ++k) {
      const float *at = pixel + run->source + block.source_channel + k;
      const T *source = reinterpret_cast<const T *>(at);
      const T *weight = reinterpret_cast<const T *>(block.weight + (run->weight + k) * kReferenceLanes + lane);
      for (int64_t i = 0; i < kInWord<T>; ++i) sum += term(weight[i], source[i]);
    }
  return sum;
}

void forward_bytes(const Block &block, const Tile &tile) {
  for (int p = 0; p < tile.pixels; ++p)
    for (int lane = 0; lane < block.lanes; ++lane) {
      int64_t w_sum = 0;  // which weight_sum has already
      const int64_t sum = sum_of_words<uint8_t>(block, tile.source[p], lane, [&](int w, int x) {
        w_sum += w;
        return w > x ? w - x : x - w;
      });
      const float rest = block.weight_sum[lane] - static_cast<float>(w_sum) + block.constant[lane];
      tile.result[p][block.channel + lane] = block.grid->unit * (rest - static_cast<float>(sum));
    }
}

void grad_input_pairs(const Block &block, const Tile &tile) {
  const Grid &grid = *block.grid;
  for (int p = 0; p < tile.pixels; ++p)
    for (int lane = 0; lane < block.lanes; ++lane) {
      const int x = static_cast<int>(std::rint(tile.state[p][block.channel + lane] * grid.levels)) + grid.zero_point;
      const int64_t sum = sum_of_words<int16_t>(block, tile.source[p], lane, [&](int w, int dy) {
        return int64_t{std::clamp(w - x, -grid.limit, grid.limit)} * dy;
      });
      tile.result[p][block.channel + lane] = grid.unit * static_cast<float>(sum) + block.constant[lane];
    }
}

Range range(const float *from, int64_t count) {
  Range result{0.0f, 0.0f};
  float nan = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    result.low = std::min(result.low, from[i]);
    result.high = std::max(result.high, from[i]);
    nan += from[i] * 0.0f;
  }
  return {result.low + nan, result.high + nan};
}

template <class T>
void round_to(const float *from, int64_t pixels, const Grid &grid, int64_t words, float *words_to) {
  T *to = reinterpret_cast<T *>(words_to);
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t i = 0; i < words * kInWord<T>; ++i) {
      const float x = i < grid.depth ? from[p * grid.depth + i] * grid.levels : 0.0f;
      const int q = static_cast<int>(std::rint(x)) + (sizeof(T) == 1 && i < grid.depth ? grid.zero_point : 0);
      to[p * words * kInWord<T> + i] = static_cast<T>(q);
    }
}

constexpr TileKernel reference(Op op) {
  switch (op) {
    case Op::forward_f32:
      return sum_of_terms<distance, false, Source::one>;
    case Op::grad_input_f32:
      return sum_of_terms<hardtanh_term, true, Source::one>;
    case Op::grad_input_sign_f32:
      return sum_of_terms<sign_term, true, Source::one>;
    case Op::grouped_f32:
      return sum_of_terms<distance, false, Source::group>;
    case Op::grouped_grad_f32:
      return sum_of_terms<hardtanh_term, true, Source::group>;
    case Op::grouped_sign_f32:
      return sum_of_terms<sign_term, true, Source::group>;
    case Op::depthwise_f32:
      return sum_of_terms<distance, false, Source::own>;
    case Op::depthwise_grad_f32:
      return sum_of_terms<hardtanh_term, true, Source::own>;
    case Op::depthwise_sign_f32:
      return sum_of_terms<sign_term, true, Source::own>;
    case Op::forward_u8:
      return forward_bytes;
    case Op::grad_input_i16:
      return grad_input_pairs;
  }
  return nullptr;
}

void transpose(const float *from, float *to, int64_t rows, int64_t columns, int64_t first, int64_t last) {
  for (int64_t c = first; c < last; ++c)
    for (int64_t r = 0; r < rows; ++r) to[c * rows + r] = from[r * columns + c];
}

void sign_gradient(const SignGradient &job) {
  for (int row = 0; row < job.rows; ++row)
    for (int lane = 0; lane < job.lanes; ++lane) {
      const float w = job.weight[row * kReferenceLanes + lane];
      float sum = 0.0f;
      const float *dy = job.dy + lane;
      for (int64_t n = 0; n < job.images; ++n)
        for (int64_t k = 0; k < job.size[0]; ++k)
          for (int64_t i = 0; i < job.size[1]; ++i) {
            const float *x = job.x + n * job.x_image + k * job.x_axis[0] + i * job.x_axis[1] + job.offsets[row];
            for (int64_t j = 0; j < job.size[2]; ++j, dy += job.dy_pixel) sum += sign(x[j * job.x_axis[2]] - w) * *dy;
          }
      job.result[row * kReferenceLanes + lane] = sum;
    }
}

}  // namespace

void pack_by_lane(const WeightView &view, const Packing &to, int lanes) {
  for (int lane = 0; lane < lanes; ++lane) {
    const float *origin = to.origin + view.lane_offset(lane);
    float total = 0.0f;
    for (int64_t tap = 0; tap < view.taps; ++tap) {
      float sum = 0.0f, abs_sum = 0.0f;
      for (int64_t k = 0; k < view.depth_size; ++k) {
        const float w = lane < to.lanes ? origin[view.tap_offset(tap) + k * view.depth] : 0.0f;
        to.weight[(tap * view.depth_size + k) * lanes + lane] = w;
        sum += w;
        abs_sum += std::fabs(w);
      }
      total += sum;
      if (to.tap_sum) {
        to.tap_sum[tap * lanes + lane] = sum;
        to.tap_abs_sum[tap * lanes + lane] = abs_sum;
      }
    }
    to.constant[lane] = unless_finite(total);
  }
}

void pack_along_depth(const WeightView &view, const Packing &to, int lanes) {
  float *packed = to.weight;
  for (int lane = 0; lane < lanes; ++lane) {
    const float *origin = to.origin + view.lane_offset(lane);
    float total = 0.0f;
    for (int64_t tap = 0; tap < view.taps; ++tap)
      for (int64_t k = 0; k < view.depth_size; ++k, ++packed) {
        *packed = lane < to.lanes ? origin[view.tap_offset(tap) + k * view.depth] : 0.0f;
        total += *packed;
      }
    to.constant[lane] = unless_finite(total);
  }
}

extern const TileKernel conv_kernels_reference[] = {
#define CONV_KERNEL(op, isa, ...) Isa::isa == Isa::reference ? reference(Op::op) : nullptr,
#include "kernels.inc"
};

extern const AuxiliaryKernels conv_auxiliary_reference = {
    pack_by_lane,    nullptr, nullptr,           nullptr,           false, false, transpose, sign_gradient,
    kReferenceLanes, range,   round_to<uint8_t>, round_to<int16_t>, false};

}  // namespace torchadder
