// dvla-test: asan tsan
// Messages as a hostile or damaged peer would send them: each is refused, at once.
#include <doctest/doctest.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dvla/control_plane/broadcast.hpp"
#include "dvla/core/random.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace std::chrono_literals;
using dvla::Refusal;
using dvla::detail::MessageBytes;
using dvla::detail::MessageKind;
using dvla::detail::PlaneMessage;

namespace {

/// Of version 6, after 5.
PlaneMessage good(std::int64_t version = 6) {
  PlaneMessage message;
  message.kind = MessageKind::part;
  message.batch = version;
  message.bytes = 4000;
  message.fingerprint = 77;
  return message;
}
Refusal refusal(const MessageBytes& bytes) {
  PlaneMessage message;
  return dvla::detail::read_message(bytes, message) ? dvla::detail::check_weights(message, good(5))
                                                    : Refusal::malformed;
}
Refusal refusal(const std::function<void(PlaneMessage&)>& change) {
  PlaneMessage message = good();
  change(message);
  return refusal(dvla::detail::write_message(message));
}

}  // namespace

TEST_CASE("A message that may follow is taken, and every other refused") {
  CHECK(refusal([](auto&) {}) == Refusal::none);
  CHECK(refusal([](auto& m) { m.magic = 1; }) == Refusal::malformed);
  CHECK(refusal([](auto& m) { m.format = 1; }) == Refusal::malformed);
  CHECK(refusal([](auto& m) { m.actor = 2; }) == Refusal::foreign);
  CHECK(refusal([](auto& m) { m.rollout = 2; }) == Refusal::foreign);
  CHECK(refusal([](auto& m) { m.incarnation = 3; }) == Refusal::incarnation);
  CHECK(refusal([](auto& m) { m.fingerprint = 78; }) == Refusal::layout);
  CHECK(refusal([](auto& m) { m.batch = 5; }) == Refusal::outdated);
  CHECK(refusal([](auto& m) { m.batch = -9; }) == Refusal::malformed);
  CHECK(refusal([](auto& m) { m.kind = MessageKind::hello; }) == Refusal::malformed);
  CHECK(refusal([](auto& m) { m.kind = static_cast<MessageKind>(99); }) == Refusal::malformed);
  for (const std::int64_t bytes : {std::int64_t{1} << 60, std::int64_t{0}})
    CHECK(refusal([&](auto& m) { m.bytes = bytes; }) == Refusal::layout);
  CHECK(refusal([](auto& m) { m.kind = MessageKind::goodbye; }) == Refusal::none);
  CHECK(refusal([](auto& m) {
          m.kind = MessageKind::goodbye;
          m.batch = 4;
        }) == Refusal::outdated);
}

TEST_CASE("A message with any bit turned, and any bytes at random, are refused") {
  for (std::size_t bit = 0; bit < dvla::detail::message_bytes * 8; ++bit) {
    MessageBytes bytes = dvla::detail::write_message(good());
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    CHECK(refusal(bytes) != Refusal::none);
  }
  dvla::SplitMix64 random(1);
  for (int i = 0; i < 20000; ++i) {
    MessageBytes bytes;
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
      const std::uint64_t word = random();
      std::memcpy(bytes.data() + at, &word, 8);
    }
    if (i % 2 == 0) std::memcpy(bytes.data(), &PlaneMessage::magic_number, 4);
    CHECK(refusal(bytes) != Refusal::none);
  }
}

TEST_CASE("Whatever an actor sends, a rollout neither crashes nor hangs nor takes what is not proven") {
  dvla::SplitMix64 random(5);
  const std::size_t bytes = 12000;
  const auto identity = dvla::detail::PartLayout(dvla::equal_parts(bytes, 1)[0]).identity;
  for (int round = 0; round < 150; ++round) {
    auto clusters = dvla::testing::ThreadCluster::make(2);
    std::jthread actor([&] {
      try {
        auto channel = clusters[1]->channel("weights/0/0/0", 0, 5s);
        std::vector<std::byte> part(bytes, std::byte{1});
        std::int64_t version = -1;
        for (int i = 0; i < 4; ++i) {  // good ones first, then one that is not
          const bool bad = i == 3 || random() % 4 == 0;
          PlaneMessage message = good(version += 1);
          message.fingerprint = identity;
          part[random() % part.size()] ^= std::byte{1};
          message.bytes = static_cast<std::int64_t>(part.size());
          const std::uint64_t sum = dvla::checksum(part) + (bad ? 1 : 0);
          if (bad && random() % 2 == 0) message.bytes += static_cast<std::int64_t>(random() % 3) - 1;
          MessageBytes head = dvla::detail::write_message(message);
          if (bad && random() % 4 == 0) head[random() % head.size()] ^= std::byte{2};
          channel->send(head, 5s);
          channel->send(part, 5s);
          channel->send(std::as_bytes(std::span(&sum, 1)), 5s);
          if (bad) break;
        }
      } catch (const dvla::PeerError&) {  // refused
      }
    });
    dvla::BroadcastWeightPlane plane(bytes, {}, {}, *clusters[0], dvla::Roles{{0}, {1}}, 0, 5s,
                                     *std::pmr::new_delete_resource());
    std::vector<std::byte> all(bytes);
    const std::vector<dvla::WeightUnit> units{{.values = all}};
    std::string end;
    std::int64_t last = -1;
    try {
      for (;;) last = plane.receive(units, last + 1, 5s);
    } catch (const dvla::PeerError& error) {
      end = error.what();
    }
    CHECK(end.find("which is lost: ") != std::string::npos);
    CHECK(plane.latest() == last);
  }
}

TEST_CASE("Streams that fail each by itself, at once, are one failure") {
  constexpr std::size_t streams = 3;
  for (int round = 0; round < 20; ++round) {
    auto clusters = dvla::testing::ThreadCluster::make(2);
    std::array<std::vector<std::unique_ptr<dvla::Channel>>, 2> ends;
    for (std::size_t stream = 0; stream < streams; ++stream) {
      const std::string name = "weights/0/0/0/" + std::to_string(stream);
      std::jthread other([&] { ends[1].push_back(clusters[1]->channel(name, 0, 5s)); });
      ends[0].push_back(clusters[0]->channel(name, 1, 5s));
    }
    dvla::detail::WeightStreams there(std::move(ends[0]));
    std::vector<std::byte> part(streams << 22);
    // Each waits for longer than this.
    CHECK_THROWS_AS(there.receive_part(part, 1ms), dvla::Error);
  }
}
