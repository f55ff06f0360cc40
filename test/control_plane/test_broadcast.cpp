// dvla-test: tsan asan
#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <memory_resource>
#include <thread>
#include <vector>

#include "dvla/control_plane/broadcast.hpp"
#include "dvla/core/random.hpp"
#include "dvla/testing/control_plane.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace std::chrono_literals;
using dvla::BroadcastWeightPlane;
using dvla::GlooKnobs;
using dvla::Roles;
using dvla::WeightPart;
using dvla::testing::ThreadCluster;
using Floats = std::vector<float>;

namespace {

const auto patience = 20s;
std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }

/// Runs each(rank) in a thread per rank; rethrows the first exception.
void on_ranks(int world, const std::function<void(int)>& each) {
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(world));
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < world; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          each(rank);
        } catch (...) {
          failures[static_cast<std::size_t>(rank)] = std::current_exception();
        }
      });
    }
  }
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

std::size_t bytes_of(std::int64_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }
/// As a model of two units has them, the second of which is empty.
std::vector<dvla::WeightUnit> units_of(Floats& weights) {
  const auto all = std::as_writable_bytes(std::span(weights));
  return {{.values = all}, {}};
}
/// Parts of floats as those of bytes.
std::vector<WeightPart> in_bytes(std::vector<WeightPart> parts) {
  for (WeightPart& part : parts)
    for (auto& [offset, bytes] : part) offset *= sizeof(float), bytes *= sizeof(float);
  return parts;
}

/// All ranks of a job in this process.
struct Job {
  Job(int world, Roles its_roles, std::int64_t its_floats, GlooKnobs knobs = {},
      std::vector<WeightPart> parts = {}, std::chrono::nanoseconds deadline = patience)
      : roles(std::move(its_roles)),
        floats(its_floats),
        clusters(ThreadCluster::make(world)),
        planes(static_cast<std::size_t>(world)) {
    make = [=, this](int rank, int incarnation) {
      plane(rank) = std::make_unique<BroadcastWeightPlane>(bytes_of(floats), parts, knobs, *cluster(rank),
                                                           roles, incarnation, deadline, heap());
    };
    on_ranks(world, [this](int rank) { make(rank, 0); });
  }
  std::unique_ptr<ThreadCluster>& cluster(int rank) { return clusters[static_cast<std::size_t>(rank)]; }
  std::unique_ptr<BroadcastWeightPlane>& plane(int rank) { return planes[static_cast<std::size_t>(rank)]; }
  int world() const { return static_cast<int>(planes.size()); }

  /// Packs this actor's part of `weights` and publishes it.
  void publish(int rank, std::int64_t version, const Floats& weights) {
    BroadcastWeightPlane& its = *plane(rank);
    std::span<std::byte> to = its.begin(version);
    for (const auto& [offset, bytes] : its.part()) {
      std::memcpy(to.data(), reinterpret_cast<const std::byte*>(weights.data()) + offset, bytes);
      to = to.subspan(bytes);
    }
    its.publish(version);
  }
  std::int64_t receive(int rank, Floats& weights, std::int64_t at_least,
                       std::chrono::nanoseconds limit = patience) {
    weights.resize(static_cast<std::size_t>(floats));
    return plane(rank)->receive(units_of(weights), at_least, limit);
  }

  Roles roles;
  std::int64_t floats;
  std::vector<std::unique_ptr<ThreadCluster>> clusters;
  std::function<void(int, int)> make;
  std::vector<std::unique_ptr<BroadcastWeightPlane>> planes;
};

/// Every float of a version is its own, and says which version it is.
Floats weights_of(std::int64_t version, std::int64_t floats) {
  Floats all(static_cast<std::size_t>(floats));
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i] = static_cast<float>(version) + static_cast<float>(i % 1000) * 1e-3F;
  return all;
}
std::string text_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const dvla::Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}
bool has(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) MESSAGE(text);
  return found;
}

