// A JSON parser for the head of a .tadder file. It is strict and bounded in depth, because a file may come from a
// stranger.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchadder::engine {

// One JSON value. A number is `whole` if it is written without fraction and exponent and fits 64 bits, else `real`.
class Json {
 public:
  enum class Kind { null, boolean, whole, real, text, list, object };

  // Parses a whole text. Throws FileError if it is not JSON.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }

  // Each of these returns the value as one kind. It throws FileError, which names `what` and the value, for another.
  int64_t whole(const char *what, int64_t low, int64_t high) const;  // also throws outside low .. high
  const std::string &text(const char *what) const;
  const std::string &text_or_number(const char *what) const;  // a number as it is written
  const std::vector<Json> &list(const char *what) const;
  const std::vector<std::pair<std::string, Json>> &object(const char *what) const;

  const Json &at(const char *name) const;    // the member of an object; throws FileError if there is none
  const Json *find(const char *name) const;  // the same, or null

 private:
  friend class JsonParser;
  std::string shown() const;  // for messages: a text or number as it is, else the name of its kind

  Kind kind_ = Kind::null;
  int64_t whole_ = 0;
  std::string text_;  // of a text, a number or a boolean
  std::vector<Json> list_;
  std::vector<std::pair<std::string, Json>> object_;  // sorted by name
};

}  // namespace torchadder::engine
