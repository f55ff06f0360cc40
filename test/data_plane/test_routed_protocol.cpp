// dvla-test: tsan asan
// An actor against a rollout that is not what it should be: spoken by hand over a bare channel. Every message
// that cannot be right is refused with its reason and counted, and the right ones still get through.
#include <doctest/doctest.h>

#include <future>

#include "routed_job.hpp"

using dvla::Refusal;
using dvla::testing::ThreadCluster;
using namespace dvla::detail;
using namespace routed_job;

namespace {

const Job job{.roles = {{0}, {1}}, .deadline = 5s};

/// A rollout by hand. It knows what the plane's own would say by listening to one.
struct Speaker {
  std::shared_ptr<dvla::Channel> channel;
  std::uint64_t fingerprint = 0;
  PlaneMessage last_answer;

  PlaneMessage message(MessageKind kind, std::int64_t batch) const {
    PlaneMessage message;
    message.kind = kind;
    message.batch = batch;
    message.fingerprint = fingerprint;
    message.bytes = 2;
    return message;
  }
  PlaneMessage part(std::int64_t batch) const {
    PlaneMessage part = message(MessageKind::part, batch);
    part.groups = job.groups_per_rollout;
    part.bytes = job.bytes_of(job.plan().routes[0]);
    part.oldest_version = batch + 100;
    return part;
  }
  PlaneMessage answer() {
    MessageBytes bytes;
    channel->receive(bytes, 5s);
    REQUIRE(read_message(bytes, last_answer));
    return last_answer;
  }
  PlaneMessage ask(const PlaneMessage& message) { return ask(write_message(message)); }
  PlaneMessage ask(const MessageBytes& bytes) {
    channel->send(bytes, 5s);
    return answer();
  }
  void must_refuse(const PlaneMessage& message, Refusal why) {
    const PlaneMessage said = ask(message);
    CHECK(said.kind == MessageKind::refused);
    CHECK(dvla::refusal_name(said.refusal) == dvla::refusal_name(why));
  }
  void greet() {
    CHECK(ask(message(MessageKind::hello, 0)).kind == MessageKind::offer);
    CHECK(last_answer.batch == 0);
    CHECK(ask(message(MessageKind::start, 0)).kind == MessageKind::accepted);
  }
  /// The bytes and the checksum of a right part; one bit is changed under it to `spoil` them. The answer.
  PlaneMessage send_batch(std::int64_t batch, bool spoil) {
    CHECK(ask(part(batch)).kind == MessageKind::go);
    dvla::OwnedRecord<Trajectory> record(layout(job.shape, job.episodes_per_rollout()),
                                         *std::pmr::new_delete_resource());
    for (std::int64_t i = 0; i < job.episodes_per_rollout(); ++i)
      write_episode(*record, i, id_of(batch, i), static_cast<std::int32_t>(i / job.shape.group), batch + 100);
    const Strips strips = column_strips(*record, job.episodes_per_rollout(), 0, job.episodes_per_rollout());
    std::vector<std::byte> bytes(bytes_in(strips));
    StripCursor from(strips);
    gather(record.block().data(), from, bytes);
    const std::uint64_t seal = dvla::checksum(bytes);
    if (spoil) bytes[bytes.size() / 2] ^= std::byte{1};
    channel->send(bytes, 5s);
    channel->send(std::as_bytes(std::span(&seal, 1)), 5s);
    return answer();
  }
};

/// The plane's own fingerprint of this job.
std::uint64_t fingerprint() {
  dvla::Checksum sum;
  const std::string plan = serialise(job.plan());
  sum.update(std::as_bytes(std::span(plan)));
  fingerprint_layout(layout(job.shape, job.episodes_per_rollout()), sum);
  return sum.value();
}

/// `speak` on rank 0 against a real actor on rank 1, which runs `train`.
template <class Speak, class Train>
Ledger against_actor(Speak speak, Train train) {
  const auto ranks = ThreadCluster::make(2);
  std::jthread rollout([&] {
    Speaker speaker{ranks[0]->channel(Plane::channel_name(0, 0, 0), 1, 5s), fingerprint(), {}};
    try {
      speak(speaker);
    } catch (const std::exception& error) {
      FAIL_CHECK(error.what());
    }
  });
  Ledger ledger;
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  const auto plane = job.plane(*ranks[1], pool);
  try {
    train(*plane, ledger);
  } catch (const std::exception& error) {
    ledger.failure = error.what();
  }
  rollout.join();
  ledger.report = plane->report();
  return ledger;
}
std::int64_t refused(const Ledger& ledger, Refusal why) {
  return ledger.report.refused[static_cast<std::size_t>(why)];
}

}  // namespace

