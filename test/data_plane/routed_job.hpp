// A job of rollouts and actors as threads, for tests of the data plane between processes: what each rank is,
// its plane, and episodes that say who they are. Every episode's seed is its id (batch, global episode), and
// every byte of it follows from the id, so that a trainer can prove what it got.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/data_plane/routed.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/testing/thread_cluster.hpp"

namespace routed_job {

using namespace std::chrono_literals;

struct TokensDecision {
  dvla::Field<std::int32_t> bins;
  dvla::Field<float> log_prob;
};

}  // namespace routed_job
BOOST_HANA_ADAPT_STRUCT(routed_job::TokensDecision, bins, log_prob);

namespace routed_job {

using Plane = dvla::RoutedTrajectories<TokensDecision>;
using Trajectory = dvla::Trajectory<TokensDecision>;

struct Shape {
  std::int64_t decisions = 3, pixels = 8, group = 2;
};

inline Trajectory layout(const Shape& shape, std::int64_t episodes) {
  dvla::ObservationSpec observation;
  observation.cameras = {{"top", static_cast<int>(shape.pixels), static_cast<int>(shape.pixels)}};
  observation.proprioception = 5;
  observation.instructions = {"go left", "go right"};
  const std::int64_t T = shape.decisions;
  return dvla::trajectory_layout(dvla::transition_layout(observation, {2}, {T, episodes, 2}),
                                 TokensDecision{dvla::Field<std::int32_t>({T, episodes, 2, 2}),
                                                dvla::Field<float>({T, episodes, 2, 2})});
}

inline std::uint64_t id_of(std::int64_t batch, std::int64_t episode) {
  return (static_cast<std::uint64_t>(batch) << 20) + static_cast<std::uint64_t>(episode);
}
inline std::int64_t batch_of(std::uint64_t id) { return static_cast<std::int64_t>(id >> 20); }

/// Calls visit(salt, bytes) for each stretch of column `column`, in an order that does not depend on how many
/// columns there are.
template <class Visit>
void for_column(const Trajectory& trajectory, std::int64_t column, Visit visit) {
  std::uint64_t salt = 0;
  dvla::for_each_field(trajectory, [&](const char*, const auto& field) {
    const bool flat = field.extents().rank() == 1;
    for (std::int64_t t = 0; t < (flat ? 1 : field.extents()[0]); ++t) {
      const auto cell = (flat ? field : field.at(t)).rows(column, 1);
      visit(++salt, std::as_writable_bytes(cell.span()));
    }
  });
}

/// Fills a column with what follows from its id, then the fields that mean something.
inline void write_episode(const Trajectory& trajectory, std::int64_t column, std::uint64_t id,
                          std::int32_t group, std::int64_t version) {
  for_column(trajectory, column, [&](std::uint64_t salt, std::span<std::byte> bytes) {
    dvla::SplitMix64 random(id * 1000003 + salt);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  });
  trajectory.transition.episode.seed[column] = id;
  trajectory.transition.group[column] = group;
  for (std::int64_t t = 0; t < trajectory.transition.version.extents()[0]; ++t)
    trajectory.transition.version.at(t)[column] = version;
}
/// Empty, or what is wrong.
inline std::string check_episode(const Trajectory& trajectory, std::int64_t column) {
  const std::uint64_t id = trajectory.transition.episode.seed[column];
  if (batch_of(id) != trajectory.id)
    return "batch " + std::to_string(trajectory.id) + " holds an episode of batch " +
           std::to_string(batch_of(id));
  std::int64_t wrong = 0, stretches = 0;
  for_column(trajectory, column, [&](std::uint64_t salt, std::span<std::byte> bytes) {
    dvla::SplitMix64 random(id * 1000003 + salt);
    bool same = true;
    for (const std::byte byte : bytes) same = static_cast<std::byte>(random()) == byte && same;
    wrong += !same;
    ++stretches;
  });
  const std::int64_t meaningful = 2 + trajectory.transition.version.extents()[0];
  return wrong <= meaningful && wrong < stretches ? "" : "episode " + std::to_string(id) + " arrived changed";
}

/// What a rank did and saw.
struct Ledger {
  std::set<std::uint64_t> committed, trained;
  std::vector<std::string> wrong;
  dvla::RoutedReport report;
  std::int64_t env_steps = 0;  ///< as sent, or as heard of
  std::int64_t empty_columns = 0;
  std::size_t pool_high_water = 0;
  std::string failure;
};

struct Job {
  dvla::Roles roles;
  Shape shape = {};
  std::int64_t groups_per_rollout = 4;
  int staleness = 1;
  std::chrono::nanoseconds deadline = 20s;

