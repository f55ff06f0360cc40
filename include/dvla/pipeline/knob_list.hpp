// A configuration as a flat list of knobs: name, address, documentation. Made once from the reflected
// structs; command line, files, validation and help are written against this list and know no struct. A value
// comes from outside as `Given` and is checked here, whatever its source: one sentence names source, field,
// value and what is allowed.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/pipeline/config.hpp"

namespace dvla {

enum class KnobKind : std::uint8_t { boolean, whole32, whole64, real32, real64, text, choice };

/// One knob of a configuration that lives elsewhere.
struct KnobRef {
  std::string_view section;
  std::string_view name;
  KnobDoc doc{};
  KnobKind kind = KnobKind::boolean;
  void* value = nullptr;
  std::span<const std::string_view> names{};          ///< of a choice
  std::int64_t (*get_choice)(const void*) = nullptr;  ///< the enumerator's number
  void (*set_choice)(void*, std::int64_t) = nullptr;

  std::string path() const { return std::string(section) + "." + std::string(name); }
  bool is_whole() const { return kind == KnobKind::whole32 || kind == KnobKind::whole64; }
  bool is_real() const { return kind == KnobKind::real32 || kind == KnobKind::real64; }
};

/// A value as a source gave it. `shown` is how it stands there, for the error sentence.
struct Given {
  enum class Kind : std::uint8_t { boolean, whole, real, text, other } kind = Kind::other;
  bool boolean = false;
  std::int64_t whole = 0;
  double real = 0;
  std::string text{};
  std::string shown{};
};

namespace detail {
template <class Pipeline>
constexpr double most_staleness() {
  double most = std::numeric_limits<double>::infinity();
  if constexpr (requires { Pipeline::schedule::max_staleness; })
    most = std::min<double>(most, Pipeline::schedule::max_staleness);
  if constexpr (requires { Pipeline::algorithm::max_staleness; })
    most = std::min<double>(most, Pipeline::algorithm::max_staleness);
  return most;
}
}  // namespace detail

/// Every knob of `config`, section by section, in the order of declaration. The list points into it. The
/// staleness may be what schedule and algorithm both allow.
template <class Config>
std::vector<KnobRef> list_knobs(Config& config) {
  std::vector<KnobRef> list;
  for_each_section(config, [&](std::string_view section, auto& knobs) {
    for_each_knob(knobs, [&](std::string_view name, auto& value, const KnobDoc& doc) {
      using Type = std::remove_cvref_t<decltype(value)>;
      KnobRef knob{section, name, doc, KnobKind::boolean, &value};
      if (section == schedule_slot::name && name == "staleness")
        knob.doc.most = std::min(knob.doc.most, detail::most_staleness<typename Config::pipeline>());
      if constexpr (std::is_same_v<Type, int>) knob.kind = KnobKind::whole32;
      if constexpr (std::is_same_v<Type, std::int64_t>) knob.kind = KnobKind::whole64;
      if constexpr (std::is_same_v<Type, float>) knob.kind = KnobKind::real32;
      if constexpr (std::is_same_v<Type, double>) knob.kind = KnobKind::real64;
      if constexpr (std::is_same_v<Type, std::string>) knob.kind = KnobKind::text;
      if constexpr (std::is_enum_v<Type>) {
        knob.kind = KnobKind::choice;
        knob.names = enum_names<Type>;
        knob.get_choice = [](const void* at) {
          return static_cast<std::int64_t>(*static_cast<const Type*>(at));
        };
        knob.set_choice = [](void* at, std::int64_t to) { *static_cast<Type*>(at) = static_cast<Type>(to); };
      }
      list.push_back(knob);
    });
  });
  return list;
}

namespace detail {

template <class Number>
std::string number_text(Number number) {
  char text[64];
  return std::string(text, std::to_chars(text, text + sizeof text, number).ptr);
}

inline bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

/// Bytes up to the first that no UTF-8 (RFC 3629) begins with: no overlong forms, no surrogates.
inline std::size_t utf8_length(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](std::size_t k) {
      return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0U;
    };
    const unsigned first = byte(0), second = byte(1);
    const std::size_t more = first < 0x80    ? 0
                             : first < 0xc2  ? 4
                             : first < 0xe0  ? 1
                             : first < 0xf0  ? 2
                             : first <= 0xf4 ? 3
                                             : 4;
    if (more == 4 || (first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
        (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f))
      return i;
    for (std::size_t k = 1; k <= more; ++k)
      if ((byte(k) & 0xc0) != 0x80) return i;
    i += more + 1;
  }
  return i;
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
    text.remove_prefix(split ? text.size() : std::min(good + 1, text.size()));
  }
  std::replace_if(line.begin(), line.end(), is_control, '?');
  return cut ? line + "..." : line;
}