/// Actors publish `versions`, rollouts take what comes, all end cleanly.
void run_job(Job& job, std::int64_t versions, bool scripted_rollouts = true) {
  on_ranks(job.world(), [&](int rank) {
    std::thread reception;
    std::atomic<bool> good{true};
    if (job.roles.rollout(rank) >= 0) {
      reception = std::thread([&, rank] {
        Floats weights;
        std::int64_t last = -1;
        try {
          for (;;) {
            const std::int64_t version = job.receive(rank, weights, last + 1);
            if (version <= last || weights != weights_of(version, job.floats)) good = false;
            last = version;
            if (scripted_rollouts && rank % 2 == 1) std::this_thread::sleep_for(1ms);
          }
        } catch (const dvla::EndOfWeights&) {
        } catch (const dvla::Error& error) {
          MESSAGE(std::string(error.what()));
          good = false;
        }
        if (last != versions - 1) good = false;
      });
    }
    if (job.roles.actor(rank) >= 0)
      for (std::int64_t version = 0; version < versions; ++version)
        job.publish(rank, version, weights_of(version, job.floats));
    job.plane(rank)->finish(patience);
    if (reception.joinable()) reception.join();
    CHECK(good);
  });
}

}  // namespace

TEST_CASE("A job of one process is a plane in one process: it conforms") {
  struct Alone {
    explicit Alone(std::size_t bytes) : plane(bytes, {}, {}, cluster, Roles{}, 0, patience, heap()) {}
    std::int64_t latest() { return plane.latest(); }
    void publish(std::int64_t version, const std::function<void(std::span<std::byte>)>& write) {
      write(plane.begin(version));
      plane.publish(version);
    }
    std::int64_t receive(const std::vector<dvla::WeightUnit>& to, std::int64_t at_least,
                         std::chrono::nanoseconds limit) {
      return plane.receive(to, at_least, limit);
    }
    void close() { plane.close(); }
    dvla::LoneCluster cluster;
    BroadcastWeightPlane plane;
  };
  for (const auto& violation :
       dvla::testing::check_control_plane([](std::size_t bytes) { return std::make_unique<Alone>(bytes); }))
    FAIL_CHECK(violation);
}

TEST_CASE("An actor and a rollout apart conform") {
  /// The two planes of a pair as one.
  struct Pair {
    explicit Pair(std::size_t bytes) : job(2, Roles{{0}, {1}}, static_cast<std::int64_t>(bytes / 4)) {}
    std::int64_t latest() { return job.plane(0)->latest(); }
    void publish(std::int64_t version, const std::function<void(std::span<std::byte>)>& write) {
      write(job.plane(1)->begin(version));
      job.plane(1)->publish(version);
      Floats all(job.plane(0)->bytes() / sizeof(float));
      job.plane(0)->receive(units_of(all), version, patience);
    }
    std::int64_t receive(const std::vector<dvla::WeightUnit>& to, std::int64_t at_least,
                         std::chrono::nanoseconds limit) {
      return job.plane(0)->receive(to, at_least, limit);
    }
    void close() { job.plane(0)->close(); }
    Job job;
  };
  for (const auto& violation :
       dvla::testing::check_control_plane([](std::size_t bytes) { return std::make_unique<Pair>(bytes); }))
    FAIL_CHECK(violation);
}

TEST_CASE("An actor and a rollout hold at most two buffers of their bytes") {
  struct Counting : std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      taken += bytes;
      return heap().allocate(bytes, alignment);
    }
    void do_deallocate(void* at, std::size_t bytes, std::size_t alignment) override {
      heap().deallocate(at, bytes, alignment);
    }
    bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
      return this == &other;
    }
    std::size_t taken = 0;
  };
  auto clusters = ThreadCluster::make(3);
  std::array<Counting, 3> pools;
  std::array<std::unique_ptr<BroadcastWeightPlane>, 3> planes;
  on_ranks(3, [&](int rank) {
    const auto at = static_cast<std::size_t>(rank);
    planes[at] =
        std::make_unique<BroadcastWeightPlane>(640000, std::vector<WeightPart>{}, GlooKnobs{}, *clusters[at],
                                               Roles{{0}, {1, 2}}, 0, patience, pools[at]);
  });
  CHECK(pools[0].taken == 2 * 640000);  // a rollout: all parts
  CHECK(pools[1].taken == 2 * 320000);  // an actor: its own
  for (auto& plane : planes) plane->close();
}

TEST_CASE("Weights arrive whole and in order, whatever the roles") {
  for (const auto& [world, roles] : std::vector<std::pair<int, Roles>>{{4, {{0, 1, 2}, {3}}},
                                                                       {4, {{0, 1}, {2, 3}}},
                                                                       {3, {{0, 1, 2}, {0, 1, 2}}},
                                                                       {3, {{0, 1, 2}, {1, 2}}}}) {
    Job job(world, roles, 10007);
    run_job(job, 40);
  }
}

