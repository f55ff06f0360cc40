// Reflected structs as JSON and back: the one text form of what ranks tell each other and what a run keeps in
// files. A member may be bool, a number, std::string, an enum with enum_names, std::optional (null where it
// is empty), std::vector, std::array or a reflected struct (BOOST_HANA_ADAPT_STRUCT) of these. NaN and
// infinity are null in JSON, which no number is read from. Reading takes any text: what does not fit is one
// sentence that names the field. Dear to compile (nlohmann): include it where text is made, not where structs
// are.
#pragma once

#include <algorithm>
#include <boost/hana.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/knobs.hpp"

namespace dvla {

namespace detail {

/// A value fit for an error sentence, in ASCII and at most about 80 bytes.
template <class Json>
std::string shown(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 80) + "..." : text;
}

/// Where in a text a value stands. Made on the way down and read only for a sentence.
struct JsonPlace {
  const JsonPlace* outer = nullptr;
  const char* field = nullptr;
  std::size_t index = 0;  ///< where it has no field's name

  std::string path() const {
    if (outer == nullptr) return "";
    const std::string before = outer->path();
    if (field == nullptr) return before + "[" + std::to_string(index) + "]";
    return before + (before.empty() ? "" : ".") + field;
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(outer == nullptr ? "it " + what : "its field '" + path() + "' " + what);
  }
};

template <class Value>
void read_json_value(const nlohmann::json& json, const JsonPlace& place, Value& value) {
  const auto expect = [&](bool fits, const std::string& must) {
    if (!fits) place.refuse("is " + shown(json) + "; it must be " + must);
  };
  if constexpr (ReflectedKnobs<Value>) {
    expect(json.is_object(), "an object");
    constexpr auto names = knob_names<Value>();
    for (const auto& item : json.items())
      if (std::find(names.begin(), names.end(), item.key()) == names.end())
        place.refuse("has " + shown(nlohmann::json(item.key())) + ", which is not known");
    boost::hana::for_each(boost::hana::accessors<Value>(), [&](auto accessor) {
      const JsonPlace inner{&place, boost::hana::first(accessor).c_str()};
      const auto found = json.find(inner.field);
      if (found == json.end()) inner.refuse("is missing");
      read_json_value(*found, inner, boost::hana::second(accessor)(value));
    });
  } else if constexpr (requires { value.emplace(); }) {
    value.reset();
    if (!json.is_null()) read_json_value(json, place, value.emplace());
  } else if constexpr (std::is_same_v<Value, bool>) {
    expect(json.is_boolean(), "true or false");
    value = json.get<bool>();
  } else if constexpr (std::is_same_v<Value, std::string>) {
    expect(json.is_string(), "text");
    value = json.get<std::string>();
  } else if constexpr (std::is_enum_v<Value>) {
    std::string must = "one of";
    for (const std::string_view name : enum_names<Value>) must += " " + std::string(name);
    expect(json.is_string(), must);
    const auto at = std::find(enum_names<Value>.begin(), enum_names<Value>.end(), json.get<std::string>());
    expect(at != enum_names<Value>.end(), must);
    value = static_cast<Value>(at - enum_names<Value>.begin());
  } else if constexpr (std::is_integral_v<Value>) {
    using Range = std::numeric_limits<Value>;
    expect(json.is_number_unsigned()
               ? std::in_range<Value>(json.get<std::uint64_t>())
               : json.is_number_integer() && std::in_range<Value>(json.get<std::int64_t>()),
           "a whole number in [" + std::to_string(Range::min()) + ", " + std::to_string(Range::max()) + "]");
    value = json.get<Value>();
  } else if constexpr (std::is_floating_point_v<Value>) {
    expect(json.is_number() && std::abs(json.get<double>()) <= std::numeric_limits<Value>::max(), "a number");
    value = static_cast<Value>(json.get<double>());
  } else {
    expect(json.is_array(), "an array");
    if constexpr (requires { value.resize(0); })
      value.assign(json.size(), {});
    else
      expect(json.size() == value.size(), "an array of " + std::to_string(value.size()));
    for (std::size_t i = 0; i < json.size(); ++i) read_json_value(json[i], {&place, nullptr, i}, value[i]);
  }
}

}  // namespace detail

/// Fields in the order that `Json` gives them: ordered_json that of declaration, json that of the alphabet.
template <class Json = nlohmann::json, class Value>
Json json_of(const Value& value) {
  if constexpr (ReflectedKnobs<Value>) {
    Json object = Json::object();
    boost::hana::for_each(boost::hana::accessors<Value>(), [&](auto accessor) {
      object[boost::hana::first(accessor).c_str()] = json_of<Json>(boost::hana::second(accessor)(value));
    });
    return object;
  } else if constexpr (requires { value.has_value(); }) {
    return value ? json_of<Json>(*value) : Json();
  } else if constexpr (std::is_enum_v<Value>) {
    return enum_name(value);
  } else if constexpr (std::is_arithmetic_v<Value> || std::is_same_v<Value, std::string>) {
    return value;
  } else {
    Json list = Json::array();
    for (const auto& each : value) list.push_back(json_of<Json>(each));
    return list;
  }
}

/// One line. Bytes of a text that are no UTF-8 become U+FFFD.
template <class Value>
std::string json_text(const Value& value) {
  return json_of(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// What json_text wrote. Throws FormatError, which `name` opens, for any other text, never anything else.
template <class Value>
Value parse_json(std::string_view text, const std::string& name) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    if (json.is_discarded()) throw FormatError("it is no JSON, or was cut off");
    Value value{};
    detail::read_json_value(json, {}, value);
    return value;
  } catch (const FormatError& error) {
    throw FormatError(name, ": ", error.what());
  }
}

/// The line of an object whose last field is a checksum of the text without it.
template <class Value>
std::string sealed_text(const Value& value) {
  const std::string text = json_text(value);
  const std::uint64_t sum = checksum(std::as_bytes(std::span<const char>(text)));
  return text.substr(0, text.size() - 1) + ",\"checksum\":" + std::to_string(sum) + "}\n";
}
/// What sealed_text wrote. Throws as parse_json does, for the smallest change too.
template <class Value>
Value parse_sealed(std::string_view text, const std::string& name) {
  const std::size_t seal = text.rfind(",\"checksum\":");
  Value value = parse_json<Value>(
      seal == text.npos ? std::string(text) : std::string(text.substr(0, seal)) + "}", name);
  if (sealed_text(value) != text)
    throw FormatError(name, ": it was damaged or edited: its checksum is of another text");
  return value;
}

}  // namespace dvla
