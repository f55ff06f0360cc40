// Local topology replication: the node-local loop of sampling and inference is the unit. Whole pipelines as
// jobs of 2 machines x 4 ranks (threads; their clusters count what passes): no observation and no action
// leaves its machine where each has its share of both roles. What crosses is weights and the actors'
// gradients, beside heartbeats and what the leader requests outside of batches.
#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <mutex>
#include <unordered_set>

#include "test/pipeline/toy_job.hpp"

namespace {
using namespace dvla_test;

// ---- What is shown to the models

thread_local bool in_sampling = false;  ///< this thread, a lane, has stepped environments
thread_local bool is_rank = false;  ///< this thread is a rank's own, which tests itself before lanes begin

struct Seen {
  std::mutex mutex;
  std::unordered_set<std::uint64_t> rows;  ///< the first two numbers of each observation
} seen;

/// Toy, which remembers what it shows and to whom.
struct WatchedToy {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "WatchedToy";
};

class WatchedToyEnvironment : public dvla::ToyEnvironment {
 public:
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    in_sampling = !is_rank;
    ToyEnvironment::reset(rows, starts, next);
    const std::scoped_lock lock(seen.mutex);
    for (const std::int64_t i : rows.indices()) {
      std::uint64_t row = 0;
      std::memcpy(&row, next.proprioception.at(i).data(), sizeof row);
      seen.rows.insert(row);
    }
  }
};

}  // namespace

template <class Pipeline>
struct dvla::machinery<WatchedToy, Pipeline> {
  using type = WatchedToyEnvironment;
};

namespace {

// ---- What passes between ranks

/// Of all ranks of a job.
struct Ledger {
  struct Traffic {
    std::int64_t inside = 0, across = 0;  ///< bytes, on one machine and between two
  };
  std::mutex mutex;
  std::map<std::string, Traffic> kinds;  ///< by the first word of a channel's name; groups: "group"
  std::vector<std::vector<std::byte>> inside, across;
  std::int64_t by_sampling = 0;        ///< calls from threads that have stepped environments
  std::vector<std::string> strangers;  ///< groups with members that do not train

  void note(const std::string& kind, std::span<const std::byte> bytes, bool crosses) {
    const std::scoped_lock lock(mutex);
    Traffic& traffic = kinds[kind];
    (crosses ? traffic.across : traffic.inside) += std::ssize(bytes);
    (crosses ? across : inside).emplace_back(bytes.begin(), bytes.end());
    by_sampling += in_sampling;
  }
  /// Observations in what has passed.
  static std::int64_t observations(const std::vector<std::vector<std::byte>>& messages) {
    std::int64_t found = 0;
    for (const auto& message : messages)
      for (std::size_t i = 0; i + sizeof(std::uint64_t) <= message.size(); ++i) {
        std::uint64_t word = 0;
        std::memcpy(&word, &message[i], sizeof word);
        found += seen.rows.contains(word);
      }
    return found;
  }
};

class CountingChannel final : public dvla::Channel {
 public:
  CountingChannel(std::unique_ptr<dvla::Channel> channel, Ledger& ledger, std::string kind, bool crosses)
      : channel_(std::move(channel)), ledger_(ledger), kind_(std::move(kind)), crosses_(crosses) {}
  void send(std::span<const std::byte> bytes, std::chrono::nanoseconds limit) override {
    ledger_.note(kind_, bytes, crosses_);
    channel_->send(bytes, limit);
  }
  void receive(std::span<std::byte> bytes, std::chrono::nanoseconds limit) override {
    channel_->receive(bytes, limit);
  }
  void close() noexcept override { channel_->close(); }
  const std::string& peer() const override { return channel_->peer(); }

 private:
  std::unique_ptr<dvla::Channel> channel_;
  Ledger& ledger_;
  const std::string kind_;
  const bool crosses_;
};

/// Counts what a member gives; sums and parts go to all others.
class CountingGroup final : public dvla::Group {
 public:
  CountingGroup(std::unique_ptr<dvla::Group> group, Ledger& ledger, bool crosses)
      : Group("counted"), group_(std::move(group)), ledger_(ledger), crosses_(crosses) {}
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  void close() noexcept override { group_->close(); }

 protected:
  void hand_out(std::span<std::byte> bytes, int root) override {
    if (root == rank()) note(bytes);
    group_->broadcast(bytes, root);
  }
  void gather(dvla::GroupCall, std::span<const std::byte> part, std::span<std::byte> all) override {
    note(part);
    group_->all_gather(part, all);
  }
  void scatter(dvla::GroupCall, std::span<const float> all, std::span<float> part) override {
    note(std::as_bytes(all));
    group_->reduce_scatter(all, part);
  }

 private:
  void note(std::span<const std::byte> bytes) { ledger_.note("group", bytes, crosses_); }

  std::unique_ptr<dvla::Group> group_;
  Ledger& ledger_;
  const bool crosses_;
};

class CountingCluster final : public dvla::Cluster {
 public:
  CountingCluster(dvla::Cluster& cluster, const dvla::Roles& roles, Ledger& ledger)
      : cluster_(cluster), roles_(roles), ledger_(ledger) {}
  int rank() const override { return cluster_.rank(); }
  const dvla::Topology& topology() const override { return cluster_.topology(); }
  std::unique_ptr<dvla::Channel> channel(const std::string& name, int peer,
                                         std::chrono::nanoseconds limit) override {
    return std::make_unique<CountingChannel>(cluster_.channel(name, peer, limit), ledger_,
                                             name.substr(0, name.find('/')), node(peer) != node(rank()));
  }
  std::unique_ptr<dvla::Group> group(const std::string& name, const std::vector<int>& members,
                                     std::chrono::nanoseconds limit) override {
    bool crosses = false;
    for (const int member : members) {
      crosses |= node(member) != node(rank());
      if (roles_.actor(member) >= 0) continue;
      const std::scoped_lock lock(ledger_.mutex);
      ledger_.strangers.push_back(name);
    }
    return std::make_unique<CountingGroup>(cluster_.group(name, members, limit), ledger_, crosses);
  }
  /// The store is everybody's.
  void put(const std::string& key, const std::string& value) override {
    ledger_.note("store", std::as_bytes(std::span(value)), true);
    cluster_.put(key, value);
  }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    return cluster_.get(key, limit);
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds limit) override {
    return cluster_.has_within(key, limit);
  }
  std::int64_t count(const std::string& key) override { return cluster_.count(key); }