  dvla::RoutingPlan plan() const {
    return dvla::plan_routes(std::vector(roles.rollouts.size(), groups_per_rollout), shape.group, roles);
  }
  /// Of a part that takes this route.
  std::int64_t bytes_of(const dvla::Route& route) const {
    const std::int64_t episodes = route.groups * shape.group;
    return static_cast<std::int64_t>(
        dvla::bytes_in(dvla::detail::column_strips(layout(shape, episodes), episodes, 0, episodes)));
  }
  std::unique_ptr<Plane> plane(dvla::Cluster& cluster, dvla::EnvironmentPool& pool,
                               std::int64_t incarnation = 0, std::int64_t first_batch = 0) const {
    const auto routes = plan();
    dvla::RoutedLayouts<TokensDecision> layouts;
    if (const int rollout = roles.rollout(cluster.rank()); rollout >= 0)
      layouts.rollout = layout(shape, routes.episodes_from(rollout));
    if (const int actor = roles.actor(cluster.rank()); actor >= 0)
      layouts.actor = layout(shape, routes.episodes_to(actor));
    return std::make_unique<Plane>(layouts, routes, cluster, roles,
                                   dvla::RoutedOptions{.buffers = staleness + 1,
                                                       .first_batch = first_batch,
                                                       .incarnation = incarnation,
                                                       .deadline = deadline},
                                   pool);
  }
  std::int64_t episodes_per_rollout() const { return groups_per_rollout * shape.group; }
  int world() const { return std::max(roles.rollouts.back(), roles.actors.back()) + 1; }

  /// A rollout's lane: batches [plane.first_batch(), batches).
  void roll_out(Plane& plane, int rollout, std::int64_t batches, Ledger& ledger,
                const std::function<void(std::int64_t)>& before = {}) const {
    for (std::int64_t batch = plane.first_batch(); batch < batches; ++batch) {
      if (before) before(batch);
      const dvla::Token token{.batch = batch,
                              .version = batch + 100,
                              .buffer = static_cast<std::int32_t>(batch % (staleness + 1))};
      Trajectory& share = plane.produce(token);
      if (share.id != batch) ledger.wrong.push_back("produce must stamp the batch");
      for (std::int64_t i = 0; i < episodes_per_rollout(); ++i) {
        const std::int64_t episode = rollout * episodes_per_rollout() + i;
        write_episode(share, i, id_of(batch, episode), static_cast<std::int32_t>(episode / shape.group),
                      token.version);
      }
      plane.commit(token, {.env_steps = batch + 1, .chunk_steps = 1});
      ledger.env_steps += batch + 1;
      for (std::int64_t i = 0; i < episodes_per_rollout(); ++i)
        ledger.committed.insert(id_of(batch, rollout * episodes_per_rollout() + i));
    }
  }
  /// An actor's lane, until `batches` or the rollouts' goodbye.
  void train(Plane& plane, std::int64_t batches, Ledger& ledger,
             const std::function<void(std::int64_t)>& during = {}) const {
    for (std::int64_t batch = 0; batch < batches; ++batch) {
      dvla::Token token{.batch = batch, .version = 1 << 30};
      if (!plane.arrive(token)) return;
      const Trajectory& trajectory = plane.consume(token);
      const auto arrival = plane.arrival(token);
      if (during) during(batch);
      std::int64_t present = 0;
      for (std::int64_t i = 0; i < trajectory.transition.group.count(); ++i) {
        if (trajectory.transition.group[i] < 0) {
          ++ledger.empty_columns;
          continue;
        }
        ++present;
        const std::uint64_t id = trajectory.transition.episode.seed[i];
        if (!ledger.trained.insert(id).second)
          ledger.wrong.push_back("episode " + std::to_string(id) + " was trained on twice");
        if (const auto what = check_episode(trajectory, i); !what.empty()) ledger.wrong.push_back(what);
        if (trajectory.transition.group[i] !=
            static_cast<std::int32_t>((id & 0xfffff) / static_cast<std::uint64_t>(shape.group)))
          ledger.wrong.push_back("episode " + std::to_string(id) + " is in another group");
      }
      if (present != arrival.episodes) ledger.wrong.push_back("the arrival miscounts episodes");
      if (present > 0 && (arrival.oldest_version != batch + 100 || token.version != batch + 100))
        ledger.wrong.push_back("the oldest version is wrong");
      ledger.env_steps += arrival.counts.env_steps;
      plane.release(token);
    }
  }