TEST_CASE("Messages that cannot be right are refused with their reason, and the right ones get through") {
  std::promise<void> tried;  // while the actor has not taken batch 0
  const Ledger ledger = against_actor(
      [&](Speaker& speaker) {
        speaker.greet();
        CHECK(speaker.send_batch(0, false).kind == MessageKind::accepted);
        auto wrong = [&](std::int64_t batch, Refusal why, auto change) {
          PlaneMessage part = speaker.part(batch);
          change(part);
          speaker.must_refuse(part, why);
        };
        wrong(0, Refusal::duplicate, [](PlaneMessage&) {});
        wrong(1, Refusal::foreign, [](PlaneMessage& part) { part.rollout = 1; });
        wrong(1, Refusal::foreign, [](PlaneMessage& part) { part.actor = 1; });
        wrong(1, Refusal::foreign, [](PlaneMessage& part) { part.first_group = 1; });
        wrong(1, Refusal::foreign, [](PlaneMessage& part) { part.groups = 1; });
        wrong(1, Refusal::incarnation, [](PlaneMessage& part) { part.incarnation = 3; });
        wrong(1, Refusal::layout, [](PlaneMessage& part) { part.bytes += 1; });
        wrong(1, Refusal::early, [](PlaneMessage& part) { part.batch = std::int64_t{1} << 62; });
        wrong(1, Refusal::malformed, [](PlaneMessage& part) { part.kind = MessageKind::hello; });
        wrong(1, Refusal::malformed, [](PlaneMessage& part) { part.kind = MessageKind::accepted; });
        MessageBytes noise{};
        CHECK(speaker.ask(noise).kind == MessageKind::refused);
        noise.fill(std::byte{0xff});
        CHECK(speaker.ask(noise).refusal == Refusal::malformed);
        tried.set_value();
        for (std::int64_t batch = 1; batch < 5; ++batch)
          CHECK(speaker.send_batch(batch, false).kind == MessageKind::accepted);
        wrong(-1, Refusal::outdated, [](PlaneMessage&) {});
        wrong(0, Refusal::outdated, [](PlaneMessage&) {});
        CHECK(speaker.ask(speaker.message(MessageKind::goodbye, 4)).kind == MessageKind::accepted);
      },
      [&](Plane& plane, Ledger& training) {
        tried.get_future().wait_for(20s);
        job.train(plane, 10, training);
      });
  CHECK(sum_of({ledger}).wrong == "");
  CHECK(ledger.trained.size() == static_cast<std::size_t>(5 * job.episodes_per_rollout()));
  CHECK(refused(ledger, Refusal::duplicate) == 1);
  CHECK(refused(ledger, Refusal::foreign) == 4);
  CHECK(refused(ledger, Refusal::incarnation) == 1);
  CHECK(refused(ledger, Refusal::layout) == 1);
  CHECK(refused(ledger, Refusal::early) == 1);
  CHECK(refused(ledger, Refusal::malformed) == 4);
  CHECK(refused(ledger, Refusal::outdated) == 2);
}

TEST_CASE("A damaged part is not put into the batch: its columns are lost, and the next part is in step") {
  const Ledger ledger = against_actor(
      [](Speaker& speaker) {
        speaker.greet();
        CHECK(speaker.send_batch(0, true).refusal == Refusal::damaged);
        CHECK(speaker.send_batch(1, false).kind == MessageKind::accepted);
        CHECK(speaker.ask(speaker.message(MessageKind::goodbye, 1)).kind == MessageKind::accepted);
      },
      [](Plane& plane, Ledger& training) { job.train(plane, 10, training); });
  CHECK(sum_of({ledger}).wrong == "");
  CHECK(ledger.trained.size() == static_cast<std::size_t>(job.episodes_per_rollout()));
  CHECK(ledger.empty_columns == job.episodes_per_rollout());
  CHECK(ledger.report.lost == job.episodes_per_rollout());
  CHECK(refused(ledger, Refusal::damaged) == 1);
}

