// How weights cross the channel of a pair, by the messages of placement/plane_message.hpp: `part` announces a
// version, then come its bytes in pieces and a checksum of them (XXH3-64, 8 bytes), made at both ends beside
// the sends and receives; `goodbye` says that no more will come, and is answered by `accepted`. A rollout
// checks a message before it takes a byte of the weights.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dvla/core/checksum.hpp"
#include "dvla/placement/peers.hpp"
#include "dvla/placement/plane_message.hpp"

namespace dvla::detail {

/// What is wrong with a message where `expected` announces the last version that came from that actor.
inline Refusal check_weights(const PlaneMessage& message, const PlaneMessage& expected) {
  if (message.actor != expected.actor || message.rollout != expected.rollout) return Refusal::foreign;
  if (message.incarnation != expected.incarnation) return Refusal::incarnation;
  if (message.fingerprint != expected.fingerprint) return Refusal::layout;
  if (message.kind == MessageKind::goodbye)
    return message.batch >= expected.batch ? Refusal::none : Refusal::outdated;
  if (message.kind != MessageKind::part) return Refusal::malformed;
  if (message.batch <= expected.batch) return Refusal::outdated;
  return message.bytes == expected.bytes ? Refusal::none : Refusal::layout;
}

/// Sends a part; `limit`: of each piece.
inline void send_part(Channel& channel, std::span<const std::byte> part, std::chrono::nanoseconds limit) {
  Checksum sum;
  in_turns(
      pieces_of(part.size()), [&](std::size_t i) { sum.update(piece_of(part, i)); },
      [&](std::size_t i) { channel.send(piece_of(part, i), limit); });
  const std::uint64_t value = sum.value();
  channel.send(std::as_bytes(std::span(&value, 1)), limit);
}
/// False: what came does not match its checksum.
inline bool receive_part(Channel& channel, std::span<std::byte> part, std::chrono::nanoseconds limit) {
  Checksum sum;
  in_turns(
      pieces_of(part.size()), [&](std::size_t i) { channel.receive(piece_of(part, i), limit); },
      [&](std::size_t i) { sum.update(piece_of(part, i)); });
  std::uint64_t theirs = 0;
  channel.receive(std::as_writable_bytes(std::span(&theirs, 1)), limit);
  return sum.value() == theirs;
}

}  // namespace dvla::detail