  using Body = std::function<void(Plane&, dvla::testing::ThreadCluster&, Ledger&)>;
  /// One thread a rank: makes the plane, runs `body`, reads the report. ledger[rank].
  std::vector<Ledger> run(const std::vector<std::unique_ptr<dvla::testing::ThreadCluster>>& ranks,
                          const Body& body) const {
    std::vector<Ledger> ledgers(ranks.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < ranks.size(); ++i)
      threads.emplace_back([&, i] {
        Ledger& ledger = ledgers[i];
        dvla::EnvironmentPool pool(std::size_t{8} << 20);
        try {
          const auto mine = plane(*ranks[i], pool);
          try {
            body(*mine, *ranks[i], ledger);
          } catch (const std::exception& error) {
            ledger.failure = error.what();
          }
          ledger.report = mine->report();
        } catch (const std::exception& error) {
          ledger.failure = error.what();
        }
        ledger.pool_high_water = pool.report().high_water;
        if (pool.report().live != 0) ledger.wrong.push_back("the plane kept memory");
      });
    for (auto& thread : threads) thread.join();
    return ledgers;
  }
  /// The whole life of a healthy job, both lanes of each rank.
  std::vector<Ledger> run(std::int64_t batches, const std::function<void(std::int64_t)>& before = {},
                          const std::function<void(std::int64_t)>& during = {}) const {
    return run(dvla::testing::ThreadCluster::make(world()),
               [&](Plane& plane, dvla::testing::ThreadCluster& cluster, Ledger& ledger) {
                 const int rollout = roles.rollout(cluster.rank());
                 Ledger sampling;
                 std::thread sampler([&] {
                   if (rollout < 0) return;
                   try {
                     roll_out(plane, rollout, batches, sampling, before);
                     if (roles.actor(cluster.rank()) < 0) plane.goodbye();
                   } catch (const std::exception& error) {
                     sampling.failure = error.what();
                   }
                 });
                 try {
                   if (roles.actor(cluster.rank()) >= 0) train(plane, batches, ledger, during);
                 } catch (const std::exception& error) {
                   ledger.failure = error.what();
                 }
                 sampler.join();
                 if (roles.actor(cluster.rank()) >= 0) plane.goodbye();
                 ledger.committed = sampling.committed;
                 if (roles.actor(cluster.rank()) < 0) ledger.env_steps = sampling.env_steps;
                 ledger.failure += sampling.failure;
               });
  }
};

/// Sums over the ranks, and what every rank found wrong.
struct Sum {
  std::int64_t sent = 0, acknowledged = 0, unacknowledged = 0, received = 0, trained = 0, dropped = 0,
               in_flight = 0, lost = 0, bytes_sent = 0, bytes_received = 0;
  std::set<std::uint64_t> committed, trained_ids;
  std::string wrong;
};
inline Sum sum_of(const std::vector<Ledger>& ledgers) {
  Sum sum;
  for (const Ledger& ledger : ledgers) {
    const auto& report = ledger.report;
    sum.sent += report.sent;
    sum.acknowledged += report.acknowledged;
    sum.unacknowledged += report.unacknowledged;
    sum.received += report.received;
    sum.trained += report.trained;
    sum.dropped += report.dropped;
    sum.in_flight += report.in_flight;
    sum.lost += report.lost;
    sum.bytes_sent += report.bytes_sent;
    sum.bytes_received += report.bytes_received;
    sum.committed.insert(ledger.committed.begin(), ledger.committed.end());
    for (const std::uint64_t id : ledger.trained)
      if (!sum.trained_ids.insert(id).second) sum.wrong += "trained twice: " + std::to_string(id) + "\n";
    for (const std::string& what : ledger.wrong) sum.wrong += what + "\n";
    if (!ledger.failure.empty()) sum.wrong += ledger.failure + "\n";
  }
  return sum;
}

}  // namespace routed_job