TEST_CASE("A greeting that does not fit is refused with its reason, and the rollout is lost") {
  const auto with = [](Refusal why, auto change) {
    const Ledger ledger = against_actor(
        [&](Speaker& speaker) {
          PlaneMessage hello = speaker.message(MessageKind::hello, 0);
          change(hello);
          speaker.must_refuse(hello, why);
        },
        [](Plane& plane, Ledger&) {
          for (int i = 0; i < 2000 && plane.report().senders[0].present; ++i)
            std::this_thread::sleep_for(1ms);
        });
    CHECK_FALSE(ledger.report.senders[0].present);
    CHECK(ledger.report.senders[0].why ==
          "rank 0 (rollout 0) was refused: " + std::string(dvla::refusal_name(why)));
  };
  with(Refusal::layout, [](PlaneMessage& hello) { ++hello.fingerprint; });
  with(Refusal::foreign, [](PlaneMessage& hello) { hello.rollout = 2; });
  with(Refusal::foreign, [](PlaneMessage& hello) { hello.actor = 2; });
  with(Refusal::incarnation, [](PlaneMessage& hello) { hello.incarnation = 1; });
  with(Refusal::malformed, [](PlaneMessage& hello) { hello.kind = MessageKind::part; });
  with(Refusal::malformed, [](PlaneMessage& hello) { hello.batch = -1; });
}

TEST_CASE("Two programs with different layouts do not start: both ranks say so") {
  const auto ranks = ThreadCluster::make(2);
  Job other = job;
  other.shape.decisions = 4;
  other.deadline = 5s;
  std::jthread actor([&] {
    dvla::EnvironmentPool pool(std::size_t{1} << 20);
    const auto plane = job.plane(*ranks[1], pool);
    for (int i = 0; i < 2000 && plane->report().senders[0].present; ++i) std::this_thread::sleep_for(1ms);
    CHECK(plane->report().senders[0].why.find("was refused: layout") != std::string::npos);
  });
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  CHECK_THROWS_AS(other.plane(*ranks[0], pool), dvla::Error);
  actor.join();
  CHECK(pool.report().live == 0);
}

TEST_CASE("Bytes at random instead of messages: all refused, nothing crashes, the rollout is still served") {
  const Ledger ledger = against_actor(
      [](Speaker& speaker) {
        speaker.greet();
        dvla::SplitMix64 random(9);
        for (int round = 0; round < 2000; ++round) {
          MessageBytes bytes = write_message(speaker.part(static_cast<std::int64_t>(random() % 3)));
          if (round % 2 == 0)
            for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
          bytes[random() % bytes.size()] ^= static_cast<std::byte>(1 + random() % 255);
          CHECK(speaker.ask(bytes).kind == MessageKind::refused);
          CHECK(speaker.last_answer.refusal == Refusal::malformed);
        }
        CHECK(speaker.send_batch(0, false).kind == MessageKind::accepted);
        CHECK(speaker.ask(speaker.message(MessageKind::goodbye, 0)).kind == MessageKind::accepted);
      },
      [](Plane& plane, Ledger& training) { job.train(plane, 10, training); });
  CHECK(sum_of({ledger}).wrong == "");
  CHECK(refused(ledger, Refusal::malformed) == 2000);
  CHECK(ledger.trained.size() == static_cast<std::size_t>(job.episodes_per_rollout()));
}

TEST_CASE(
    "A rollout that stops in the middle of a part is lost after the deadline, and its columns are empty") {
  Job hasty = job;
  hasty.deadline = 500ms;
  const auto ranks = ThreadCluster::make(2);
  std::jthread rollout([&] {
    Speaker speaker{ranks[0]->channel(Plane::channel_name(0, 0, 0), 1, 5s), fingerprint(), {}};
    speaker.greet();
    CHECK(speaker.ask(speaker.part(0)).kind == MessageKind::go);
    std::byte never{};
    CHECK_THROWS_AS(speaker.channel->receive(std::span(&never, 1), 5s), dvla::PeerError);
  });
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  const auto plane = hasty.plane(*ranks[1], pool);
  dvla::Token token{.batch = 0};
  bool arrived = false;
  for (int i = 0; i < 5 && !arrived; ++i) {  // the receiver has the same deadline as the lane that waits
    try {
      arrived = plane->arrive(token);
    } catch (const dvla::DeadlineError& error) {
      CHECK(std::string(error.what()).find("for batch 0: missing is rank 0 (rollout 0)") !=
            std::string::npos);
    }
  }
  REQUIRE(arrived);
  CHECK(plane->arrival(token).lost == job.episodes_per_rollout());
  CHECK(plane->consume(token).transition.group[0] == -1);
  rollout.join();
  for (int i = 0; i < 2000 && plane->report().senders[0].present; ++i) std::this_thread::sleep_for(1ms);
  CHECK_FALSE(plane->report().senders[0].present);
  CHECK(plane->report().received == 0);
}
