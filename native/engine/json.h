// JSON, as much of it as the head of a program file needs: strict, bounded in depth, for text from strangers.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchadder::engine {

// One value. A number is whole where it is written without fraction and exponent and fits 64 bits.
class Json {
 public:
  enum class Kind { null, boolean, whole, real, text, list, object };

  // Throws Unsound where the text is not JSON.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  // Each throws Unsound, naming `what`, where the value is of another kind.
  int64_t whole(const char *what, int64_t low, int64_t high) const;
  const std::string &text(const char *what) const;
  const std::string &plain(const char *what) const;  // of a text, or of a number as it is written
  const std::vector<Json> &list(const char *what) const;
  const std::vector<std::pair<std::string, Json>> &object(const char *what) const;
  const Json &at(const char *name) const;    // the member of an object; throws where there is none
  const Json *find(const char *name) const;  // the same, or null

 private:
  friend class JsonParser;
  Kind kind_ = Kind::null;
  int64_t whole_ = 0;
  std::string text_;
  std::vector<Json> list_;
  std::vector<std::pair<std::string, Json>> object_;  // by name
};

}  // namespace torchadder::engine
