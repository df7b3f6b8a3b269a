// Compares the kernels of every instruction set that this CPU runs with plain loops in double (float kernels) and with
// the reference kernels (engine). It needs nothing but the library, so it also runs where there is no Python:
//
//     compare_kernels FILE.tadder...
//
// It prints a line for each kernel that ran, and returns 1 if a result differs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "torchadder_engine.h"

namespace {

using Floats = std::vector<float>;
using Random = std::mt19937;
int failures = 0;

void fail(const std::string &where, const std::string &what) {
  if (++failures <= 20) std::printf("FAILED %s: %s\n", where.c_str(), what.c_str());
}

// The float kernels

struct Geometry {
  int64_t images, c_in, c_out, groups, height, width, kernel_height, kernel_width, stride, padding, dilation;
};
// Sizes around every tile: channels 1 to 33, prime image sizes, groups of few and of many channels, depthwise.
constexpr Geometry kGeometries[] = {
    {2, 3, 5, 1, 9, 7, 3, 3, 1, 1, 1},   {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1},    {1, 16, 16, 1, 5, 5, 3, 3, 1, 1, 1},
    {3, 17, 33, 1, 7, 3, 1, 1, 1, 0, 1}, {1, 5, 4, 1, 11, 13, 5, 3, 2, 2, 1},  {2, 8, 8, 1, 8, 9, 3, 3, 2, 1, 1},
    {1, 7, 31, 1, 6, 5, 2, 3, 1, 0, 2},  {1, 6, 9, 3, 7, 5, 3, 3, 1, 1, 1},    {1, 12, 12, 3, 5, 5, 3, 3, 2, 1, 1},
    {1, 40, 20, 2, 4, 5, 3, 3, 1, 1, 1}, {2, 13, 13, 13, 9, 7, 3, 3, 1, 1, 1}, {1, 16, 16, 16, 7, 8, 3, 3, 2, 1, 1},
    {1, 32, 32, 8, 5, 7, 3, 3, 1, 1, 2}, {1, 120, 24, 1, 1, 1, 1, 1, 1, 0, 1}, {2, 9, 15, 1, 1, 19, 1, 5, 1, 0, 1},
};

// Calls visit(n, o, y, x, c, index of x or -1 in the padding, index of w) for every term of a convolution.
template <class Visit>
void each_term(const torchadder_convolution &s, Visit &&visit) {
  const int64_t in = s.c_in / s.groups, out = s.c_out / s.groups;
  for (int64_t n = 0; n < s.images; ++n)
    for (int64_t y = 0; y < s.size_out[1]; ++y)
      for (int64_t x = 0; x < s.size_out[2]; ++x)
        for (int64_t o = 0; o < s.c_out; ++o)
          for (int64_t a = 0; a < s.kernel[1]; ++a)
            for (int64_t b = 0; b < s.kernel[2]; ++b)
              for (int64_t c = 0; c < in; ++c) {
                const int64_t i = y * s.stride[1] + a * s.dilation[1] - s.padding[1];
                const int64_t j = x * s.stride[2] + b * s.dilation[2] - s.padding[2];
                const bool inside = i >= 0 && i < s.size_in[1] && j >= 0 && j < s.size_in[2];
                const int64_t source =
                    inside ? ((n * s.size_in[1] + i) * s.size_in[2] + j) * s.c_in + o / out * in + c : -1;
                const int64_t weight = s.weight_channels_last ? ((o * s.kernel[1] + a) * s.kernel[2] + b) * in + c
                                                              : ((o * in + c) * s.kernel[1] + a) * s.kernel[2] + b;
                visit(((n * s.size_out[1] + y) * s.size_out[2] + x) * s.c_out + o, o, source, weight);
              }
}

// A result in double, and the magnitude of all that was added up in it: the bound of a rounding error is a multiple.
struct Exact {
  std::vector<double> value, magnitude;
  explicit Exact(std::size_t size) : value(size), magnitude(size) {}
  void add(int64_t at, double term, double magnitude_of_term) {
    value[static_cast<std::size_t>(at)] += term;
    magnitude[static_cast<std::size_t>(at)] += magnitude_of_term;
  }
  void compare(const std::string &where, const Floats &got) const {
    for (std::size_t i = 0; i < got.size(); ++i) {
      const bool same =
          std::isnan(value[i]) ? std::isnan(got[i]) : std::fabs(got[i] - value[i]) <= 1e-6 * (magnitude[i] + 1);
      if (same) continue;
      return fail(where, "number " + std::to_string(i) + " is " + std::to_string(got[i]) + ", expected " +
                             std::to_string(value[i]));
    }
  }
};

double sign(double t) { return t > 0 ? 1 : t < 0 ? -1 : t; }
double hardtanh(double t) { return t > 1 ? 1 : t < -1 ? -1 : t; }

Floats random_floats(std::size_t size, Random &random) {
  std::normal_distribution<float> normal;
  Floats values(size);
  for (float &value : values) value = normal(random);
  return values;
}

void check(const std::string &where, int status) {
  if (status) fail(where, torchadder_last_error());
}

// Compares the integer kernels with the same sums of rounded numbers. Such a sum is exact in double.
void compare_rounded(const std::string &where, const torchadder_convolution &s, const Floats &x, const Floats &w,
                     const Floats &dy, const Floats &bias, int threads) {
  float low = 0, high = 0, largest = 0;
  bool is_nan = false;
  for (const float value : x) {
    low = std::fmin(low, value), high = std::fmax(high, value);
    is_nan = is_nan || std::isnan(value);
  }
  for (const float value : dy) largest = std::fmax(largest, std::fabs(value));
  const float levels = std::floor(254.0f / (high - low)), dx_levels = std::floor(254.0f / (high - low + 2.0f));
  const int64_t taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
  const int64_t terms = s.c_out * taps * static_cast<int64_t>(dx_levels);
  const float steps = static_cast<float>(std::min<int64_t>(2147483647 / terms, 32639)) / largest;
  const auto rounded = [&](const Floats &values, int64_t i, float by) {
    return i < 0 ? 0.0 : static_cast<double>(std::rint(values[static_cast<std::size_t>(i)] * by)) / by;
  };
  Exact y(dy.size()), dx(x.size());
  for (std::size_t i = 0; i < dy.size(); ++i) {
    const double b = bias[i % static_cast<std::size_t>(s.c_out)];
    y.add(static_cast<int64_t>(i), is_nan ? NAN : b, std::fabs(b));
  }
  for (std::size_t i = 0; i < x.size() && is_nan; ++i) dx.add(static_cast<int64_t>(i), NAN, 0);
  each_term(s, [&](int64_t result, int64_t, int64_t source, int64_t weight) {
    const double a = rounded(x, source, levels), b = rounded(w, weight, levels), d = rounded(dy, result, steps);
    const double difference = rounded(w, weight, dx_levels) - rounded(x, source, dx_levels);
    y.add(result, -std::fabs(a - b), std::fabs(a) + std::fabs(b));
    if (source >= 0) dx.add(source, hardtanh(difference) * d, std::fabs(d));
  });
  Floats got(dy.size());
  check(where, torchadder_forward_u8(&s, x.data(), w.data(), bias.data(), got.data(), 0, threads));
  y.compare(where + ", forward_u8", got);
  got.assign(x.size(), 0);
  check(where, torchadder_grad_input_i16(&s, dy.data(), x.data(), w.data(), got.data(), threads));
  dx.compare(where + ", grad_input_i16", got);
}

void compare_convolution(const std::string &isa, const Geometry &g, bool channels_last, bool with_nan, int threads) {
  torchadder_convolution s{};
  s.images = g.images, s.c_in = g.c_in, s.c_out = g.c_out, s.groups = g.groups;
  const int64_t size[3] = {1, g.height, g.width}, kernel[3] = {1, g.kernel_height, g.kernel_width};
  for (int i = 0; i < 3; ++i) {
    s.size_in[i] = size[i], s.kernel[i] = kernel[i];
    s.stride[i] = i ? g.stride : 1, s.dilation[i] = i ? g.dilation : 1, s.padding[i] = i ? g.padding : 0;
    if (kernel[i] == 1) s.padding[i] = 0;
    s.size_out[i] = (size[i] + 2 * s.padding[i] - s.dilation[i] * (kernel[i] - 1) - 1) / s.stride[i] + 1;
  }
  s.weight_channels_last = channels_last;
  const auto count = [](int64_t n, const int64_t *axes, int64_t channels) {
    return static_cast<std::size_t>(n * axes[0] * axes[1] * axes[2] * channels);
  };
  Random random(static_cast<unsigned>(g.c_in * 1000 + g.c_out));
  Floats x = random_floats(count(s.images, s.size_in, s.c_in), random);
  Floats w = random_floats(count(s.c_out, s.kernel, s.c_in / s.groups), random);
  const Floats dy = random_floats(count(s.images, s.size_out, s.c_out), random);
  const Floats bias = random_floats(static_cast<std::size_t>(s.c_out), random);
  for (std::size_t i = 0; i < w.size(); i += 7) w[i] = x[i % x.size()];  // sign(0) is 0
  if (with_nan) x[x.size() / 2] = std::numeric_limits<float>::quiet_NaN();
  const auto at = [](const Floats &values, int64_t i) {
    return i < 0 ? 0.0 : static_cast<double>(values[static_cast<std::size_t>(i)]);
  };
  const std::string where = isa + ", " + std::to_string(g.c_in) + " to " + std::to_string(g.c_out) + " channels of " +
                            std::to_string(g.height) + " x " + std::to_string(g.width);

  Exact y(dy.size()), dx(x.size()), dx_sign(x.size()), dw(w.size());
  for (std::size_t i = 0; i < dy.size(); ++i) {
    const double b = at(bias, static_cast<int64_t>(i) % s.c_out);
    y.add(static_cast<int64_t>(i), b, std::fabs(b));
  }
  each_term(s, [&](int64_t result, int64_t, int64_t source, int64_t weight) {
    const double a = at(x, source), b = at(w, weight), d = at(dy, result);
    y.add(result, -std::fabs(a - b), std::fabs(a) + std::fabs(b));
    dw.add(weight, sign(a - b) * d, std::fabs(d));
    if (source < 0) return;
    dx.add(source, hardtanh(b - a) * d, (std::fabs(a) + std::fabs(b) + 1) * std::fabs(d));
    dx_sign.add(source, sign(b - a) * d, std::fabs(d));
  });
  Floats got(dy.size());
  check(where, torchadder_forward_f32(&s, x.data(), w.data(), bias.data(), got.data(), 0, threads));
  y.compare(where + ", forward", got);
  got.assign(x.size(), 0);
  check(where, torchadder_grad_input_f32(&s, dy.data(), x.data(), w.data(), got.data(), 0, threads));
  dx.compare(where + ", grad_input", got);
  check(where, torchadder_grad_input_f32(&s, dy.data(), x.data(), w.data(), got.data(), 1, threads));
  dx_sign.compare(where + ", grad_input_sign", got);
  got.assign(w.size(), 0);
  check(where, torchadder_grad_weight_sign_f32(&s, dy.data(), x.data(), w.data(), got.data(), threads));
  dw.compare(where + ", grad_weight_sign", got);
  if (s.groups == 1) compare_rounded(where, s, x, w, dy, bias, threads);
}

void compare_float_kernels(const std::string &isa) {
  if (torchadder_select_isa(isa.c_str())) return;  // this CPU has no such variant
  for (int i = 0; i < torchadder_kernel_count(); ++i)
    if (torchadder_kernel_in_use(i)) std::printf("%s\n", torchadder_kernel_name(i));
  for (const Geometry &geometry : kGeometries)
    for (const bool channels_last : {false, true})
      for (const bool with_nan : {false, true})
        compare_convolution(isa, geometry, channels_last, with_nan, channels_last ? 3 : 1);
}

// The engine

struct Free {
  void operator()(torchadder_engine *engine) const { torchadder_engine_free(engine); }
};
using Engine = std::unique_ptr<torchadder_engine, Free>;

void compare_engine(const std::string &file, const std::vector<char> &bytes, const char *isa) {
  const auto open = [&](const char *name, int threads) {
    return Engine(torchadder_engine_read(bytes.data(), bytes.size(), threads, name, 1));
  };
  const Engine reference = open("reference", 1);
  if (!reference) return fail(file, torchadder_last_error());
  for (const int threads : {1, 3}) {
    const Engine engine = open(isa, threads);
    if (!engine) return;  // this CPU cannot run it
    const auto about = torchadder_engine_describe(engine.get());
    if (threads == 1)
      for (int step = 0; step < about.steps; ++step) std::printf("%s\n", torchadder_engine_kernel(engine.get(), step));
    Random random(1);
    Floats image(static_cast<std::size_t>(about.channels * about.height * about.width));
    std::normal_distribution<float> normal;
    for (int repetition = 0; repetition < 4; ++repetition) {
      for (float &pixel : image) pixel = repetition < 2 ? normal(random) : repetition == 2 ? 1e9f : -1e9f;
      Floats want(static_cast<std::size_t>(about.classes)), got(want.size());
      check(file, torchadder_engine_run_f32(reference.get(), image.data(), 1, want.data(), nullptr));
      check(file, torchadder_engine_run_f32(engine.get(), image.data(), 1, got.data(), nullptr));
      for (int index = 0; index < about.steps; ++index) {
        int64_t shape[3];
        torchadder_engine_value(engine.get(), index, shape, nullptr);
        std::vector<uint8_t> q[2];
        for (auto &values : q) values.resize(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]));
        torchadder_engine_value(reference.get(), index, shape, q[0].data());
        torchadder_engine_value(engine.get(), index, shape, q[1].data());
        if (q[0] != q[1]) return fail(file, std::string(isa) + ": value " + std::to_string(index) + " differs");
      }
      if (std::memcmp(want.data(), got.data(), want.size() * sizeof(float)))
        fail(file, std::string(isa) + ": the logits differ");
    }
  }
}

}  // namespace

int main(int count, char **words) {
  for (int i = 0; i < torchadder_isa_count(); ++i) {
    const std::string name = torchadder_isa_name(i);
    if (!torchadder_isa_runs_here(i)) continue;
    compare_float_kernels(name);
    if (name.rfind("avx", 0) == 0)
      for (const char *sum : {":fma", ":add"}) compare_float_kernels(name + sum);
  }
  torchadder_select_isa("");
  for (int i = 1; i < count; ++i) {
    std::ifstream file(words[i], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    for (const char *isa : {"avx2", "avx2max", "avx512", "avx512vnni", "neon", "neondot"})
      compare_engine(words[i], bytes, isa);
  }
  std::printf("%d failures\n", failures);
  return failures > 0;
}
