// Knobs: what users tune at run time, as plain structs, reflected once (BOOST_HANA_ADAPT_STRUCT beside the
// struct) and documented once (knob_docs, same names in the same order, checked when compiled). Command line,
// config file, JSON, validation and --help all iterate over that list. Design: "Compile time".
//     struct MyKnobs { int bins = 32; };
//     BOOST_HANA_ADAPT_STRUCT(MyKnobs, bins);
//     template <> inline constexpr auto dvla::knob_docs<MyKnobs> =
//         std::to_array<dvla::KnobDoc>({{"bins", "bins a dimension", 2, 1024}});
// Types: bool, int, std::int64_t, float, double, std::string, and enums whose enumerators count from 0 and
// are named by enum_names.
#pragma once

#include <array>
#include <boost/hana/accessors.hpp>
#include <boost/hana/adapt_struct.hpp>
#include <boost/hana/concept/struct.hpp>
#include <boost/hana/first.hpp>
#include <boost/hana/second.hpp>
#include <boost/hana/string.hpp>
#include <boost/hana/tuple.hpp>
#include <boost/hana/unpack.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "dvla/core/members.hpp"

namespace dvla {

/// One knob's line in --help. `least` and `most` bound numbers, both included; names and text are ignored by
/// bool.
struct KnobDoc {
  std::string_view name;
  std::string_view text;
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  std::string_view unit = {};
};

/// Specialise for each knobs struct.
template <class Knobs>
inline constexpr std::array<KnobDoc, 0> knob_docs{};

/// The documentation of a struct that inherits knobs: the inherited ones first. Its BOOST_HANA_ADAPT_STRUCT
/// lists all members in the same order.
template <std::size_t Inherited, std::size_t Own>
constexpr std::array<KnobDoc, Inherited + Own> joined_docs(const std::array<KnobDoc, Inherited>& inherited,
                                                           const std::array<KnobDoc, Own>& own) {
  std::array<KnobDoc, Inherited + Own> all;
  for (std::size_t i = 0; i < Inherited; ++i) all[i] = inherited[i];
  for (std::size_t i = 0; i < Own; ++i) all[Inherited + i] = own[i];
  return all;
}

/// Specialise for each enum that is a knob: the spelling of its enumerators 0, 1, ...
template <class Enum>
inline constexpr std::array<std::string_view, 0> enum_names{};
template <class Enum>
std::string enum_name(Enum value) {
  return std::string(enum_names<Enum>[static_cast<std::size_t>(value)]);
}

/// For policies with nothing to tune.
struct NoKnobs {};

template <class Type>
concept ReflectedKnobs = boost::hana::Struct<Type>::value;

namespace detail {

template <class Knobs>
constexpr auto knob_names() {
  return boost::hana::unpack(boost::hana::accessors<Knobs>(), [](auto... accessor) {
    return std::array<std::string_view, sizeof...(accessor)>{
        std::string_view(boost::hana::first(accessor).c_str())...};
  });
}

template <class Knobs>
constexpr bool documented() {
  constexpr auto names = knob_names<Knobs>();
  constexpr auto& docs = knob_docs<Knobs>;
  if (names.size() != docs.size()) return false;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] != docs[i].name || docs[i].text.empty() || !(docs[i].least <= docs[i].most)) return false;
  }
  return true;
}

template <class Type>
constexpr bool is_knob_type() {
  if constexpr (std::is_enum_v<Type>) {
    return enum_names<Type>.size() > 0;
  } else {
    return std::is_same_v<Type, bool> || std::is_same_v<Type, int> || std::is_same_v<Type, std::int64_t> ||
           std::is_same_v<Type, float> || std::is_same_v<Type, double> || std::is_same_v<Type, std::string>;
  }
}

template <class Knobs>
constexpr bool all_knob_types() {
  return boost::hana::unpack(boost::hana::accessors<Knobs>(), [](auto... accessor) {
    return (
        ... &&
        is_knob_type<std::remove_cvref_t<decltype(boost::hana::second(accessor)(std::declval<Knobs&>()))>>());
  });
}

/// A policy's knobs as they start: `Policy::default_knobs()` if it has one.
template <class Policy>
auto default_knobs() {
  if constexpr (requires { Policy::default_knobs(); }) {
    return Policy::default_knobs();
  } else if constexpr (requires { typename Policy::knobs; }) {
    return typename Policy::knobs{};
  } else {
    return NoKnobs{};
  }
}
template <class Policy>
using knobs_t = decltype(default_knobs<Policy>());

}  // namespace detail

/// Calls visit(name, value, doc) for every knob, in the order of declaration. `knobs` may be const.
template <class Knobs, class Visit>
constexpr void for_each_knob(Knobs& knobs, Visit visit) {
  using Plain = std::remove_const_t<Knobs>;
  if constexpr (!ReflectedKnobs<Plain>) {
    static_assert(ReflectedKnobs<Plain>,
                  "dvla: this knobs struct is not reflected: add BOOST_HANA_ADAPT_STRUCT(Knobs, members...) "
                  "beside it (core/knobs.hpp)");
  } else if constexpr (!detail::documented<Plain>()) {
    static_assert(
        detail::documented<Plain>(),
        "dvla: knob_docs must name the members of its knobs struct, all of them, in the same order, "
        "each with a text and least <= most (core/knobs.hpp)");
  } else if constexpr (!detail::all_knob_types<Plain>()) {
    static_assert(detail::all_knob_types<Plain>(),
                  "dvla: a knob must be bool, int, std::int64_t, float, double, std::string or an enum with "
                  "enum_names (core/knobs.hpp)");
  } else {
    boost::hana::unpack(boost::hana::accessors<Plain>(), [&](auto... accessor) {
      [[maybe_unused]] std::size_t i = 0;
      (
          [&](auto get) {
            auto& value = get(knobs);
            const KnobDoc& doc = knob_docs<Plain>[i++];
            visit(doc.name, value, doc);
          }(boost::hana::second(accessor)),
          ...);
    });
  }
}

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::NoKnobs);
