// The reader of .tadder files. A file may come from a stranger: no program that is accepted reaches outside its tensors
// or needs more than 32 bits. In the file zero_point is called "zero", qmax "highest", pre_shift "pre" and the scale of
// the logits "gain".
#include "engine/program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "common/error.h"
#include "engine/json.h"
#include "engine/safetensors.h"

namespace torchadder::engine {
namespace {

constexpr int64_t kVersion = 3;               // the newest; 1 has fewer kinds of steps, 2 no packed weights
constexpr int64_t kPacked = 3;                // the first with packed weights
constexpr int64_t kLimit = int64_t{1} << 31;  // of a 32-bit number
constexpr int64_t kMaxSide = 1 << 14, kMaxChannels = 1 << 16, kMaxSteps = 1 << 12;
constexpr int64_t kMaxSize = 1 << 28;  // quantized values of one image or of one output
constexpr const char *kOps[] = {"adder", "conv", "binary", "max_pool", "average_pool", "table", "concat"};

long long printed(int64_t value) { return value; }

int64_t magnitude(int32_t value) { return value < 0 ? -int64_t{value} : value; }

class Reader {
 public:
  Reader(const Json &head, Safetensors &file) : head_(head), file_(file) {}

  Program program() {
    version_ = head_.at("version").whole("its version", INT64_MIN, INT64_MAX);
    if (version_ < 1 || version_ > kVersion)
      reject("its version is %lld, this torchadder reads 1 to %lld", printed(version_), printed(kVersion));
    for (const auto &[name, note] : head_.at("about").object("'about'"))
      program_.notes[name] = note.text_or_number("a value of 'about'");
    read_input(head_.at("input"));
    const auto &steps = head_.at("steps").list("'steps'");
    if (steps.empty() || steps.size() > kMaxSteps)
      reject("it has %zu steps, expected 1 to %lld", steps.size(), printed(kMaxSteps));
    shapes_.push_back(program_.shape);
    for (number_ = 0; number_ < static_cast<int>(steps.size()); ++number_) {
      is_last_ = number_ + 1 == static_cast<int>(steps.size());
      try {
        program_.steps.push_back(read_step(steps[static_cast<std::size_t>(number_)]));
      } catch (const FileError &error) {
        reject("step %d: %s", number_, error.what());
      }
      shapes_.push_back(program_.steps.back().to);
    }
    check_padding();
    if (!file_.tensors.empty()) reject("tensor '%.60s' belongs to no step", file_.tensors.begin()->first.c_str());
    return std::move(program_);
  }

 private:
  void read_input(const Json &input) {
    const auto &sides = input.at("shape").list("input shape");
    if (sides.size() != 3) reject("input shape has %zu sizes, expected 3", sides.size());
    Shape &shape = program_.shape;
    shape = {sides[0].whole("input size", 1, kMaxSide), sides[1].whole("input size", 1, kMaxSide),
             sides[2].whole("input size", 1, kMaxSide)};
    check_size("its images have", shape);
    program_.scale = tensor<float>("input.scale", "F32", shape.channels);
    program_.zero_point = tensor<float>("input.zero", "F32", shape.channels);
    for (std::size_t c = 0; c < program_.scale.size(); ++c) {
      const double scale = program_.scale[c], zero_point = program_.zero_point[c];
      if (!(scale > 0 && std::isfinite(scale)))
        reject("input.scale of channel %zu is %g, expected a positive number", c, scale);
      if (!std::isfinite(zero_point))
        reject("input.zero of channel %zu is %g, expected a finite number", c, zero_point);
    }
    program_.qmax = static_cast<int>(input.at("highest").whole("input highest", 1, 255));
  }

  Step read_step(const Json &fields) {
    Step step{};
    step.dilation[0] = step.dilation[1] = step.groups = 1;
    const std::string &op = fields.at("op").text("op");
    const auto found = std::find(std::begin(kOps), std::end(kOps), op);
    if (found == std::end(kOps)) reject("op '%.40s' is unknown", op.c_str());
    step.op = static_cast<Op>(found - std::begin(kOps));
    const auto &sources = fields.at("sources").list("sources");
    const std::size_t most = step.op == Op::concat ? kMaxChannels : step.is_layer() ? 2 : 1;
    if (sources.empty() || sources.size() > most)
      reject("it has %zu sources, expected 1%s", sources.size(), most > 2 ? " to 65536" : most == 2 ? " or 2" : "");
    step.source = static_cast<int>(sources[0].whole("source", 0, number_));
    step.shortcut = -1;
    for (std::size_t i = 1; i < sources.size(); ++i) {
      const int value = static_cast<int>(sources[i].whole("source", 0, number_));
      step.is_layer() ? step.shortcut = value : (step.others.push_back(value), value);
    }
    step.from = shapes_[static_cast<std::size_t>(step.source)];
    if (step.is_layer())
      read_layer(fields, step);
    else if (is_last_)
      reject("the last step is %s, which gives no logits: expected a layer", op.c_str());
    else
      read_other(fields, step);
    check_size("its output has", step.to);
    return step;
  }

