// dvla-test: asan
// Columns of records as strips, and the one message: whatever bytes come, they are a message or they are not.
#include <doctest/doctest.h>

#include "dvla/testing/data_plane.hpp"
#include "routed_job.hpp"

using namespace dvla::detail;
using namespace routed_job;
using dvla::Refusal;

namespace {
PlaneMessage a_message(dvla::SplitMix64& random) {
  auto number = [&] { return static_cast<std::int64_t>(random() >> (1 + random() % 63)); };
  PlaneMessage message;
  message.kind = static_cast<MessageKind>(1 + random() % 8);
  message.rollout = static_cast<std::int32_t>(random() % 1000);
  message.actor = static_cast<std::int32_t>(random() % 1000);
  message.incarnation = number();
  message.batch = number() - 1 < 0 ? -1 : number();
  message.first_group = number();
  message.groups = number();
  message.bytes = number();
  message.oldest_version = static_cast<std::int64_t>(random());
  message.env_steps = number();
  message.chunk_steps = number();
  message.fingerprint = random();
  message.refusal = static_cast<Refusal>(random() % static_cast<std::uint64_t>(Refusal::count_));
  return message;
}
}  // namespace

TEST_CASE("A message that was written is read back; any single damage is seen") {
  dvla::SplitMix64 random(1);
  for (int round = 0; round < 2000; ++round) {
    const PlaneMessage message = a_message(random);
    MessageBytes bytes = write_message(message);
    PlaneMessage read;
    REQUIRE(read_message(bytes, read));
    CHECK(write_message(read) == bytes);
    CHECK(read.kind == message.kind);
    CHECK(read.batch == message.batch);
    CHECK(read.chunk_steps == message.chunk_steps);
    CHECK(read.refusal == message.refusal);
    bytes[random() % bytes.size()] ^= static_cast<std::byte>(1U << random() % 8);
    CHECK_FALSE(read_message(bytes, read));
  }
}

TEST_CASE("Random bytes, and forged messages with a right checksum, are never read as what they are not") {
  dvla::SplitMix64 random(2);
  PlaneMessage read;
  for (int round = 0; round < 20000; ++round) {
    MessageBytes bytes;
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    CHECK_FALSE(read_message(bytes, read));
    bytes = write_message(a_message(random));  // a field at random, then the checksum made right again
    for (std::uint64_t i = random() % 16, at = random() % (bytes.size() - 24); i > 0; --i)
      bytes[at + i % 16] = static_cast<std::byte>(random());
    const std::uint64_t sum = dvla::checksum(std::span(bytes).first(bytes.size() - 8));
    std::memcpy(bytes.data() + bytes.size() - 8, &sum, 8);
    if (!read_message(bytes, read)) continue;
    CHECK(read.kind >= MessageKind::hello);
    CHECK(read.kind <= MessageKind::goodbye);
    CHECK(read.refusal < Refusal::count_);
    CHECK(read.batch >= -1);
    CHECK(std::min({read.first_group, read.groups, read.bytes, read.incarnation, read.env_steps}) >= 0);
  }
}

TEST_CASE("Columns of a record go out and come back in any number of steps, into a batch of another width") {
  const Shape shape;
  dvla::OwnedRecord<Trajectory> from(layout(shape, 6), *std::pmr::new_delete_resource());
  dvla::OwnedRecord<Trajectory> to(layout(shape, 10), *std::pmr::new_delete_resource());
  dvla::testing::scribble(*from, 1);
  dvla::testing::scribble(*to, 2);
  for (std::int64_t i = 0; i < 6; ++i)
    write_episode(*from, i, id_of(5, i), static_cast<std::int32_t>(i / 2), 7);
  const Strips source = column_strips(*from, 6, 2, 4), sink = column_strips(*to, 10, 4, 4);
  const std::size_t size = bytes_in(source);
  CHECK(size == bytes_in(sink));
  const auto before = std::vector<std::byte>(to.block().begin(), to.block().end());

  dvla::SplitMix64 random(3);
  StripCursor out(source), in(sink);
  std::vector<std::byte> chunk;
  for (std::size_t left = size; left > 0;) {
    chunk.resize(std::min<std::size_t>(1 + random() % 300, left));
    gather(from.block().data(), out, chunk);
    scatter(chunk, to.block().data(), in);
    left -= chunk.size();
  }
  to->id = 5;
  for (std::int64_t i = 0; i < 4; ++i) {
    CHECK(check_episode(*to, 4 + i) == "");
    CHECK(to->transition.episode.seed[4 + i] == id_of(5, 2 + i));
  }
  // Nothing else of the batch was touched.
  std::size_t changed = 0;
  for (std::size_t i = 0; i < before.size(); ++i) changed += before[i] != to.block()[i];
  CHECK(changed <= size);
  dvla::OwnedRecord<Trajectory> other(layout(shape, 10), *std::pmr::new_delete_resource());
  std::memcpy(other.block().data(), before.data(), before.size());
  copy_strips(from.block().data(), source, other.block().data(), sink);
  CHECK(dvla::record_checksum(*other) == dvla::record_checksum(*to));
  clear_strips(to.block().data(), sink);
  for (std::int64_t i = 4; i < 8; ++i) CHECK(to->transition.episode.seed[i] == 0);
}

TEST_CASE("The whole of a record is one strip a field; a field without episodes is refused by name") {
  const Trajectory whole = layout({}, 6);
  std::vector<std::size_t> fields;
  dvla::for_each_field(whole, [&](const char*, const auto& field) { fields.push_back(field.bytes()); });
  const Strips strips = column_strips(whole, 6, 0, 6);
  REQUIRE(strips.size() == fields.size());
  for (std::size_t i = 0; i < strips.size(); ++i) CHECK(strips[i].bytes == fields[i]);
  Trajectory odd = whole;
  odd.decision.bins = dvla::Field<std::int32_t>({6, 3});
  CHECK_THROWS_WITH_AS(column_strips(odd, 6, 0, 6), doctest::Contains("field 'bins' has 3 episodes"),
                       dvla::ConfigError);
  Trajectory elsewhere = whole;
  elsewhere.transition.observation.proprioception =
      dvla::Field<float>(whole.transition.observation.proprioception.extents(), nullptr, dvla::Device::cuda);
  CHECK_THROWS_WITH_AS(column_strips(elsewhere, 6, 0, 6),
                       "data plane: a message takes the field 'proprioception' on cpu, and it lies on cuda",
                       dvla::ConfigError);
}

TEST_CASE("Layouts that differ in more than the number of episodes have different fingerprints") {
  auto print = [](const Trajectory& trajectory) {
    dvla::Checksum sum;
    fingerprint_layout(trajectory, sum);
    return sum.value();
  };
  CHECK(print(layout({}, 6)) == print(layout({}, 10)));
  CHECK(print(layout({}, 6)) != print(layout({.decisions = 4}, 6)));
  CHECK(print(layout({}, 6)) != print(layout({.pixels = 9}, 6)));
}
