// How weights cross the channels of a pair, by the messages of placement/plane_message.hpp: `part` announces a
// version, then come its bytes in pieces and a checksum of them (XXH3-64, 8 bytes), made at both ends while a
// piece is in the cache (sent with a checksum made before, a GiB takes half as long again); `goodbye` says that
// no more will come, and is answered by `accepted`. A rollout checks a message before it takes a byte of the
// weights.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/checksum.hpp"
#include "dvla/placement/channel.hpp"
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

/// Streams that this many bytes are worth, of `most`: a thread more pays from some MiB on.
inline std::size_t weight_streams(std::size_t bytes, std::size_t most) {
  return std::clamp<std::size_t>(bytes >> 22, 1, most);
}

/// The channels of a pair as one: messages go over the first, large parts over all, a thread each: while one
/// waits for the peer or makes a checksum, another moves bytes.
class WeightStreams final : public Channel {
 public:
  /// One channel or more, the same number at both ends.
  explicit WeightStreams(std::vector<std::unique_ptr<Channel>> channels) : channels_(std::move(channels)) {}

  void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) override {
    channels_.front()->send(bytes, limit);
  }
  void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) override {
    channels_.front()->receive(bytes, limit);
  }
  void close() noexcept override {
    for (const auto& channel : channels_) channel->close();
  }
  const std::string& peer() const override { return channels_.front()->peer(); }

  /// `limit`: of each piece.
  void send_part(std::span<const std::byte> part, std::chrono::nanoseconds limit) {
    const std::uint64_t sum =
        carry(part, [&](Channel& channel, std::span<const std::byte> piece, Checksum& all) {
          all.update(piece);
          channel.send(piece, limit);
        });
    send(std::as_bytes(std::span(&sum, 1)), limit);
  }
  /// False: what came does not match its checksum.
  bool receive_part(std::span<std::byte> part, std::chrono::nanoseconds limit) {
    const std::uint64_t sum = carry(part, [&](Channel& channel, std::span<std::byte> piece, Checksum& all) {
      channel.receive(piece, limit);
      all.update(piece);
    });
    std::uint64_t theirs = 0;
    receive(std::as_writable_bytes(std::span(&theirs, 1)), limit);
    return sum == theirs;
  }

 private:
  /// Pieces are dealt to the channels in turn. Returns the checksum of the only one, or of the checksums of
  /// all. One that fails closes the others, so that nobody waits; what it threw is thrown.
  template <class Byte, class Move>
  std::uint64_t carry(std::span<Byte> part, Move move) {
    const std::size_t count = weight_streams(part.size(), channels_.size());
    // Few waits for the peer where nothing goes on meanwhile, else what a core's own cache holds.
    const std::size_t size = std::size_t{count == 1 ? 4U : 1U} << 20;
    std::vector<std::uint64_t> sums(count);
    std::vector<std::future<void>> streams;
    std::mutex failing;
    std::exception_ptr first;
    for (std::size_t which = 0; which < count; ++which)
      streams.push_back(std::async(which > 0 ? std::launch::async : std::launch::deferred, [&, which] {
        try {
          Checksum sum;
          for (std::size_t at = which * size; at < part.size(); at += count * size)
            move(*channels_[which], part.subspan(at, std::min(size, part.size() - at)), sum);
          sums[which] = sum.value();
        } catch (...) {
          const std::scoped_lock lock(failing);
          if (!first) first = std::current_exception();
          close();
        }
      }));
    for (std::future<void>& stream : streams) stream.get();
    if (first) std::rethrow_exception(first);
    return count == 1 ? sums[0] : checksum(std::as_bytes(std::span(sums)));
  }

  const std::vector<std::unique_ptr<Channel>> channels_;
};

}  // namespace dvla::detail