  void read_other(const Json &fields, Step &step) {
    if (step.op == Op::table)
      read_table(step);
    else if (step.op == Op::concat)
      read_concat(fields, step);
    else
      read_pool(fields, step);
  }

  void read_table(Step &step) {
    const TensorView table = take(name("table"));
    if (table.dtype != "U8") reject("table is %s, expected U8", table.dtype.c_str());
    const bool is_by_channel = table.shape.size() == 2 && table.shape[0] == step.from.channels;
    if (table.shape.size() != 2 || !(is_by_channel || table.shape[0] == 1) || table.shape[1] != 256)
      reject("table has %zu dimensions and %lld bytes, expected 2 and 256, or 256 a channel", table.shape.size(),
             printed(table.bytes));
    step.table.assign(table.data, table.data + table.bytes);
    step.to = step.from;
  }

  void read_concat(const Json &fields, Step &step) {
    step.to = step.from;
    for (const int value : step.others) {
      const Shape &other = shapes_[static_cast<std::size_t>(value)];
      if (other.height != step.to.height || other.width != step.to.width)
        reject("it concatenates images of %lld x %lld and %lld x %lld", printed(step.to.height), printed(step.to.width),
               printed(other.height), printed(other.width));
      step.to.channels += other.channels;
    }
    if (step.to.channels > kMaxChannels)
      reject("it has %lld channels, expected at most %lld", printed(step.to.channels), printed(kMaxChannels));
    read_requantization(fields, step, 255);
  }

  void read_pool(const Json &fields, Step &step) {
    read_axes(fields, "kernel", 1, step.kernel);
    read_axes(fields, "stride", 1, step.stride);
    if (fields.find("padding")) read_axes(fields, "padding", 0, step.padding);
    step.to = output_shape(step, step.from.channels);
    if (step.op == Op::max_pool) return;
    step.mean_unit = unit_of(step, 0, step.to.height) * unit_of(step, 1, step.to.width);
    read_requantization(fields, step, 255 * step.mean_unit);
  }

  // Returns a number that all counts of pixels in a window along an axis divide.
  static int64_t unit_of(const Step &step, int axis, int64_t size) {
    int64_t unit = 1;
    for (int64_t at = 0; at < size; ++at) {
      const auto [first, last] = step.window(axis, at);
      if (first >= last) reject("window %lld has no pixel of its source", printed(at));
      unit = std::lcm(unit, last - first);
      if (unit >= kLimit / 255)
        reject("an accumulator may reach %lld, which needs more than 32 bits", printed(unit * 255));
    }
    return unit;
  }

  void read_layer(const Json &fields, Step &step) {
    const TensorView weight =
        version_ >= kPacked && fields.find("filters") ? unpack_weight(fields, step) : take_weight(step);
    if (const Json *groups = fields.find("groups")) step.groups = groups->whole("groups", 1, kMaxChannels);
    if (step.from.channels % step.groups || weight.shape[1] != step.from.channels / step.groups)
      reject("weight takes %lld channels in %lld groups, its source has %lld", printed(weight.shape[1]),
             printed(step.groups), printed(step.from.channels));
    if (weight.shape[0] % step.groups)
      reject("weight has %lld filters, which are not %lld groups", printed(weight.shape[0]), printed(step.groups));
    if (weight.shape[0] < 1 || weight.shape[0] > kMaxChannels)
      reject("weight has %lld filters, expected 1 to %lld", printed(weight.shape[0]), printed(kMaxChannels));
    step.weight = weight.data;
    read_axes(fields, "stride", 1, step.stride);
    read_axes(fields, "padding", 0, step.padding);
    if (fields.find("dilation")) read_axes(fields, "dilation", 1, step.dilation);
    for (int i = 0; i < 2; ++i) {
      step.kernel[i] = weight.shape[static_cast<std::size_t>(2 + i)];
      if (step.kernel[i] < 1) reject("weight has a kernel of size %lld", printed(step.kernel[i]));
    }
    check_size("its padded source has", {step.from.channels, step.from.height + step.padding[0] + step.padding[2],
                                         step.from.width + step.padding[1] + step.padding[3]});
    step.to = output_shape(step, weight.shape[0]);
    const int64_t largest = largest_accumulator(step, weight);
    if (largest >= kLimit) reject("an accumulator may reach %lld, which needs more than 32 bits", printed(largest));
    step.zero_point = tensor<uint8_t>(name("zero"), "U8", step.from.channels);
    if (is_last_) {
      if (step.to.height != 1 || step.to.width != 1)
        reject("the last step gives %lld x %lld outputs a class, expected 1 x 1", printed(step.to.height),
               printed(step.to.width));
      if (step.shortcut >= 0) reject("the last step has a shortcut, expected none");
      step.logits.scale = tensor<float>(name("gain"), "F32", step.to.channels);
      step.logits.bias = tensor<float>(name("bias"), "F32", step.to.channels);
      return;
    }
    if (step.shortcut >= 0) {
      const Shape &other = shapes_[static_cast<std::size_t>(step.shortcut)];
      if (other.channels != step.to.channels || other.height != step.to.height || other.width != step.to.width)
        reject("it adds value %d (%lld, %lld, %lld) to its output (%lld, %lld, %lld)", step.shortcut,
               printed(other.channels), printed(other.height), printed(other.width), printed(step.to.channels),
               printed(step.to.height), printed(step.to.width));
    }
    read_requantization(fields, step, largest);
  }

