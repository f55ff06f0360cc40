// Text for people: printf's forms as a std::string, checked as printf's are (g++ 12 has no <format>), and text
// from outside made fit for one line. None of it depends on the locale that a program has chosen: numbers are
// put into text by what stands here, never by streams or std::to_string(double).
#pragma once

#include <locale.h>

#include <algorithm>
#include <boost/locale/utf.hpp>
#include <charconv>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace dvla {

[[gnu::format(printf, 1, 2)]] inline std::string printed(const char* form, ...) {
  static const locale_t classic = ::newlocale(LC_ALL_MASK, "C", nullptr);
  const locale_t chosen = ::uselocale(classic);  // of this thread
  char text[1024];                               // what is longer is cut
  va_list values;
  va_start(values, form);
  std::vsnprintf(text, sizeof text, form, values);
  va_end(values);
  ::uselocale(chosen);
  return text;
}

inline std::string mebibytes(std::size_t bytes, int digits = 1) {
  return printed("%.*f MiB", digits, static_cast<double>(bytes) / (1 << 20));
}

namespace detail {

/// The shortest text that reads back as the same number; locale-free.
template <class Number>
std::string number_text(Number number) {
  char text[64];
  return std::string(text, std::to_chars(text, text + sizeof text, number).ptr);
}

/// What stands in `text` before the next `end`; that and `end` are taken off it.
inline std::string_view take(std::string_view& text, char end) {
  const std::string_view before = text.substr(0, text.find(end));
  text.remove_prefix(std::min(text.size(), before.size() + 1));
  return before;
}

/// `text`, blanks around it left out, as a whole number that is not negative; nothing for "max", "-1" or
/// anything else.
inline std::optional<std::uint64_t> whole_number(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return {};
  text = text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return number;
}

inline bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

/// Bytes up to the first that no UTF-8 (RFC 3629) begins with: no overlong forms, no surrogates.
inline std::size_t utf8_length(std::string_view text) {
  const char *at = text.data(), *const end = at + text.size();
  for (const char* good = at;; good = at)
    if (good == end ||
        !boost::locale::utf::is_valid_codepoint(boost::locale::utf::utf_traits<char>::decode(at, end)))
      return static_cast<std::size_t>(good - text.data());
}

/// Text from outside, fit for one line of an error: UTF-8 without control characters, at most about `most`
/// bytes.
inline std::string one_line(std::string_view text, std::size_t most = 80) {
  const bool cut = text.size() > most;
  std::string line;
  for (text = text.substr(0, most); !text.empty();) {
    const std::size_t good = utf8_length(text);
    line += text.substr(0, good);
    const bool split = cut && good + 4 > text.size();  // a character that the cut went through is left out
    if (good < text.size() && !split) line += '?';
    text.remove_prefix(split ? text.size() : good < text.size() ? good + 1 : good);
  }
  for (char& each : line)
    if (is_control(each)) each = '?';
  return cut ? line + "..." : line;
}

/// "a, b, c and 4 more" of a list that may be long.
inline std::string some_of(std::span<const std::string> all, std::size_t most) {
  std::string text;
  for (const std::string& each : all.first(std::min(all.size(), most)))
    text += (text.empty() ? "" : ", ") + each;
  return all.size() > most ? text + " and " + std::to_string(all.size() - most) + " more" : text;
}

}  // namespace detail

}  // namespace dvla
