// Unicode's classes of characters, by utf8proc (link -lutf8proc): what tokenisers and prompts ask of them.
#pragma once

#include <utf8proc.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dvla::detail {

/// `visit(code point, its bytes)` for each; what is no UTF-8 comes byte by byte, with a code point of -1.
template <class Visit>
void for_each_code_point(std::string_view text, Visit visit) {
  while (!text.empty()) {
    utf8proc_int32_t code = -1;
    const utf8proc_ssize_t size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                                   static_cast<utf8proc_ssize_t>(text.size()), &code);
    const std::size_t taken = size > 0 ? static_cast<std::size_t>(size) : 1;
    visit(size > 0 ? std::int32_t{code} : -1, text.substr(0, taken));
    text.remove_prefix(taken);
  }
}

enum class CharacterKind { letter, number, blank, other };

/// \p{L}, \p{N}, \s (Unicode's White_Space) and all others.
inline CharacterKind kind_of(std::int32_t code) {
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharacterKind::letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharacterKind::number;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return CharacterKind::blank;
    default:
      return (code >= 0x09 && code <= 0x0D) || code == 0x85 ? CharacterKind::blank : CharacterKind::other;
  }
}

/// Without blanks at either end, as Python's str.strip().
inline std::string_view stripped(std::string_view text) {
  std::size_t begin = text.size(), end = 0;
  for_each_code_point(text, [&](std::int32_t code, std::string_view bytes) {
    if (kind_of(code) == CharacterKind::blank || (code >= 0x1C && code <= 0x1F)) return;
    const auto at = static_cast<std::size_t>(bytes.data() - text.data());
    if (begin > at) begin = at;
    end = at + bytes.size();
  });
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

/// Code point by code point. Unlike Python's str.lower(): U+0130 becomes i without a dot above, and no sigma knows that it is the
/// last of a word.
inline std::string lower_case(std::string_view text) {
  std::string lower;
  for_each_code_point(text, [&](std::int32_t code, std::string_view bytes) {
    utf8proc_uint8_t to[4];
    const utf8proc_ssize_t size = code < 0 ? 0 : utf8proc_encode_char(utf8proc_tolower(code), to);
    lower += size > 0 ? std::string_view(reinterpret_cast<const char*>(to), static_cast<std::size_t>(size))
                      : bytes;
  });
  return lower;
}

}  // namespace dvla::detail
