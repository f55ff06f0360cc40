// The table of a pipeline's nine policies: looked up by slot with a fold, and as a hana::map for those who
// iterate. Hana's map costs compile time only where P::table() is called.
#pragma once

#include <boost/hana/map.hpp>
#include <boost/hana/pair.hpp>
#include <boost/hana/type.hpp>
#include <type_traits>

#include "dvla/core/slot.hpp"

namespace dvla::detail {

template <class... Types>
struct list {};

using all_slots = list<environment_slot, model_slot, algorithm_slot, sharding_slot, data_plane_slot,
                       control_plane_slot, memory_slot, placement_slot, schedule_slot>;

/// The one of `Policies` that fills Slot.
template <class Policies, class Slot>
struct at_slot;
template <class First, class... Rest, class Slot>
struct at_slot<list<First, Rest...>, Slot>
    : std::conditional_t<PolicyFor<First, Slot>, std::type_identity<First>, at_slot<list<Rest...>, Slot>> {};

template <class... Policies>
constexpr auto table(list<Policies...>) {
  return boost::hana::make_map(
      boost::hana::make_pair(boost::hana::type_c<typename Policies::slot>, boost::hana::type_c<Policies>)...);
}

}  // namespace dvla::detail
