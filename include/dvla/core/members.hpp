// members<&Struct::first, ...>: what BOOST_HANA_ADAPT_STRUCT says about a struct, but made only where it is
// asked for. The macro's accessors are compiled by every file that sees the struct, 0.4 s for thirty members;
// these cost nothing until something iterates over them. For structs that many files include and few iterate
// over:
//     template <std::same_as<dvla::MyKnobs> K>
//     struct boost::hana::accessors_impl<K> : dvla::members<&K::bins, &K::temperature> {};
// A struct that inherits others' members lists only its own, behind theirs: dvla::more_members<Base, &K::own>; or
// before them: dvla::members_before.
#pragma once

#include <boost/hana/accessors.hpp>
#include <boost/hana/adapt_struct.hpp>
#include <boost/hana/concat.hpp>
#include <boost/hana/pair.hpp>
#include <boost/hana/string.hpp>
#include <boost/hana/tuple.hpp>
#include <concepts>
#include <cstddef>
#include <string_view>
#include <utility>

namespace dvla {

namespace detail {

template <auto Member>
constexpr std::string_view member_name() {
  constexpr std::string_view all = __PRETTY_FUNCTION__;  // "... [with auto Member = &Struct::name; ...]"
  constexpr std::size_t begin = all.find("Member = ") + 9;
  constexpr std::string_view value = all.substr(begin, all.find_first_of(";]", begin) - begin);
  return value.substr(value.rfind(':') + 1);
}

template <auto Member>
inline constexpr std::string_view name_of_member = member_name<Member>();

template <auto Member, std::size_t... I>
constexpr auto accessor(std::index_sequence<I...>) {
  return boost::hana::make_pair(boost::hana::string_c<name_of_member<Member>[I]...>,
                                boost::hana::struct_detail::member_ptr<decltype(Member), Member>{});
}

}  // namespace detail

template <auto... Members>
struct members {
  static constexpr auto apply() {
    return boost::hana::make_tuple(
        detail::accessor<Members>(std::make_index_sequence<detail::name_of_member<Members>.size()>{})...);
  }
};

template <class Base, auto... Members>
struct more_members {
  static constexpr auto apply() {
    return boost::hana::concat(boost::hana::accessors<Base>(), members<Members...>::apply());
  }
};
template <class Base, auto... Members>
struct members_before {
  static constexpr auto apply() {
    return boost::hana::concat(members<Members...>::apply(), boost::hana::accessors<Base>());
  }
};

}  // namespace dvla
