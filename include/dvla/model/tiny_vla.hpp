// TinyVLA's machinery: a vision-language-action model of about 0.6 M parameters that learns in minutes on a
// CPU, with discrete tokens (as OpenVLA-OFT) or flow matching (as pi0.5) as its action head. Needs torch.
#pragma once

#include <string_view>

#include "dvla/core/machinery.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/flow_head.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/tiny_vla_network.hpp"
#include "dvla/model/token_head.hpp"

namespace dvla {

namespace detail {
/// From a head's name (with its knobs, which derive from TinyVlaKnobs) to its arithmetic. Specialise it for a
/// head of your own: a class with the members of TokenHeadMachinery.
template <class Head>
struct tiny_vla_head;
template <>
struct tiny_vla_head<TokenHead> {
  using type = TokenHeadMachinery;
};
template <>
struct tiny_vla_head<FlowHead> {
  using type = FlowHeadMachinery;
};

template <class HeadName>
struct TinyVlaParts {
  static constexpr std::string_view name = "TinyVLA";
  using knobs = typename HeadName::knobs;
  using Network = TinyVlaNetwork;
  using Head = typename tiny_vla_head<HeadName>::type;
};
}  // namespace detail

/// One thread at a time per object; objects share nothing. Errors: as NetworkModel's.
template <class Head>
using TinyVlaModel = NetworkModel<detail::TinyVlaParts<Head>>;

template <class Head, class Pipeline>
struct machinery<TinyVLA<Head>, Pipeline> {
  using type = TinyVlaModel<Head>;
};

}  // namespace dvla