TEST_CASE("What is newest may be asked and waited for in any thread while weights travel") {
  constexpr std::int64_t last = 30, floats = 3000;
  Job job(2, {{1}, {0}}, floats);
  std::jthread asking([&](std::stop_token end) {
    while (!end.stop_requested()) {
      for (const int rank : {0, 1}) {
        CHECK(job.plane(rank)->latest() <= last);
        CHECK(job.plane(rank)->report().published <= last);
      }
      std::this_thread::yield();
    }
  });
  const std::jthread waiting([&] {
    for (std::int64_t version = 1; version <= last; ++version) {
      job.plane(1)->await(version, patience);
      CHECK(job.plane(1)->latest() >= version);
    }
  });
  on_ranks(2, [&](int rank) {
    Floats weights;
    for (std::int64_t version = 1; version <= last; ++version) {
      if (rank == 0)
        job.publish(0, version, weights_of(version, floats));
      else if (job.plane(1)->latest() < last)
        CHECK(weights_of(job.receive(1, weights, version), floats) == weights);
    }
  });
  asking.request_stop();
  asking.join();
  on_ranks(2, [&](int rank) { job.plane(rank)->finish(patience); });
}

TEST_CASE("Parts may be any ranges, and need not be equal") {
  Job job(4, {{0, 1}, {2, 3}}, 1000, {}, in_bytes({{{900, 100}, {10, 5}, {15, 300}}, {{0, 10}, {315, 585}}}));
  run_job(job, 10);
  const auto report = job.plane(2)->report();
  CHECK(report.published == 10);
  CHECK(report.bytes_sent == report.versions_sent * 405 * 4);
  CHECK(report.lost == 0);
  const auto received = job.plane(0)->report();
  CHECK(received.installed_bytes == received.installed * 4000);
}

TEST_CASE("Large parts go over several streams") {
  const std::int64_t floats = 7 << 20;  // 28 MiB: 3 streams each of 2 actors
  // Every other block of the weights is the other actor's.
  std::vector<WeightPart> parts(2);
  for (std::size_t first = 0, block = 0; first < static_cast<std::size_t>(floats); first += 100000, ++block)
    parts[block % 2].push_back(
        {first, std::min<std::size_t>(100000, static_cast<std::size_t>(floats) - first)});
  Job job(3, Roles{{0}, {1, 2}}, floats, {}, in_bytes(parts));
  Floats got;
  for (std::int64_t version = 0; version < 4; ++version) {
    const Floats weights = weights_of(version, floats);
    on_ranks(3, [&](int rank) {
      if (rank >= 1) job.publish(rank, version, weights);
    });
    CHECK(job.receive(0, got, version) == version);
    CHECK(std::memcmp(got.data(), weights.data(), got.size() * sizeof(float)) == 0);
  }
  on_ranks(3, [&](int rank) { job.plane(rank)->finish(patience); });
  CHECK(job.plane(1)->report().lost + job.plane(2)->report().lost == 0);
  for (const int streams : {0, 65})
    CHECK(has(text_of([&] {
                Job(2, Roles{{0}, {1}}, 1000, {.streams = streams});
              }),
              "streams is " + std::to_string(streams) + "; it must be from 1 to 64"));
}

TEST_CASE("A rollout that stops is left out before anybody's wait runs out, and the others go on") {
  Job job(3, Roles{{0, 1}, {2}}, 1000, {}, {}, 1s);
  Floats got;
  job.publish(2, 0, weights_of(0, 1000));
  CHECK(job.receive(0, got, 0) == 0);
  CHECK(job.receive(1, got, 0) == 0);
  job.cluster(2)->freeze(0);
  for (std::int64_t version = 1; version < 6; ++version) {
    job.publish(2, version, weights_of(version, 1000));
    CHECK(job.receive(1, got, version) == version);
    CHECK(got == weights_of(version, 1000));
  }
  const auto report = job.plane(2)->report();
  CHECK(report.lost == 1);
  CHECK(has(report.last_loss, "rank 0 (rollout 0): rank 2 waited 0.5 s for rank 0"));
}

