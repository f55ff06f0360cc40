// The table of a pipeline's nine policies as a hana::map, for those who iterate: what P::table() needs, in a
// header of its own because it is dear to compile.
#pragma once

#include <boost/hana/map.hpp>
#include <boost/hana/pair.hpp>
#include <boost/hana/type.hpp>

#include "dvla/core/slot.hpp"

namespace dvla::detail {

template <class... Policies>
constexpr auto table_of(list<Policies...>) {
  return boost::hana::make_map(
      boost::hana::make_pair(boost::hana::type_c<typename Policies::slot>, boost::hana::type_c<Policies>)...);
}

}  // namespace dvla::detail
