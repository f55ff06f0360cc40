// The one message of both planes between processes, both ways: what announces a part of a batch or of a
// version's weights, and what answers. What the planes say with it stands in data_plane/wire.hpp and
// control_plane/weight_wire.hpp. Both ends are little-endian (x86-64, AArch64).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "dvla/core/checksum.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla {

static_assert(std::endian::native == std::endian::little);

/// Why a message was refused. The data plane's report counts by reason.
enum class Refusal : std::uint32_t {
  none,
  malformed,    ///< no message of this program: magic, version, kind, or its own checksum
  foreign,      ///< from another rollout, for another actor, or a route that is not in the plan
  incarnation,  ///< from a process that has been replaced since
  layout,       ///< another number of bytes, or other fields or parts, than here
  outdated,  ///< of one that is being trained on, or that was; of a version that came, or before one that did
  early,     ///< of a batch further ahead than both sides' buffers allow
  duplicate,  ///< came already
  damaged,    ///< its checksum is wrong
  ended,      ///< the actor trains on no more batches
  count_
};
inline std::string_view refusal_name(Refusal refusal) {
  static constexpr std::array<std::string_view, static_cast<std::size_t>(Refusal::count_)> names{
      "none",     "malformed", "foreign",   "incarnation", "layout",
      "outdated", "early",     "duplicate", "damaged",     "ended"};
  return names.at(static_cast<std::size_t>(refusal));
}

namespace detail {

enum class MessageKind : std::uint16_t { hello = 1, offer, start, part, go, accepted, refused, goodbye };

/// The one message, both ways.
struct PlaneMessage {
  static constexpr std::uint32_t magic_number = 0x616c7644;  // "Dvla"
  static constexpr std::uint16_t format_version = 2;

  std::uint32_t magic = magic_number;
  std::uint16_t format = format_version;
  MessageKind kind = MessageKind::hello;
  std::int32_t rollout = 0;
  std::int32_t actor = 0;
  std::int64_t incarnation = 0;
  std::int64_t batch = 0;  ///< or version. hello: first wished; offer: first possible; goodbye: the last
  std::int64_t first_group = 0;  ///< of the part, among the rollout's own
  std::int64_t groups = 0;
  std::int64_t bytes = 0;  ///< of the part, without its checksum; hello: number of buffers
  std::int64_t oldest_version = 0;
  std::int64_t env_steps = 0;
  std::int64_t chunk_steps = 0;
  std::uint64_t fingerprint = 0;  ///< data: hello's, of plan and layout; weights: of the part's layout
  Refusal refusal = Refusal::none;
  std::uint32_t unused = 0;
  std::uint64_t own_checksum = 0;  ///< over all before it
};
inline constexpr std::size_t message_bytes = 104;
static_assert(sizeof(PlaneMessage) == message_bytes && std::is_trivially_copyable_v<PlaneMessage> &&
              std::has_unique_object_representations_v<PlaneMessage>);
using MessageBytes = std::array<std::byte, message_bytes>;

inline MessageBytes write_message(PlaneMessage message) {
  MessageBytes bytes;
  std::memcpy(bytes.data(), &message, bytes.size());
  message.own_checksum = checksum(std::span(bytes).first(message_bytes - sizeof(std::uint64_t)));
  std::memcpy(bytes.data(), &message, bytes.size());
  return bytes;
}

/// False: these bytes are no message; `message` is then unspecified. A message that is read has a known kind
/// and no negative number but versions.
inline bool read_message(const MessageBytes& bytes, PlaneMessage& message) {
  std::memcpy(&message, bytes.data(), bytes.size());
  return message.magic == PlaneMessage::magic_number && message.format == PlaneMessage::format_version &&
         message.own_checksum == checksum(std::span(bytes).first(message_bytes - sizeof(std::uint64_t))) &&
         message.kind >= MessageKind::hello && message.kind <= MessageKind::goodbye &&
         message.refusal < Refusal::count_ && message.batch >= -1 &&
         std::min({std::int64_t{message.rollout}, std::int64_t{message.actor}, message.incarnation,
                   message.first_group, message.groups, message.bytes, message.env_steps,
                   message.chunk_steps}) >= 0;
}

/// Whether a message of that incarnation, between that rollout and that actor, is this one's.
inline Refusal check_pair(const PlaneMessage& message, int rollout, int actor, std::int64_t incarnation) {
  if (message.rollout != rollout || message.actor != actor) return Refusal::foreign;
  return message.incarnation == incarnation ? Refusal::none : Refusal::incarnation;
}
/// False: what came is no message; `message` is then empty.
inline bool receive_message(Channel& channel, std::chrono::nanoseconds limit, PlaneMessage& message) {
  MessageBytes bytes;
  channel.receive(bytes, limit);
  if (read_message(bytes, message)) return true;
  message = {};
  return false;
}

}  // namespace detail
}  // namespace dvla
