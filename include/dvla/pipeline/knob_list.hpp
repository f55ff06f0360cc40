// A configuration as a flat list of knobs: name, address, documentation. Made once from the reflected
// structs; command line, files, validation and help are written against this list and know no struct. A value
// comes from outside as `Given` and is checked here, whatever its source: one sentence names source, field,
// value and what is allowed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/pipeline/config.hpp"

namespace dvla {

/// A knob that is an enum.
struct Choice {
  std::span<const std::string_view> names;
  void* value;
  std::int64_t (*get)(const void*);  ///< the enumerator's number
  void (*set)(void*, std::int64_t);
};

/// One knob of a configuration that lives elsewhere.
struct KnobRef {
  std::string_view section;
  std::string_view name;
  KnobDoc doc{};
  std::variant<bool*, int*, std::int64_t*, float*, double*, std::string*, Choice> value{};

  std::string path() const { return std::string(section) + "." + std::string(name); }
  template <class... Types>
  bool is() const {
    return (std::holds_alternative<Types>(value) || ...);
  }
  bool is_whole() const { return is<int*, std::int64_t*>(); }
  bool is_real() const { return is<float*, double*>(); }
};

/// A value as a source gave it; empty if no knob takes such a thing. `shown` is how it stands there, for the
/// error sentence.
struct Given {
  std::variant<std::monostate, bool, std::int64_t, double, std::string> value{};
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

/// The knobs of one section, in the order of declaration. The list points into them.
template <class Knobs>
void list_section(std::vector<KnobRef>& list, std::string_view section, Knobs& knobs) {
  for_each_knob(knobs, [&](std::string_view name, auto& value, const KnobDoc& doc) {
    using Type = std::remove_cvref_t<decltype(value)>;
    KnobRef knob{section, name, doc};
    if constexpr (std::is_enum_v<Type>)
      knob.value =
          Choice{enum_names<Type>, &value,
                 [](const void* at) { return static_cast<std::int64_t>(*static_cast<const Type*>(at)); },
                 [](void* at, std::int64_t to) { *static_cast<Type*>(at) = static_cast<Type>(to); }};
    else
      knob.value = &value;
    list.push_back(knob);
  });
}

/// Every knob of `config`, section by section. The staleness may be what schedule and algorithm both allow.
template <class Config>
std::vector<KnobRef> list_knobs(Config& config) {
  std::vector<KnobRef> list;
  for_each_section(config,
                   [&](std::string_view section, auto& knobs) { list_section(list, section, knobs); });
  for (KnobRef& knob : list)
    if (knob.section == schedule_slot::name && knob.name == "staleness")
      knob.doc.most = std::min(knob.doc.most, detail::most_staleness<typename Config::pipeline>());
  return list;
}

namespace detail {

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
  return std::visit(
      [&]<class At>(const At& at) -> std::string {
        if constexpr (std::is_same_v<At, Choice>) {
          const std::int64_t choice = at.get(at.value);
          return choice < 0 || choice >= std::ssize(at.names)
                     ? number_text(choice)
                     : quoted(at.names[static_cast<std::size_t>(choice)]);
        } else if constexpr (std::is_same_v<At, bool*>) {
          return *at ? "true" : "false";
        } else if constexpr (std::is_same_v<At, std::string*>) {
          return quoted(*at);
        } else {
          return number_text(*at);
        }
      },
      knob.value);
}

/// "[2, 4096]", "at least 0", "true or false", "one of token, action, chunk"; empty if anything goes.
inline std::string allowed(const KnobRef& knob) {
  if (knob.is<bool*>()) return "true or false";
  if (knob.is<std::string*>()) return "";
  if (const auto* choice = std::get_if<Choice>(&knob.value)) {
    std::string all;
    for (std::string_view name : choice->names) all += (all.empty() ? "one of " : ", ") + std::string(name);
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
  if (knob.is<std::string*>()) must = "text in UTF-8 without control characters";
  throw ConfigError(source, knob.path(), " is ", one_line(shown), "; it must be ", must, " (", knob.doc.text,
                    ")");
}

/// Whether the value that is there now is in range, finite, a known choice, sound text.
inline bool value_is_sound(const KnobRef& knob) {
  return std::visit(
      [&]<class At>(const At& at) {
        if constexpr (std::is_same_v<At, Choice>) {
          return at.get(at.value) >= 0 && at.get(at.value) < std::ssize(at.names);
        } else if constexpr (std::is_same_v<At, std::string*>) {
          return utf8_length(*at) == at->size() && std::none_of(at->begin(), at->end(), is_control);
        } else {
          const auto number = static_cast<double>(*at);
          return std::is_same_v<At, bool*> ||
                 (std::isfinite(number) && number >= knob.doc.least && number <= knob.doc.most);
        }
      },
      knob.value);
}
inline void check_knob(const KnobRef& knob) {
  if (!value_is_sound(knob)) refuse(knob, "", knob_text(knob));
}

/// Writes what a source gave; throws ConfigError where the knob takes no such value. `source` opens the
/// sentence: "--group: ", "run.toml:3: ".
inline void assign_knob(const KnobRef& knob, const Given& given, std::string_view source) {
  const auto* const whole = std::get_if<std::int64_t>(&given.value);
  const auto* const text = std::get_if<std::string>(&given.value);
  const auto write = [&]<class Value>(Value* to, const auto* from) {
    if (from == nullptr) return false;
    *to = static_cast<Value>(*from);
    return true;
  };
  const bool taken = std::visit(
      [&]<class At>(const At& at) {
        if constexpr (std::is_same_v<At, Choice>) {
          const auto found = text ? std::find(at.names.begin(), at.names.end(), *text) : at.names.end();
          if (found != at.names.end()) at.set(at.value, found - at.names.begin());
          return found != at.names.end();
        } else if constexpr (std::is_same_v<At, bool*>) {
          return write(at, std::get_if<bool>(&given.value));
        } else if constexpr (std::is_same_v<At, std::string*>) {
          return write(at, text);
        } else {
          using Number = std::remove_pointer_t<At>;
          if constexpr (std::is_integral_v<Number>)
            return whole && std::in_range<Number>(*whole) && write(at, whole);
          const auto* const real = std::get_if<double>(&given.value);
          if (real && std::abs(*real) > static_cast<double>(std::numeric_limits<Number>::max())) return false;
          return write(at, whole) || write(at, real);
        }
      },
      knob.value);
  if (!taken || !value_is_sound(knob)) refuse(knob, source, given.shown);
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
