#include "engine/json.h"

#include <algorithm>
#include <charconv>

#include "common/error.h"

namespace torchadder::engine {

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : rest_(text), size_(text.size()) {}

  Json whole_text() {
    Json value = parse(0);
    skip_space();
    if (!rest_.empty()) syntax_error();
    return value;
  }

 private:
  static constexpr int kMaxDepth = 16;

  [[noreturn]] void syntax_error() const { reject("its head is not JSON at byte %zu", size_ - rest_.size()); }

  void skip_space() {
    const std::size_t n = rest_.find_first_not_of(" \t\r\n");
    rest_.remove_prefix(n == rest_.npos ? rest_.size() : n);
  }

  char next() {
    if (rest_.empty()) syntax_error();
    const char c = rest_.front();
    rest_.remove_prefix(1);
    return c;
  }

  bool take(char c) {
    skip_space();
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void expect(char c) {
    if (!take(c)) syntax_error();
  }

  Json parse(int depth) {
    if (depth > kMaxDepth) reject("its head is nested more than %d levels deep", kMaxDepth);
    skip_space();
    if (rest_.empty()) syntax_error();
    Json value;
    switch (rest_.front()) {
      case '{':
        object(value, depth);
        break;
      case '[':
        list(value, depth);
        break;
      case '"':
        value.kind_ = Json::Kind::text;
        value.text_ = text();
        break;
      case 't':
        word("true", value, Json::Kind::boolean);
        break;
      case 'f':
        word("false", value, Json::Kind::boolean);
        break;
      case 'n':
        word("null", value, Json::Kind::null);
        break;
      default:
        number(value);
    }
    return value;
  }

  void word(std::string_view expected, Json &value, Json::Kind kind) {
    if (rest_.substr(0, expected.size()) != expected) syntax_error();
    rest_.remove_prefix(expected.size());
    value.kind_ = kind;
    value.text_ = expected;
  }

  void object(Json &value, int depth) {
    value.kind_ = Json::Kind::object;
    expect('{');
    if (take('}')) return;
    do {
      skip_space();
      if (rest_.empty() || rest_.front() != '"') syntax_error();
      std::string name = text();
      expect(':');
      value.object_.emplace_back(std::move(name), parse(depth + 1));
    } while (take(','));
    expect('}');
    const auto before = [](const auto &a, const auto &b) { return a.first < b.first; };
    const auto same = [](const auto &a, const auto &b) { return a.first == b.first; };
    std::sort(value.object_.begin(), value.object_.end(), before);
    const auto twice = std::adjacent_find(value.object_.begin(), value.object_.end(), same);
    if (twice != value.object_.end()) reject("its head has the name '%.60s' twice", twice->first.c_str());
  }

  void list(Json &value, int depth) {
    value.kind_ = Json::Kind::list;
    expect('[');
    if (take(']')) return;
    do value.list_.push_back(parse(depth + 1));
    while (take(','));
    expect(']');
  }

  void number(Json &value) {
    std::size_t n = rest_.find_first_not_of("+-.0123456789eE");
    const std::string_view digits = rest_.substr(0, n);
    const char *first = digits.data(), *last = first + digits.size();
    const std::size_t sign = !digits.empty() && digits[0] == '-';
    if (digits.size() == sign || digits[sign] < '0' || digits[sign] > '9') syntax_error();
    if (digits[sign] == '0' && digits.size() > sign + 1 && digits[sign + 1] >= '0' && digits[sign + 1] <= '9')
      syntax_error();
    const auto [end, error] = std::from_chars(first, last, value.whole_);
    value.kind_ = error == std::errc() && end == last ? Json::Kind::whole : Json::Kind::real;
    value.text_ = digits;
    rest_.remove_prefix(digits.size());
  }

  unsigned hex4() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = next();
      if (c >= '0' && c <= '9')
        code = code * 16 + static_cast<unsigned>(c - '0');
      else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
        code = code * 16 + static_cast<unsigned>((c | 32) - 'a' + 10);
      else
        syntax_error();
    }
    return code;
  }

  static void append_utf8(std::string &to, unsigned code) {
    const auto tail = [&](int shift) { to += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
    if (code < 0x80) {
      to += static_cast<char>(code);
    } else if (code < 0x800) {
      to += static_cast<char>(0xC0 | (code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      to += static_cast<char>(0xE0 | (code >> 12));
      tail(6), tail(0);
    } else {
      to += static_cast<char>(0xF0 | (code >> 18));
      tail(12), tail(6), tail(0);
    }
  }

  void escape(std::string &to) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const char c = next();
    if (c != 'u') {
      const std::size_t i = kFrom.find(c);
      if (i == kFrom.npos) syntax_error();
      to += kTo[i];
      return;
    }
    unsigned code = hex4();
    if (code >= 0xDC00 && code < 0xE000) syntax_error();
    if (code >= 0xD800 && code < 0xDC00) {
      if (next() != '\\' || next() != 'u') syntax_error();
      const unsigned low = hex4();
      if (low < 0xDC00 || low >= 0xE000) syntax_error();
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(to, code);
  }

  std::string text() {
    std::string found;
    next();
    for (;;) {
      const char c = next();
      if (c == '"') return found;
      if (static_cast<unsigned char>(c) < 0x20) syntax_error();
      if (c == '\\')
        escape(found);
      else
        found += c;
    }
  }

  std::string_view rest_;
  std::size_t size_;
};

Json Json::parse(std::string_view text) { return JsonParser(text).whole_text(); }

std::string Json::shown() const {
  if (kind_ == Kind::list) return "a list";
  if (kind_ == Kind::object) return "an object";
  return kind_ == Kind::text ? "'" + text_.substr(0, 40) + "'" : text_.substr(0, 40);
}

int64_t Json::whole(const char *what, int64_t low, int64_t high) const {
  if (kind_ != Kind::whole) reject("%s is %s, expected an integer", what, shown().c_str());
  if (whole_ < low || whole_ > high)
    reject("%s %lld is out of range: expected %lld to %lld", what, static_cast<long long>(whole_),
           static_cast<long long>(low), static_cast<long long>(high));
  return whole_;
}

const std::string &Json::text(const char *what) const {
  if (kind_ != Kind::text) reject("%s is %s, expected a text", what, shown().c_str());
  return text_;
}

const std::string &Json::text_or_number(const char *what) const {
  if (kind_ != Kind::text && kind_ != Kind::whole && kind_ != Kind::real)
    reject("%s is %s, expected a text or a number", what, shown().c_str());
  return text_;
}

const std::vector<Json> &Json::list(const char *what) const {
  if (kind_ != Kind::list) reject("%s is %s, expected a list", what, shown().c_str());
  return list_;
}

const std::vector<std::pair<std::string, Json>> &Json::object(const char *what) const {
  if (kind_ != Kind::object) reject("%s is %s, expected an object", what, shown().c_str());
  return object_;
}

const Json *Json::find(const char *name) const {
  const auto before = [](const auto &member, const char *wanted) { return member.first < wanted; };
  const auto found = std::lower_bound(object_.begin(), object_.end(), name, before);
  return found != object_.end() && found->first == name ? &found->second : nullptr;
}

const Json &Json::at(const char *name) const {
  object("its head");
  const Json *found = find(name);
  if (!found) reject("it lacks '%s'", name);
  return *found;
}

}  // namespace torchadder::engine
