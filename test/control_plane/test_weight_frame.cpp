// dvla-test: asan tsan
// Frames as a hostile or damaged peer would send them: each is refused with one sentence, at once.
#include <doctest/doctest.h>

#include <functional>
#include <thread>

#include "dvla/control_plane/broadcast.hpp"
#include "dvla/core/random.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace std::chrono_literals;
using dvla::FrameKind;
using dvla::WeightFrame;
using Bytes = std::array<std::byte, 64>;

namespace {

/// Of version 6, after 5.
WeightFrame good(std::int64_t version = 6) {
  WeightFrame frame;
  frame.version = version;
  frame.bytes = 4000;
  frame.layout = 77;
  return frame;
}
std::string refusal(const Bytes& bytes) {
  try {
    dvla::read_frame(bytes, good(5), "rank 1 (actor 0)");
  } catch (const dvla::Error& error) {
    return error.what();
  }
  return "";
}
std::string refusal(const std::function<void(WeightFrame&)>& change) {
  WeightFrame frame = good();
  change(frame);
  return refusal(frame.bytes_of());
}
const std::string start = "control plane: a frame of weights from rank 1 (actor 0) ";

}  // namespace

TEST_CASE("A frame that may follow is taken, and every other refused in one sentence") {
  CHECK(refusal(good().bytes_of()) == "");
  CHECK(refusal([](auto& f) { f.magic = 1; }) ==
        start + "does not start as one; both ends must be the same version of dvla");
  CHECK(refusal([](auto& f) { f.actor = 2; }) ==
        start + "is of actor 2 for rollout 0, not of actor 0 for rollout 0");
  CHECK(refusal([](auto& f) { f.incarnation = 3; }) ==
        start + "is for incarnation 3 of this rollout, which is incarnation 0");
  CHECK(refusal([](auto& f) { f.layout = 78; }) ==
        start + "cuts the weights into other parts; trainer and sampler must have the same model and knobs");
  CHECK(refusal([](auto& f) { f.version = 5; }) ==
        start + "is version 5 after version 5; versions strictly increase");
  CHECK(refusal([](auto& f) { f.version = -9; }) ==
        start + "is version -9 after version 5; versions strictly increase");
  CHECK(refusal([](auto& f) { f.kind = static_cast<FrameKind>(9); }) ==
        start + "is of kind 9, which is none");
  CHECK(refusal([](auto& f) { f.bytes = 1ULL << 60; }) ==
        start + "announces 1152921504606846976 bytes instead of 4000");
  CHECK(refusal([](auto& f) { f.bytes = 0; }) == start + "announces 0 bytes instead of 4000");
  CHECK(refusal([](auto& f) {
          f.kind = FrameKind::end;
          f.bytes = 0;
          f.version = 4;
        }) == start + "ends the weights at version 4, but version 5 has come");
}

TEST_CASE("A frame with any bit turned, and any 64 bytes at random, are refused") {
  for (std::size_t bit = 0; bit < 512; ++bit) {
    Bytes bytes = good().bytes_of();
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    CHECK_FALSE(refusal(bytes).empty());
  }
  dvla::SplitMix64 random(1);
  for (int i = 0; i < 20000; ++i) {
    Bytes bytes;
    for (std::size_t at = 0; at < 64; at += 8) {
      const std::uint64_t word = random();
      std::memcpy(bytes.data() + at, &word, 8);
    }
    if (i % 2 == 0) std::memcpy(bytes.data(), &WeightFrame::expected_magic, 8);
    CHECK_FALSE(refusal(bytes).empty());
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
          WeightFrame frame;
          frame.layout = identity;
          frame.version = version += 1;
          part[random() % part.size()] ^= std::byte{1};
          frame.bytes = part.size();
          const std::uint64_t sum = dvla::checksum(part) + (bad ? 1 : 0);
          if (bad && random() % 2 == 0) frame.bytes += random() % 3 - 1;
          Bytes head = frame.bytes_of();
          if (bad && random() % 4 == 0) head[random() % 64] ^= std::byte{2};
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