inline double knob_number(const KnobRef& knob) {
  switch (knob.kind) {
    case KnobKind::whole32:
      return *static_cast<const int*>(knob.value);
    case KnobKind::whole64:
      return static_cast<double>(*static_cast<const std::int64_t*>(knob.value));
    case KnobKind::real32:
      return static_cast<double>(*static_cast<const float*>(knob.value));
    case KnobKind::real64:
      return *static_cast<const double*>(knob.value);
    default:
      return 0;
  }
}

/// A knob's value as it is written in TOML; a choice or text comes in quotes.
inline std::string knob_text(const KnobRef& knob) {
  const auto quoted = [](std::string_view text) {
    std::string all = "\"";
    for (char c : text) {
      if (c == '"' || c == '\\') all += '\\';
      all += c;
    }
    return all + '"';
  };
  switch (knob.kind) {
    case KnobKind::boolean:
      return *static_cast<const bool*>(knob.value) ? "true" : "false";
    case KnobKind::whole32:
      return number_text(*static_cast<const int*>(knob.value));
    case KnobKind::whole64:
      return number_text(*static_cast<const std::int64_t*>(knob.value));
    case KnobKind::real32:
      return number_text(*static_cast<const float*>(knob.value));
    case KnobKind::real64:
      return number_text(*static_cast<const double*>(knob.value));
    case KnobKind::text:
      return quoted(*static_cast<const std::string*>(knob.value));
    case KnobKind::choice:
      break;
  }
  const std::int64_t choice = knob.get_choice(knob.value);
  if (choice < 0 || choice >= static_cast<std::int64_t>(knob.names.size())) return number_text(choice);
  return quoted(knob.names[static_cast<std::size_t>(choice)]);
}

/// "[2, 4096]", "at least 0", "true or false", "one of token, action, chunk"; empty if anything goes.
inline std::string allowed(const KnobRef& knob) {
  if (knob.kind == KnobKind::boolean) return "true or false";
  if (knob.kind == KnobKind::text) return "";
  if (knob.kind == KnobKind::choice) {
    std::string all = "one of ";
    for (std::string_view name : knob.names)
      all += (name == knob.names.front() ? "" : ", ") + std::string(name);
    return all;
  }
  const KnobDoc& doc = knob.doc;
  const auto bound = [&](double number) {  // a whole number without exponent, as it must be written
    return knob.is_whole() ? number_text(static_cast<std::int64_t>(number)) : number_text(number);
  };
  const bool from = std::isfinite(doc.least), to = std::isfinite(doc.most);
  std::string range;
  if (from && to) range = "in [" + bound(doc.least) + ", " + bound(doc.most) + "]";
  if (from && !to) range = "at least " + bound(doc.least);
  if (!from && to) range = "at most " + bound(doc.most);
  if (!range.empty() && !doc.unit.empty()) range += " " + std::string(doc.unit);
  return range;
}

