// Reading a program: the rules of torchadder/quant/file.py, one by one, since a file may come from a stranger.
#include "program.h"

#include <cmath>
#include <cstring>

#include "json.h"
#include "safetensors.h"
#include "unsound.h"

namespace torchadder::engine {
namespace {

constexpr int64_t kLimit = int64_t{1} << 31, kMostSide = 1 << 14, kMostChannels = 1 << 16, kMostSteps = 1 << 12;
constexpr int64_t kMostCodes = 1 << 28;

class Reader {
 public:
  Reader(const Json &head, Safetensors &file) : head_(head), file_(file) {}

  Program program() {
    const int64_t version = head_.at("version").whole("its version", INT64_MIN, INT64_MAX);
    if (version != 1) unsound("its version is %lld, this torchadder reads 1", static_cast<long long>(version));
    for (const auto &[name, note] : head_.at("about").object("about"))
      program_.notes[name] = note.plain("what is kept beside it");
    const Json &input = head_.at("input");
    const auto &shape = input.at("shape").list("input shape");
    if (shape.size() != 3) unsound("the shape of its input has %zu sizes, expected 3", shape.size());
    program_.shape = {shape[0].whole("input size", 1, kMostSide), shape[1].whole("input size", 1, kMostSide),
                      shape[2].whole("input size", 1, kMostSide)};
    if (program_.shape.height * program_.shape.width > kMostCodes / program_.shape.channels)
      unsound("its images have more than %lld codes", static_cast<long long>(kMostCodes));
    program_.scale = tensor<float>("input.scale", "F32", program_.shape.channels);
    program_.zero = tensor<float>("input.zero", "F32", program_.shape.channels);
    for (std::size_t c = 0; c < program_.scale.size(); ++c)
      if (!(program_.scale[c] > 0 && std::isfinite(program_.scale[c]) && std::isfinite(program_.zero[c])))
        unsound("the scale of its input is no positive number");
    program_.highest = static_cast<int>(input.at("highest").whole("highest code", 1, 255));
    const auto &steps = head_.at("steps").list("steps");
    if (steps.empty() || steps.size() > kMostSteps)
      unsound("it has %zu steps, expected 1 to %d", steps.size(), static_cast<int>(kMostSteps));
    shapes_.push_back(program_.shape);
    for (number_ = 0; number_ < static_cast<int>(steps.size()); ++number_) {
      last_ = number_ + 1 == static_cast<int>(steps.size());
      program_.steps.push_back(step(steps[static_cast<std::size_t>(number_)]));
      shapes_.push_back(program_.steps.back().to);
    }
    if (!file_.tensors.empty()) unsound("tensor %.60s belongs to no step", file_.tensors.begin()->first.c_str());
    return std::move(program_);
  }

 private:
  static void check_codes(const Shape &shape, int number) {
    if (shape.height * shape.width > kMostCodes / shape.channels)
      unsound("step %d makes %lld codes an image, expected at most %lld", number, static_cast<long long>(shape.codes()),
              static_cast<long long>(kMostCodes));
  }

  Step step(const Json &about) {
    Step made{};
    const std::string &op = about.at("op").text("op");
    static constexpr const char *names[] = {"adder", "conv", "binary", "max_pool", "average_pool"};
    int index = 0;
    while (index < 5 && op != names[index]) ++index;
    if (index == 5) unsound("step %d is '%.40s', which is unknown", number_, op.c_str());
    made.op = static_cast<Op>(index);
    const auto &sources = about.at("sources").list("sources");
    if (sources.empty() || sources.size() > (made.is_layer() ? 2 : 1))
      unsound("step %d has %zu sources", number_, sources.size());
    made.source = static_cast<int>(sources[0].whole("source of a step", 0, number_));
    made.shortcut = sources.size() == 2 ? static_cast<int>(sources[1].whole("source of a step", 0, number_)) : -1;
    made.from = shapes_[static_cast<std::size_t>(made.source)];
    if (made.is_layer())
      layer(about, made);
    else if (last_)
      unsound("its last step gives no logits");
    else
      pool(about, made);
    check_codes(made.to, number_);
    return made;
  }

  void pool(const Json &about, Step &made) {
    if (made.op == Op::average_pool) {
      for (int i = 0; i < 2; ++i) {
        made.kernel[i] = side(about, "kernel", i, 1);
        made.stride[i] = side(about, "stride", i, 1);
      }
      made.to = output(made, made.from.channels);
      requantisation(about, made, 255 * made.taps());
      return;
    }
    for (int i = 0; i < 2; ++i) {
      made.kernel[i] = about.at("kernel").whole("kernel", 1, kMostSide);
      made.stride[i] = about.at("stride").whole("stride", 1, kMostSide);
      made.padding[i] = about.at("padding").whole("padding", 0, made.kernel[i] / 2);
    }
    made.to = output(made, made.from.channels);
  }