  TensorView take_weight(const Step &step) {
    const char *const dtype = step.op == Op::adder ? "U8" : "I8";
    TensorView weight = take(name("weight"));
    if (weight.dtype != dtype) reject("weight is %s, expected %s", weight.dtype.c_str(), dtype);
    if (weight.shape.size() != 4) reject("weight has %zu dimensions, expected 4", weight.shape.size());
    return weight;
  }

  // Unpacks weights of 4 bits, two in a byte, the lower half first; those of an adder layer have no sign.
  TensorView unpack_weight(const Json &fields, const Step &step) {
    const TensorView packed = take(name("packed"));
    if (packed.dtype != "U8" || packed.shape.size() != 1)
      reject("packed is %s with %zu dimensions, expected U8 with 1", packed.dtype.c_str(), packed.shape.size());
    TensorView weight{};
    weight.bytes = 1;
    const auto &sides = fields.at("filters").list("filters");
    if (sides.size() != 4) reject("filters has %zu sizes, expected 4", sides.size());
    for (const Json &side : sides) {
      weight.shape.push_back(side.whole("a size of filters", 1, kMaxChannels));
      weight.bytes *= weight.shape.back();
      if (weight.bytes > 2 * packed.bytes) break;  // before it overflows
    }
    if ((weight.bytes + 1) / 2 != packed.bytes)
      reject("packed has %lld bytes, which are too %s for filters", printed(packed.bytes),
             weight.bytes > 2 * packed.bytes ? "few" : "many");
    if (weight.bytes % 2 && packed.data[packed.bytes - 1] >> 4) reject("packed ends with half a byte that is not 0");
    std::vector<uint8_t> &values = program_.unpacked.emplace_back(static_cast<std::size_t>(weight.bytes));
    const int sign = step.op == Op::adder ? 0 : 8;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const int half = packed.data[i / 2] >> (i % 2 * 4) & 15;
      values[i] = static_cast<uint8_t>((half ^ sign) - sign);
    }
    weight.data = values.data();
    return weight;
  }

  // Returns the largest magnitude of a layer's accumulators, and checks the weights of ordinary and binary layers.
  int64_t largest_accumulator(const Step &step, const TensorView &weight) const {
    const int64_t filter = weight.bytes / step.to.channels;
    if (step.op == Op::adder) return filter * 255;
    int64_t largest = 0;
    for (int64_t o = 0; o < step.to.channels; ++o) {
      int64_t sum = 0;
      for (int64_t i = 0; i < filter; ++i) {
        const int w = static_cast<int8_t>(step.weight[o * filter + i]);
        if (step.op == Op::binary && w != 1 && w != -1) reject("a binary weight is %d, expected 1 or -1", w);
        if (w == -128) reject("a weight is -128, expected -127 to 127");
        sum += w < 0 ? -w : w;
      }
      largest = std::max(largest, sum);
    }
    return step.op == Op::conv ? largest * 255 : largest;
  }

