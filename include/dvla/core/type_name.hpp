// type_name<Type>: how a type is spelled, as a compile-time string_view, without "dvla::". For describe() and
// error sentences. Compilers leave default template arguments out; `Spelling` joins a name where they matter.
// Spelling of foreign namespaces is the compiler's; do not store it or compare across compilers.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string_view>

namespace dvla {

/// A name made at compile time, of at most 512 characters.
struct Spelling {
  constexpr Spelling() = default;
  constexpr Spelling(std::initializer_list<std::string_view> parts) {
    for (std::string_view part : parts) {
      for (char c : part) add(c);
    }
  }
  constexpr void add(char c) {
    if (size < text.size()) text[size++] = c;
  }
  constexpr operator std::string_view() const { return {text.data(), size}; }

  std::array<char, 512> text{};
  std::size_t size = 0;
};

namespace detail {

template <class Type>
constexpr std::string_view raw_type_name() {
  constexpr std::string_view all = __PRETTY_FUNCTION__;  // "... [with Type = X; ...]" or "... [Type = X]"
  constexpr std::size_t begin = all.find("Type = ") + 7;
  constexpr std::size_t semicolon = all.find(';', begin);
  return all.substr(begin, (semicolon == all.npos ? all.size() - 1 : semicolon) - begin);
}

/// Drops "dvla::" where a name begins with it, and the space in "> >".
constexpr Spelling shorten(std::string_view raw) {
  constexpr std::string_view prefix = "dvla::";
  Spelling out;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    const bool starts = i == 0 || raw[i - 1] == '<' || raw[i - 1] == ' ' || raw[i - 1] == '(';
    if (starts && raw.substr(i, prefix.size()) == prefix) {
      i += prefix.size() - 1;
    } else if (!(raw[i] == ' ' && raw.substr(i, 2) == " >")) {
      out.add(raw[i]);
    }
  }
  return out;
}

template <class Type>
inline constexpr Spelling short_name = shorten(raw_type_name<Type>());

}  // namespace detail

template <class Type>
inline constexpr std::string_view type_name = detail::short_name<Type>;

}  // namespace dvla
