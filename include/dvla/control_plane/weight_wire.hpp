// How weights cross the channel of a pair, by the messages of placement/plane_message.hpp: `part` announces a
// version, then come its bytes in pieces and a checksum of them (XXH3-64, 8 bytes), made at both ends while
// another piece travels; `goodbye` says that no more will come, and is answered by `accepted`. A rollout checks a
// message before it takes a byte of the weights.
#pragma once

#include "dvla/placement/plane_message.hpp"

namespace dvla::detail {

/// What is wrong with a message where `expected` announces the last version that came from that actor.
inline Refusal check_weights(const PlaneMessage& message, const PlaneMessage& expected) {
  const Refusal pair = check_pair(message, expected.rollout, expected.actor, expected.incarnation);
  if (pair != Refusal::none) return pair;
  if (message.fingerprint != expected.fingerprint) return Refusal::layout;
  if (message.kind == MessageKind::goodbye)
    return message.batch >= expected.batch ? Refusal::none : Refusal::outdated;
  if (message.kind != MessageKind::part) return Refusal::malformed;
  if (message.batch <= expected.batch) return Refusal::outdated;
  return message.bytes == expected.bytes ? Refusal::none : Refusal::layout;
}

}  // namespace dvla::detail