  // `largest`: the largest magnitude of an accumulator.
  void read_requantization(const Json &fields, Step &step, int64_t largest) {
    Requantization &r = step.requantization;
    const int64_t channels = step.to.channels;
    r.multiplier = tensor<int32_t>(name("multiplier"), "I32", channels);
    r.offset = tensor<int32_t>(name("offset"), "I32", channels);
    r.shift = tensor<int32_t>(name("shift"), "I32", channels);
    if (step.shortcut >= 0) r.factor = tensor<int32_t>(name("factor"), "I32", channels);
    r.qmax = static_cast<int>(fields.at("highest").whole("highest", 1, 255));
    r.pre_shift = static_cast<int>(fields.at("pre").whole("pre", 0, 31));
    if (largest >= kLimit) reject("an accumulator may reach %lld, which needs more than 32 bits", printed(largest));
    for (std::size_t c = 0; c < r.shift.size(); ++c) {
      if (r.shift[c] < 0 || r.shift[c] > 31) reject("shift of channel %zu is %d, expected 0 to 31", c, r.shift[c]);
      int64_t total = magnitude(r.multiplier[c]) * ((largest >> r.pre_shift) + 1);  // below 2^62
      total += magnitude(r.offset[c]);
      if (step.shortcut >= 0) total += magnitude(r.factor[c]) * 255;
      if (total >= kLimit)
        reject("requantizing channel %zu may reach %lld, which needs more than 32 bits", c, printed(total));
    }
  }

  // The buffer of a value holds its padding too, so that the layers that read it there must agree on the zero point.
  void check_padding() const {
    std::vector<const std::vector<uint8_t> *> zero_points(program_.steps.size(), nullptr);
    for (std::size_t i = 0; i < program_.steps.size(); ++i) {
      const Step &step = program_.steps[i];
      if (!step.reads_source() || !step.pads()) continue;
      const std::vector<uint8_t> *&known = zero_points[static_cast<std::size_t>(step.source)];
      if (known && *known != step.zero_point)
        reject("step %zu: it pads value %d with another zero point than a step before it", i, step.source);
      known = &step.zero_point;
    }
  }

  static void check_size(const char *what, const Shape &shape) {
    if (shape.height * shape.width > kMaxSize / shape.channels)
      reject("%s %lld quantized values, expected at most %lld", what, printed(shape.size()), printed(kMaxSize));
  }

  static Shape output_shape(const Step &step, int64_t channels) {
    const int64_t from[2] = {step.from.height, step.from.width};
    int64_t size[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t padded = from[i] + step.padding[i] + step.padding[2 + i], room = padded - step.window(i);
      if (room < 0)
        reject("kernel %lld is larger than the padded source, %lld", printed(step.window(i)), printed(padded));
      size[i] = room / step.stride[i] + 1;
    }
    return {channels, size[0], size[1]};
  }

  // Reads a number for each axis or, of padding, for each side. Version 1 has two for both sides of each axis, and one
  // for both axes of a max_pool.
  template <std::size_t kCount>
  static void read_axes(const Json &fields, const char *name, int64_t low, int64_t (&axes)[kCount]) {
    const Json &field = fields.at(name);
    if (field.kind() == Json::Kind::whole) {
      std::fill(axes, axes + kCount, field.whole(name, low, kMaxSide));
      return;
    }
    const auto &found = field.list(name);
    if (found.size() != kCount && found.size() != 2)
      reject("%s has %zu numbers, expected %zu", name, found.size(), kCount);
    for (std::size_t i = 0; i < kCount; ++i) axes[i] = found[i % found.size()].whole(name, low, kMaxSide);
  }

  // The name of a tensor of this step.
  std::string name(const char *part) const { return std::to_string(number_) + "." + part; }

  TensorView take(const std::string &name) {
    const auto found = file_.tensors.find(name);
    if (found == file_.tensors.end()) reject("it lacks the tensor '%s'", name.c_str());
    TensorView tensor = std::move(found->second);
    file_.tensors.erase(found);
    return tensor;
  }

  // Takes a tensor of one dimension.
  template <class T>
  std::vector<T> tensor(const std::string &name, const char *dtype, int64_t length) {
    const TensorView found = take(name);
    if (found.dtype != dtype) reject("%s is %s, expected %s", name.c_str(), found.dtype.c_str(), dtype);
    if (found.shape.size() != 1 || found.shape[0] != length)
      reject("%s has %zu dimensions and %lld bytes, expected 1 and %lld", name.c_str(), found.shape.size(),
             printed(found.bytes), printed(length * static_cast<int64_t>(sizeof(T))));
    std::vector<T> values(static_cast<std::size_t>(length));
    std::memcpy(values.data(), found.data, static_cast<std::size_t>(found.bytes));
    return values;
  }

  const Json &head_;
  Safetensors &file_;
  Program program_;
  std::vector<Shape> shapes_;  // of the values so far
  int64_t version_ = 0;
  int number_ = 0;  // of the step
  bool is_last_ = false;
};

}  // namespace

Program Program::read(std::string_view bytes) {
  Safetensors file = Safetensors::view(bytes, "tadder");
  const Json head = Json::parse(file.metadata);
  return Reader(head, file).program();
}

}  // namespace torchadder::engine