[[noreturn]] inline void refuse(const KnobRef& knob, std::string_view source, std::string_view shown) {
  std::string must = allowed(knob);
  if (knob.is_whole()) must = "a whole number " + must;
  if (knob.is_real()) must = "a number " + must;
  if (knob.kind == KnobKind::text) must = "text in UTF-8 without control characters";
  throw ConfigError(std::string(source) + knob.path() + " is " + one_line(shown) + "; it must be " + must +
                    " (" + std::string(knob.doc.text) + ")");
}

/// The value that is there now: in range, finite, a known choice.
inline void check_knob(const KnobRef& knob, std::string_view source = {}) {
  bool good = true;
  if (knob.is_whole() || knob.is_real()) {
    const double number = knob_number(knob);
    good = std::isfinite(number) && number >= knob.doc.least && number <= knob.doc.most;
  } else if (knob.kind == KnobKind::choice) {
    const std::int64_t choice = knob.get_choice(knob.value);
    good = choice >= 0 && choice < static_cast<std::int64_t>(knob.names.size());
  } else if (knob.kind == KnobKind::text) {
    const auto& text = *static_cast<const std::string*>(knob.value);
    good = utf8_length(text) == text.size() && std::none_of(text.begin(), text.end(), is_control);
  }
  if (!good) refuse(knob, source, knob_text(knob));
}

/// Checks what a source gave, then writes it. `source` opens the sentence: "--group: ", "run.toml:3: ".
inline void assign_knob(const KnobRef& knob, const Given& given, std::string_view source) {
  using Kind = Given::Kind;
  const auto in_range = [&](double number) {
    return std::isfinite(number) && number >= knob.doc.least && number <= knob.doc.most;
  };
  const bool number = given.kind == Kind::whole || given.kind == Kind::real;
  const double real = given.kind == Kind::whole ? static_cast<double>(given.whole) : given.real;
  if (knob.kind == KnobKind::boolean && given.kind == Kind::boolean) {
    *static_cast<bool*>(knob.value) = given.boolean;
  } else if (knob.kind == KnobKind::whole32 && given.kind == Kind::whole && in_range(real) &&
             given.whole >= std::numeric_limits<int>::min() &&
             given.whole <= std::numeric_limits<int>::max()) {
    *static_cast<int*>(knob.value) = static_cast<int>(given.whole);
  } else if (knob.kind == KnobKind::whole64 && given.kind == Kind::whole && in_range(real)) {
    *static_cast<std::int64_t*>(knob.value) = given.whole;
  } else if (knob.kind == KnobKind::real32 && number && in_range(real) &&
             std::abs(real) <= static_cast<double>(std::numeric_limits<float>::max())) {
    *static_cast<float*>(knob.value) = static_cast<float>(real);
  } else if (knob.kind == KnobKind::real64 && number && in_range(real)) {
    *static_cast<double*>(knob.value) = real;
  } else if (knob.kind == KnobKind::text && given.kind == Kind::text) {
    *static_cast<std::string*>(knob.value) = given.text;
    check_knob(knob, source);
  } else {
    const auto at = std::find(knob.names.begin(), knob.names.end(), given.text);
    if (knob.kind != KnobKind::choice || given.kind != Kind::text || at == knob.names.end())
      refuse(knob, source, given.shown);
    knob.set_choice(knob.value, at - knob.names.begin());
  }
}

/// The candidate nearest to `word` by edits, if near enough to be a slip; else empty.
inline std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  word = word.substr(0, 64);
  std::string best;
  std::size_t least = 1 + std::max<std::size_t>(1, word.size() / 3);
  for (const std::string& candidate : candidates) {
    std::vector<std::size_t> row(candidate.size() + 1);
    for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (std::size_t i = 0; i < word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i + 1;
      for (std::size_t j = 0; j < candidate.size(); ++j) {
        const std::size_t replaced = diagonal + (word[i] == candidate[j] ? 0 : 1);
        diagonal = row[j + 1];
        row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
      }
    }
    if (row.back() < least) {
      least = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace detail

}  // namespace dvla