TEST_CASE("A rank that is known to be lost is waited for by nobody") {
  Job job(3, Roles{{0, 1}, {2}}, 1000);  // a deadline of 20 s, which nobody waits for
  Floats got;
  job.publish(2, 0, weights_of(0, 1000));
  for (const int rank : {0, 1}) CHECK(job.receive(rank, got, 0) == 0);
  job.cluster(2)->freeze(0);
  job.publish(2, 1, weights_of(1, 1000));
  job.publish(2, 2, weights_of(2, 1000));
  const auto start = std::chrono::steady_clock::now();
  std::jthread watcher([&] { job.plane(2)->lose(0); });
  job.publish(2, 3, weights_of(3, 1000));
  CHECK(job.receive(1, got, 3) == 3);
  job.plane(1)->lose(2);
  CHECK_THROWS_AS(job.receive(1, got, 4), dvla::PeerError);
  job.plane(2)->lose(1);  // nothing is being sent to it
  job.plane(2)->finish(patience);
  CHECK(job.plane(2)->report().lost == 2);
  CHECK(std::chrono::steady_clock::now() - start < patience / 2);
  job.cluster(2)->thaw(0);
}

namespace {
/// What an actor sends passes through `spoil` first.
class SpoilingChannel final : public dvla::Channel {
 public:
  using Spoil = std::function<void(std::vector<std::byte>&)>;
  SpoilingChannel(std::unique_ptr<dvla::Channel> channel, Spoil spoil)
      : channel_(std::move(channel)), spoil_(std::move(spoil)) {}
  void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) override {
    std::vector<std::byte> spoiled(bytes.begin(), bytes.end());
    spoil_(spoiled);
    channel_->send(spoiled, limit);
  }
  void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) override {
    channel_->receive(bytes, limit);
  }
  void close() noexcept override { channel_->close(); }
  const std::string& peer() const override { return channel_->peer(); }

 private:
  std::unique_ptr<dvla::Channel> channel_;
  Spoil spoil_;
};

/// Rank 0 dies and comes again, with the actor on rank 1 behind channels of which the last one spoils.
void rejoin_spoiled(Job& job, SpoilingChannel::Spoil spoil, std::size_t streams = 1) {
  job.plane(0).reset();
  job.cluster(0) = job.cluster(1)->restart(0);
  on_ranks(2, [&](int rank) {
    if (rank == 0) return job.make(0, 1);
    job.plane(1)->rejoin(0, 1, [&] {
      BroadcastWeightPlane::Channels channels;
      while (channels.size() < streams)
        channels.push_back(job.cluster(1)->channel(
            BroadcastWeightPlane::channel_name(0, 0, 1, channels.size()), 0, patience));
      channels.back() = std::make_unique<SpoilingChannel>(std::move(channels.back()), std::move(spoil));
      return channels;
    });
  });
}
}  // namespace

TEST_CASE("One stream that is damaged or lost ends its actor at once") {
  const std::int64_t floats = 3 << 20;  // 3 streams
  for (const bool lost : {false, true}) {
    Job job(2, Roles{{0}, {1}}, floats);
    int piece = 0;
    rejoin_spoiled(
        job,
        [&](std::vector<std::byte>& bytes) {
          if (++piece < 3) return;
          if (lost) throw dvla::PeerError("a stream broke");
          bytes[bytes.size() / 2] ^= std::byte{1};
        },
        3);
    const auto start = std::chrono::steady_clock::now();
    job.publish(1, 5, weights_of(5, floats));
    Floats got;
    const std::string text = text_of([&] { job.receive(0, got, 0); });
    CHECK(has(text, lost ? "which is lost" : "version 5 from rank 1 (actor 0) does not match its checksum"));
    CHECK(job.plane(0)->latest() == -1);
    job.plane(1)->finish(patience);
    CHECK(job.plane(1)->report().lost >= 1);
    if (lost) CHECK(has(job.plane(1)->report().last_loss, "a stream broke"));
    CHECK(std::chrono::steady_clock::now() - start < patience / 2);
  }
}

TEST_CASE("A slow rollout holds the distribution lane back, which says whom it waited for") {
  const std::int64_t floats = 1000;
  Job job(2, Roles{{0}, {1}}, floats, {}, {}, 1s);
  std::atomic<bool> sending{false}, taken{false};
  rejoin_spoiled(job, [&](auto&) {
    sending = true;
    sending.notify_all();
    taken.wait(false);
  });
  job.publish(1, 3, weights_of(3, floats));
  sending.wait(false);
  job.publish(1, 4, weights_of(4, floats));
  const std::string text = text_of([&] { job.plane(1)->begin(5); });
  taken = true;
  taken.notify_all();
  CHECK(text ==
        "control plane: lane 'distribution' of rank 1 (actor 0) waited 1 s to pack version 5 for rank 0 "
        "(rollout 0) to take version 3; is it stuck?");
  Floats got;
  CHECK(job.receive(0, got, 4) == 4);  // it was only slow
  CHECK(got == weights_of(4, floats));
  CHECK_NOTHROW(job.publish(1, 5, weights_of(5, floats)));
}

