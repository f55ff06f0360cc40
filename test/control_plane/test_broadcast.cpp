// dvla-test: tsan asan
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <memory_resource>
#include <thread>
#include <vector>

#include "dvla/control_plane/broadcast.hpp"
#include "dvla/testing/control_plane.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace std::chrono_literals;
using dvla::BroadcastWeightPlane;
using dvla::GlooKnobs;
using dvla::Roles;
using dvla::WeightForm;
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

/// All ranks of a job in this process.
struct Job {
  Job(int world, Roles its_roles, std::int64_t its_floats, GlooKnobs knobs = {},
      std::vector<WeightPart> parts = {}, WeightPart trainable = {},
      std::chrono::nanoseconds deadline = patience)
      : roles(std::move(its_roles)),
        floats(its_floats),
        clusters(ThreadCluster::make(world)),
        planes(static_cast<std::size_t>(world)) {
    make = [=, this](int rank, int incarnation) {
      plane(rank) = std::make_unique<BroadcastWeightPlane>(floats, parts, knobs, *cluster(rank), roles,
                                                           incarnation, deadline, heap(), trainable);
    };
    on_ranks(world, [this](int rank) { make(rank, 0); });
  }
  std::unique_ptr<ThreadCluster>& cluster(int rank) { return clusters[static_cast<std::size_t>(rank)]; }
  std::unique_ptr<BroadcastWeightPlane>& plane(int rank) { return planes[static_cast<std::size_t>(rank)]; }
  int world() const { return static_cast<int>(planes.size()); }

  /// Packs this actor's part of `weights` and publishes it.
  void publish(int rank, std::int64_t version, const Floats& weights) {
    BroadcastWeightPlane& its = *plane(rank);
    dvla::gather_part(std::as_bytes(std::span(weights)), its.part(), its.begin(version));
    its.publish(version);
  }
  std::int64_t receive(int rank, Floats& weights, std::int64_t at_least,
                       std::chrono::nanoseconds limit = patience) {
    weights.resize(static_cast<std::size_t>(floats));
    return plane(rank)->receive(std::as_writable_bytes(std::span(weights)), at_least, limit);
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
          MESSAGE(error.what());
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
  dvla::LoneCluster cluster;
  auto make = [&](std::size_t bytes) {
    return std::make_unique<BroadcastWeightPlane>(static_cast<std::int64_t>(bytes / 4),
                                                  std::vector<WeightPart>{}, GlooKnobs{}, cluster, Roles{}, 0,
                                                  patience, heap());
  };
  for (const auto& violation : dvla::testing::check_control_plane(make)) FAIL_CHECK(violation);
}

TEST_CASE("An actor and a rollout apart conform") {
  /// The two planes of a pair as one.
  struct Pair {
    explicit Pair(std::size_t bytes) : job(2, Roles{{0}, {1}}, static_cast<std::int64_t>(bytes / 4)) {}
    std::int64_t latest() { return job.plane(0)->latest(); }
    std::span<std::byte> begin(std::int64_t version) { return job.plane(1)->begin(version); }
    void publish(std::int64_t version) {
      job.plane(1)->publish(version);
      std::vector<std::byte> all(job.plane(0)->bytes());
      job.plane(0)->receive(all, version, patience);
    }
    std::int64_t receive(std::span<std::byte> to, std::int64_t at_least, std::chrono::nanoseconds limit) {
      return job.plane(0)->receive(to, at_least, limit);
    }
    void close() { job.plane(0)->close(); }
    Job job;
  };
  for (const auto& violation :
       dvla::testing::check_control_plane([](std::size_t bytes) { return std::make_unique<Pair>(bytes); }))
    FAIL_CHECK(violation);
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

TEST_CASE("Parts may be any ranges, and need not be equal") {
  Job job(4, {{0, 1}, {2, 3}}, 1000, {}, {{{900, 100}, {10, 5}, {15, 300}}, {{0, 10}, {315, 585}}});
  run_job(job, 10);
  const auto report = job.plane(2)->report();
  CHECK(report.published == 10);
  CHECK(report.bytes_sent == report.versions_sent * 405 * 4);
  CHECK(report.lost == 0);
}