 private:
  int node(int rank) const { return cluster_.topology().node[static_cast<std::size_t>(rank)]; }

  dvla::Cluster& cluster_;
  const dvla::Roles& roles_;
  Ledger& ledger_;
};

// ---- Jobs

template <class... More>
using Watched = dvla::Pipeline<dvla::Sampler<WatchedToy, dvla::testing::LinearModel>,
                               dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>>, More...>;
using Replicas = Watched<dvla::Placement<dvla::CoLocated>>;
using Apart = Watched<dvla::FSDP, dvla::Placement<dvla::Separated<>>>;
using Mixed = Watched<dvla::FSDP, dvla::Placement<dvla::Hybrid>>;

constexpr int batches = 6;

/// Each rollout has the same number of groups, and so has each actor.
template <class P>
void train(const std::vector<int>& node, const typename P::placement::knobs& placement, Ledger& ledger) {
  const dvla::Topology topology{node};
  const dvla::Roles roles = P::placement::roles(placement, topology);
  auto config = small_config<P>(batches);
  config.placement = placement;
  config.algorithm.group = 4;
  const std::size_t groups = 2 * std::max(roles.rollouts.size(), roles.actors.size());
  config.environment.environments = static_cast<int>(groups) * config.algorithm.group;
  config.algorithm.micro_batch = 32;
  {
    const std::scoped_lock lock(seen.mutex);
    seen.rows.clear();
  }
  const auto result = train_job(topology.world(), config, {}, {}, node, [&](dvla::Cluster& cluster) {
    is_rank = true;
    return std::make_unique<CountingCluster>(cluster, roles, ledger);
  });
  for (const std::string& error : result.errors) REQUIRE_MESSAGE(error.empty(), error);
  CHECK(result.history.size() == batches);
  CHECK(seen.rows.size() >= static_cast<std::size_t>(batches) * roles.rollouts.size());
  CHECK(ledger.by_sampling == 0);
  CHECK(ledger.strangers.empty());
}

/// What may cross, and only that.
void only_weights_and_gradients_cross(const Ledger& ledger) {
  for (const auto& [kind, traffic] : ledger.kinds)
    if (traffic.across > 0)
      CHECK_MESSAGE((kind == "weights" || kind == "group" || kind == "beats" || kind == "store" ||
                     kind == "requests"),  // weights of the self-test
                    kind);
  CHECK(Ledger::observations(ledger.across) == 0);
}

const std::vector<std::vector<int>> machines{{0, 0, 0, 0, 1, 1, 1, 1},   // as launchers deal them
                                             {0, 1, 0, 1, 0, 1, 0, 1},   // round robin
                                             {0, 1, 1, 0, 1, 0, 0, 1}};  // at random

TEST_CASE("separated: trajectories stay on their machine") {
  for (const auto& node : machines)
    for (const dvla::SeparatedKnobs ratio :
         {dvla::SeparatedKnobs{3, 1}, dvla::SeparatedKnobs{1, 1}, dvla::SeparatedKnobs{1, 3}}) {
      CAPTURE(ratio.rollouts);
      CAPTURE(ratio.actors);
      Ledger ledger;
      train<Apart>(node, ratio, ledger);
      CHECK(ledger.kinds["data"].inside > 0);
      CHECK(ledger.kinds["data"].across == 0);
      CHECK(ledger.kinds["weights"].across > 0);
      CHECK(ledger.kinds["group"].across > 0);
      CHECK(Ledger::observations(ledger.inside) > 0);
      only_weights_and_gradients_cross(ledger);
    }
}

TEST_CASE("hybrid: trajectories stay on their machine") {
  for (const auto& node : machines)
    for (const int actors : {2, 4}) {
      CAPTURE(actors);
      Ledger ledger;
      train<Mixed>(node, {actors}, ledger);
      CHECK(ledger.kinds["data"].inside > 0);
      CHECK(ledger.kinds["data"].across == 0);
      CHECK(ledger.kinds["weights"].across > 0);
      CHECK(ledger.kinds["group"].across > 0);
      CHECK(Ledger::observations(ledger.inside) > 0);
      only_weights_and_gradients_cross(ledger);
    }
}

TEST_CASE("co-located: trajectories stay in their process") {
  for (const auto& node : machines) {
    Ledger ledger;
    train<Replicas>(node, {}, ledger);
    CHECK_FALSE(ledger.kinds.contains("data"));
    CHECK_FALSE(ledger.kinds.contains("weights"));
    CHECK(ledger.kinds["group"].across > 0);
    CHECK(Ledger::observations(ledger.inside) == 0);
    only_weights_and_gradients_cross(ledger);
  }
}

TEST_CASE("a machine without actors has to send its trajectories, and these checks see it") {
  Ledger ledger;
  train<Apart>({0, 0, 0, 1}, {3, 1}, ledger);
  CHECK(ledger.kinds["data"].across > 0);
  CHECK(Ledger::observations(ledger.across) > 0);
}

}  // namespace