TEST_CASE("What is damaged on the way is refused, and its actor is lost to the rollout") {
  for (const std::size_t size : {dvla::detail::message_bytes, std::size_t{4000}}) {
    Job job(2, Roles{{0}, {1}}, 1000);
    rejoin_spoiled(job, [size](auto& bytes) {
      if (bytes.size() == size) bytes[size / 2] ^= std::byte{4};
    });
    job.publish(1, 0, weights_of(0, 1000));
    Floats got;
    const std::string text = text_of([&] { job.receive(0, got, 0); });
    CHECK(has(text,
              "control plane: lane 'reception' of rank 0 (rollout 0) waited for version 0 from lane "
              "'distribution' of rank 1 (actor 0), which is lost: control plane: "));
    CHECK(has(text, size != 4000 ? "a message from rank 1 (actor 0) after version -1 was refused: malformed"
                                 : "version 0 from rank 1 (actor 0) does not match its checksum"));
    CHECK(job.plane(0)->latest() == -1);
    job.plane(1)->finish(patience);
    CHECK(job.plane(1)->report().lost >= 1);
  }
}

TEST_CASE("An actor that is lost: reception says who waited for whom, in which lane, for which version") {
  Job job(3, Roles{{0}, {1, 2}}, 1000);
  Floats got;
  for (const int rank : {1, 2}) job.publish(rank, 7, weights_of(7, 1000));
  CHECK(job.receive(0, got, 0) == 7);
  job.publish(1, 8, weights_of(8, 1000));
  job.plane(2).reset();
  job.cluster(1)->kill(2);
  CHECK(has(text_of([&] { job.receive(0, got, 8); }),
            "control plane: lane 'reception' of rank 0 (rollout 0) waited for version 8 from lane "
            "'distribution' of rank 2 (actor 1), which is lost: rank 0 lost rank 2: "));
  CHECK_THROWS_AS(job.receive(0, got, 8), dvla::PeerError);
  CHECK(job.receive(0, got, 7) == 7);  // what is whole stays readable
}

TEST_CASE("A rank that is both does not wait for an actor that is lost, and names one that is late") {
  Job job(2, Roles{{0, 1}, {0, 1}}, 1000, {}, {}, 1s);
  for (const std::int64_t version : {0, 1}) job.publish(0, version, weights_of(version, 1000));
  CHECK(text_of([&] { job.plane(0)->begin(2); }) ==
        "control plane: lane 'distribution' of rank 0 (actor 0 and rollout 0) waited 1 s to pack version 2 "
        "for "
        "rank 1 (actor 1 and rollout 1) to come beyond version -1; is it stuck?");
  job.plane(1).reset();
  job.cluster(0)->kill(1);
  CHECK_THROWS_AS(job.plane(0)->begin(2), dvla::PeerError);
}

TEST_CASE("Waits and wrong calls are told in one sentence") {
  Job job(2, Roles{{0}, {1}}, 1000);
  Floats got, small(10);
  job.publish(1, 2, weights_of(2, 1000));
  job.receive(0, got, 2);
  CHECK(text_of([&] { job.receive(0, got, 5, 1ms); }) ==
        "control plane: lane 'reception' of rank 0 (rollout 0) waited 0.001 s for version 5 from lane "
        "'distribution' of rank 1 (actor 0); the newest from there is 2; is the training lane behind?");
  CHECK(has(text_of([&] { job.plane(0)->begin(3); }), "rank 0 (rollout 0) is no actor"));
  CHECK(has(text_of([&] { job.receive(1, got, 2); }), "rank 1 (actor 0) is no rollout"));
  CHECK(has(text_of([&] { job.plane(1)->begin(2); }), "version 2 cannot follow version 2"));
  CHECK(has(text_of([&] { job.plane(1)->rejoin(0, 0); }),
            "rank 0 (rollout 0) comes with incarnation 0, but incarnation 0 was here already"));
  CHECK(has(text_of([&] { job.plane(1)->rejoin(5, 1); }), "rank 1 (actor 0) sends no weights to rollout 5"));
  on_ranks(2, [&](int rank) { job.plane(rank)->finish(patience); });
  CHECK(job.receive(0, got, 2) == 2);
  CHECK(text_of([&] { job.receive(0, got, 3); }) ==
        "control plane: lane 'reception' of rank 0 (rollout 0) waited for version 3, but the actors have "
        "ended; "
        "the last whole version is 2");
  CHECK_THROWS_AS(job.receive(0, got, 3), dvla::EndOfWeights);
  CHECK(has(text_of([&] { job.plane(1)->begin(3); }), "version 3 comes after finish()"));
}