  void layer(const Json &about, Step &made) {
    const char *const type = made.op == Op::adder ? "U8" : "I8";
    const TensorView weight = take("weight");
    if (weight.dtype != type) unsound("%d.weight is %s, expected %s", number_, weight.dtype.c_str(), type);
    if (weight.shape.size() != 4 || weight.shape[1] != made.from.channels || weight.shape[0] < 1 ||
        weight.shape[0] > kMostChannels)
      unsound("step %d has a weight that does not fit %lld channels", number_,
              static_cast<long long>(made.from.channels));
    made.weight = weight.data;
    for (int i = 0; i < 2; ++i) {
      made.kernel[i] = weight.shape[static_cast<std::size_t>(2 + i)];
      made.stride[i] = side(about, "stride", i, 1);
      made.padding[i] = side(about, "padding", i, 0);
      if (made.kernel[i] < 1 || made.padding[i] >= made.kernel[i])
        unsound("step %d has a padding as wide as its kernel", number_);
    }
    made.to = output(made, weight.shape[0]);
    const int64_t largest = largest_sum(made, weight);
    if (largest >= kLimit) unsound("the sums of step %d need more than 32 bits", number_);
    made.zero = tensor<uint8_t>(name("zero"), "U8", made.from.channels);
    if (!last_) {
      if (made.shortcut >= 0) {
        const Shape &other = shapes_[static_cast<std::size_t>(made.shortcut)];
        if (other.channels != made.to.channels || other.height != made.to.height || other.width != made.to.width)
          unsound("step %d adds values of two shapes", number_);
      }
      requantisation(about, made, largest);
      return;
    }
    if (made.to.height != 1 || made.to.width != 1 || made.shortcut >= 0) unsound("its last step gives no logits");
    made.logits.gain = tensor<float>(name("gain"), "F32", made.to.channels);
    made.logits.bias = tensor<float>(name("bias"), "F32", made.to.channels);
  }

  // The largest magnitude of a layer's sums; a binary weight is checked on the way.
  int64_t largest_sum(const Step &made, const TensorView &weight) const {
    const int64_t filter = weight.bytes / made.to.channels;
    if (made.op == Op::adder) return filter * 255;
    int64_t largest = 0;
    for (int64_t o = 0; o < made.to.channels; ++o) {
      int64_t sum = 0;
      for (int64_t i = 0; i < filter; ++i) {
        const int w = static_cast<int8_t>(made.weight[o * filter + i]);
        if (made.op == Op::binary && w != 1 && w != -1)
          unsound("step %d has a binary weight that is neither 1 nor -1", number_);
        sum += w < 0 ? -w : w;
      }
      largest = std::max(largest, sum);
    }
    return made.op == Op::conv ? largest * 255 : largest;
  }

  void requantisation(const Json &about, Step &made, int64_t largest) {
    Requantisation &found = made.requantisation;
    const int64_t channels = made.to.channels;
    found.multiplier = tensor<int32_t>(name("multiplier"), "I32", channels);
    found.offset = tensor<int32_t>(name("offset"), "I32", channels);
    found.shift = tensor<int32_t>(name("shift"), "I32", channels);
    if (made.shortcut >= 0) found.factor = tensor<int32_t>(name("factor"), "I32", channels);
    found.highest = static_cast<int>(about.at("highest").whole("highest code", 1, 255));
    found.pre = static_cast<int>(about.at("pre").whole("pre", 0, 31));
    if (largest >= kLimit) unsound("step %d needs more than 32 bits", number_);
    for (std::size_t c = 0; c < found.shift.size(); ++c) {
      if (found.shift[c] < 0 || found.shift[c] > 31) unsound("a shift of step %d is not within 0 to 31", number_);
      int64_t total = magnitude(found.multiplier[c]) * ((largest >> found.pre) + 1);  // below 2^62
      total += magnitude(found.offset[c]);
      if (made.shortcut >= 0) total += magnitude(found.factor[c]) * 255;
      if (total >= kLimit) unsound("step %d needs more than 32 bits", number_);
    }
  }

  static int64_t magnitude(int32_t value) { return value < 0 ? -int64_t{value} : value; }

  Shape output(const Step &made, int64_t channels) const {
    int64_t size[2];
    const int64_t from[2] = {made.from.height, made.from.width};
    for (int i = 0; i < 2; ++i) {
      const int64_t room = from[i] + 2 * made.padding[i] - made.kernel[i];
      if (room < 0) unsound("step %d has a kernel beyond its input", number_);
      size[i] = room / made.stride[i] + 1;
    }
    return {channels, size[0], size[1]};
  }

  static int64_t side(const Json &about, const char *what, int axis, int64_t low) {
    const auto &sides = about.at(what).list(what);
    if (sides.size() != 2) unsound("a %s has %zu sizes, expected 2", what, sides.size());
    return sides[static_cast<std::size_t>(axis)].whole(what, low, kMostSide);
  }

  std::string name(const char *part) const { return std::to_string(number_) + "." + part; }

  TensorView take(const char *part) { return take(name(part)); }

  TensorView take(const std::string &name) {
    const auto found = file_.tensors.find(name);
    if (found == file_.tensors.end()) unsound("it lacks '%s'", name.c_str());
    TensorView tensor = std::move(found->second);
    file_.tensors.erase(found);
    return tensor;
  }

  template <class T>
  std::vector<T> tensor(const std::string &name, const char *dtype, int64_t length) {
    const TensorView found = take(name);
    if (found.dtype != dtype || found.shape.size() != 1 || found.shape[0] != length)
      unsound("%s is not %lld numbers of type %s", name.c_str(), static_cast<long long>(length), dtype);
    std::vector<T> values(static_cast<std::size_t>(length));
    std::memcpy(values.data(), found.data, static_cast<std::size_t>(found.bytes));
    return values;
  }

  const Json &head_;
  Safetensors &file_;
  Program program_;
  std::vector<Shape> shapes_;
  int number_ = 0;
  bool last_ = false;
};

}  // namespace

Program Program::read(std::string_view bytes) {
  Safetensors file = Safetensors::view(bytes, "tadder");
  const Json head = Json::parse(file.metadata);
  return Reader(head, file).program();
}

}  // namespace torchadder::engine