TEST_CASE("Shapes that cannot work are refused before anything is sent") {
  dvla::LoneCluster cluster;
  auto refusal = [&](std::size_t bytes, std::vector<WeightPart> parts) {
    return text_of([&] { BroadcastWeightPlane(bytes, parts, {}, cluster, Roles{}, 0, patience, heap()); });
  };
  CHECK(has(refusal(10, {{{0, 5}}, {{5, 5}}}), "are 2 and the actors 1"));
  CHECK(has(refusal(10, {{{0, 5}, {4, 5}}}), "overlap at byte 4"));
  CHECK(has(refusal(10, {{{0, 5}, {6, 4}}}), "leave out byte 5"));
  CHECK(has(refusal(10, {{{0, 5}}}), "leave out byte 5"));
  CHECK(has(refusal(10, {{{0, 5}, {5, 6}}}), "reach beyond the weights"));
}

TEST_CASE("Actor and rollout that cut the weights differently are told so") {
  Job job(2, Roles{{0}, {1}}, 1000);
  job.plane(0).reset();
  job.cluster(0) = job.cluster(1)->restart(0);
  std::unique_ptr<BroadcastWeightPlane> other;
  on_ranks(2, [&](int rank) {
    if (rank == 0)
      other = std::make_unique<BroadcastWeightPlane>(2000, std::vector<WeightPart>{}, GlooKnobs{},
                                                     *job.cluster(0), job.roles, 1, patience, heap());
    else
      job.plane(1)->rejoin(0, 1);
  });
  job.publish(1, 0, weights_of(0, 1000));
  Floats all(500);
  CHECK(has(text_of([&] { other->receive(units_of(all), 0, patience); }),
            "was refused: layout; trainer and sampler"));
  other.reset();
}

TEST_CASE("Rollouts are killed at any moment and come again: the others never notice, nothing is torn") {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    dvla::SplitMix64 random(seed);
    const std::int64_t floats = 9000, versions = 60;
    Job job(5, Roles{{0, 1, 2}, {3, 4}}, floats);
    std::atomic<bool> good{true};
    std::atomic<int> ended{0}, deaths{0};
    std::atomic<bool> over{false};
    /// One life of a rollout: until the weights end, or it does.
    auto life = [&](int rank, std::int64_t last) {
      Floats weights;
      try {
        for (;;) {
          const std::int64_t version = job.receive(rank, weights, last + 1);
          if (version <= last || weights != weights_of(version, floats)) good = false;
          last = version;
        }
      } catch (const dvla::EndOfWeights&) {
        if (last != versions - 1) good = false;
        job.plane(rank)->finish(patience);
        ++ended;
      } catch (const dvla::PeerError&) {
        ++deaths;
      } catch (const dvla::Error& error) {
        MESSAGE(std::string(error.what()));
        good = false;
      }
    };
    std::vector<std::jthread> lives;
    for (const int rank : {1, 2}) lives.emplace_back([&life, rank] { life(rank, -1); });
    std::jthread victim([&] {
      for (int incarnation = 1;; ++incarnation) {
        std::jthread one([&] { life(0, -1); });
        if (incarnation == 4) return;
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
        if (over) return;
        job.cluster(1)->kill(0);
        one.join();
        job.plane(0).reset();
        job.cluster(0) = job.cluster(1)->restart(0);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
        on_ranks(5, [&](int rank) {
          if (rank == 0) job.make(0, incarnation);
          if (rank >= 3) {
            std::this_thread::sleep_for(rank % 2 * 400us);  // by then the other has sent newer ones
            job.plane(rank)->rejoin(0, incarnation);
          }
        });
      }
    });
    on_ranks(5, [&](int rank) {
      if (rank < 3) return;
      for (std::int64_t version = 0; version < versions; ++version) {
        job.publish(rank, version, weights_of(version, floats));
        std::this_thread::sleep_for(200us);
      }
    });
    over = true;
    on_ranks(5, [&](int rank) {
      if (rank >= 3) job.plane(rank)->finish(patience);
    });
    victim.join();
    lives.clear();
    CHECK(good);
    CHECK(ended >= 2);
    const auto report = job.plane(3)->report();
    CHECK(report.published == versions);
    CHECK(report.rejoined == deaths);
    CHECK(report.lost == deaths);
  }
}
