// The data plane between processes: trajectories cross by whole GRPO groups, as a routing plan says. Paper:
// "high-frequency data plane": symmetric point to point, asymmetric by a plan from the master, all-to-all
// where every rank is both, one code for all. Torch-free: over LibTorch's Gloo by placement/c10d.hpp, over
// threads by testing/thread_cluster.hpp. Same calls as InProcessTrajectories; they wait here, because the
// other lane is in another process.
//
// Rollout: `buffers` buffers of its own share, one thread an actor (outbox.hpp). Actor: as many of its share
// of the batch (batch_queue.hpp), one thread a rollout (inbox.hpp). A rank that is both moves its own part by
// memory, and copies nothing where its share stays whole. Episodes are counted at their sender (sent,
// acknowledged, and dropped where an actor refused them) and at their actor (received, then trained or
// dropped): over all ranks
//   sent = trained + dropped + in flight + unacknowledged,
// where only a rank that is gone leaves unacknowledged ones behind.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/data_plane/batch_queue.hpp"
#include "dvla/data_plane/descriptors.hpp"
#include "dvla/data_plane/in_process.hpp"
#include "dvla/data_plane/inbox.hpp"
#include "dvla/data_plane/outbox.hpp"
#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/handoff/token.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

/// Of this rank, in episodes unless said otherwise. What a rank is not, stays 0. in_flight: arrived here and
/// not trained yet. payload_bytes_copied: received, and moved from this rank's rollout to its actor.
struct RoutedReport : DataPlaneReport {
  std::int64_t acknowledged = 0;    ///< of sent: taken by their actors
  std::int64_t unacknowledged = 0;  ///< of sent: neither taken nor refused, yet
  std::int64_t received = 0;        ///< by this actor, from its own rank too
  std::int64_t lost = 0;            ///< columns of trained batches whose rollout was gone
  std::int64_t bytes_sent = 0, bytes_received = 0;
  double back_pressure_s = 0;  ///< that produce waited for a buffer
  std::array<std::int64_t, static_cast<std::size_t>(Refusal::count_)> refused{};  ///< messages, by reason
  std::vector<SenderReport> senders;                                              ///< of this actor
};

/// The two shares of a rank, as layouts without storage. Absent: the rank has not that role.
template <class Decision>
struct RoutedLayouts {
  std::optional<Trajectory<Decision>> rollout;  ///< [T, plan.episodes_from(rollout), ...]
  std::optional<Trajectory<Decision>> actor;    ///< [T, plan.episodes_to(actor), ...]
};

struct RoutedOptions {
  int buffers = 2;               ///< on either side; the schedule's staleness + 1
  std::int64_t first_batch = 0;  ///< of a resumed run
  std::int64_t incarnation =
      0;  ///< the same for all at the start of a job; a restarted rollout takes the next
  std::chrono::nanoseconds deadline = std::chrono::minutes(2);
};

/// Rollout, in the sampling lane: produce, commit, drop. Actor, in the training lane: arrive,
/// consume, arrival, release, drop. goodbye: after both. rejoin, lose, cancel, report: from any thread.
/// Batches are sampled and trained in the order of their numbers. `cluster` and `pool` must outlive this.
template <class Decision>
class RoutedTrajectories {
 public:
  using Layouts = RoutedLayouts<Decision>;
  using Options = RoutedOptions;

  /// Makes the channels: every rank of `roles` constructs its plane at the same time, with the same plan and
  /// options. Throws ConfigError where layouts and plan, or two ranks' programs, do not fit.
  RoutedTrajectories(RoutedLayouts<Decision> layouts, RoutingPlan plan, Cluster& cluster, const Roles& roles,
                     RoutedOptions options, std::pmr::memory_resource& environment_pool)
      : cluster_(cluster),
        roles_(roles),
        layouts_(std::move(layouts)),
        plan_(std::move(plan)),
        options_(options) {
    const int rollout = roles.rollout(cluster.rank()), actor = roles.actor(cluster.rank());
    check(rollout, actor, roles);
    const std::string name = rank_name(roles, cluster.rank());
    auto channels = connect(cluster, roles, rollout, actor);
    const auto fingerprint = fingerprint_of();
    if (actor >= 0) {
      actor_blocks_.emplace(static_cast<std::size_t>(options_.buffers), record_bytes(*layouts_.actor),
                            environment_pool);
      batches_.assign(static_cast<std::size_t>(options_.buffers), *layouts_.actor);
      std::vector<Route> routes;
      std::vector<detail::Strips> strips;
      for (const Route& route : plan_.routes) {
        if (route.actor != actor) continue;
        routes.push_back(route);
        strips.push_back(detail::column_strips(*layouts_.actor, plan_.episodes_to(actor), route.first_episode,
                                               route.groups * plan_.group_episodes));
      }
      detail::BatchQueue::Options queue;
      queue.buffers = options_.buffers;
      queue.first_batch = options_.first_batch;
      queue.group_episodes = plan_.group_episodes;
      queue.deadline = options_.deadline;
      queue.only_actor = plan_.actors == 1;
      queue.may_return = !cluster.topology().joined.empty();
      queue.name = name;
      for (const int rank : roles.rollouts) queue.rollout_names.push_back(rank_name(roles, rank));
      queue_.emplace(std::move(queue), std::move(routes), std::move(strips), *actor_blocks_);
      inbox_.emplace(actor, fingerprint, *queue_, environment_pool);
      for (std::size_t i = 0; i < channels.from.size(); ++i)
        if (channels.from[i]) inbox_->join(static_cast<int>(i), channels.from[i], options_.incarnation);
    }
    if (rollout >= 0) {
      rollout_blocks_.emplace(static_cast<std::size_t>(options_.buffers), record_bytes(*layouts_.rollout),
                              environment_pool);
      shares_.assign(static_cast<std::size_t>(options_.buffers), *layouts_.rollout);
      std::vector<Route> routes;
      std::vector<detail::Strips> strips;
      for (const Route& route : plan_.routes) {
        if (route.rollout != rollout) continue;
        routes.push_back(route);
        strips.push_back(detail::column_strips(*layouts_.rollout, plan_.episodes_from(rollout),
                                               route.first_group * plan_.group_episodes,
                                               route.groups * plan_.group_episodes));
      }
      detail::Outbox::Options outbox;
      outbox.rollout = rollout;
      outbox.incarnation = options_.incarnation;
      outbox.first_batch = options_.first_batch;
      outbox.fingerprint = fingerprint;
      outbox.group_episodes = plan_.group_episodes;
      outbox.deadline = options_.deadline;
      outbox.name = name;
      for (const int rank : roles.actors) outbox.actor_names.push_back(rank_name(roles, rank));
      outbox_.emplace(std::move(outbox), std::move(routes), std::move(strips), *rollout_blocks_,
                      std::move(channels.to), queue_ ? &*queue_ : nullptr, environment_pool);
    }
  }
  /// Ends all waits and threads at once. A rollout that did not say goodbye is lost for its actors.
  ~RoutedTrajectories() { cancel(); }
  RoutedTrajectories(const RoutedTrajectories&) = delete;
  RoutedTrajectories& operator=(const RoutedTrajectories&) = delete;

  /// How the data channel of a pair and incarnation is called, for whoever makes one to give to rejoin.
  static std::string channel_name(int rollout, int actor, std::int64_t incarnation) {
    return "data/" + std::to_string(rollout) + "/" + std::to_string(actor) + "/" +
           std::to_string(incarnation);
  }

  const RoutingPlan& plan() const { return plan_; }
  int buffers() const { return options_.buffers; }
  /// A rollout's first batch, as agreed with its actors: greater than options.first_batch for one that came
  /// back. An actor's: options.first_batch.
  std::int64_t first_batch() const { return outbox_ ? outbox_->first_batch() : options_.first_batch; }

  /// Rollout: the buffer to fill with token.batch, once its last use is acknowledged by every actor. Throws
  /// DeadlineError that names the actors that have not, PeerError when one of them is gone.
  Trajectory<Decision>& produce(const Token& token) {
    std::byte* block = outbox("produce").produce(token.batch, token.buffer);
    return place(shares_[static_cast<std::size_t>(token.buffer)], block, token.batch);
  }
  /// Rollout: hands it over, with token.version as the oldest weights in it. Does not wait.
  void commit(const Token& token, const SenderCounts& counts = {}) {
    outbox("commit").commit(token.batch, token.buffer, token.version, counts);
  }
  /// Both roles, once their lanes are done: parts in peace, which is what tells leaving from dying. A rollout
  /// waits until all that it committed is taken or refused, and tells the last batch; an actor drops what it
  /// did not train on, refuses what still comes, and waits for the rollouts' goodbyes.
  void goodbye() {
    if (queue_) queue_->end();
    if (outbox_) outbox_->goodbye();
    if (inbox_) inbox_->part();
  }

  /// Actor: waits until all of token.batch is there, or is known to be lost, and lowers token.version to the
  /// oldest weights in it. False: all rollouts have said goodbye before it, and none of them joined the job,
  /// for those may come again; or all are gone and `stop`, which may be null, asks. token.buffer means
  /// nothing here. Throws DeadlineError that names the rollouts and groups that are missing.
  bool arrive(Token& token, const stop_flag* stop = nullptr) {
    if (!queue("arrive").await(token.batch, stop)) return false;
    if (const std::int64_t oldest = oldest_version(token); oldest >= 0)
      token.version = std::min(token.version, oldest);
    return true;
  }
  /// Actor: the batch, once it is there (as arrive; an Error if it never will be). Again gives the same.
  /// Columns of lost rollouts have group -1, everything else 0, and the batch's oldest version.
  Trajectory<Decision>& consume(const Token& token) {
    if (!queue("consume").await(token.batch))
      throw Error("data plane: there is no batch " + std::to_string(token.batch) +
                  ": all rollouts have said goodbye before it");
    const auto reading = queue_->reading(token.batch);
    auto& batch =
        place(batches_[static_cast<std::size_t>(token.batch % options_.buffers)], reading.block, token.batch);
    const std::int64_t oldest = std::max<std::int64_t>(reading.arrival.oldest_version, 0);
    for (const std::size_t i : reading.absent) {
      detail::clear_strips(reading.block, queue_->strips()[i]);
      const Route& route = queue_->routes()[i];
      const std::int64_t columns = route.groups * plan_.group_episodes;
      for (std::int64_t column = route.first_episode; column < route.first_episode + columns; ++column) {
        batch.transition.group[column] = -1;
        for (std::int64_t t = 0; t < batch.transition.version.extents()[0]; ++t)
          batch.transition.version.at(t)[column] = oldest;
      }
    }
    return batch;
  }
  /// Actor: what came of the batch that is being trained on.
  BatchArrival arrival(const Token& token) { return queue("arrival").reading(token.batch).arrival; }
  std::int64_t oldest_version(const Token& token) { return arrival(token).oldest_version; }
  /// Actor: whether any rollout that sends to it is there.
  bool anybody() const {
    if (!queue_) return false;
    const auto senders = queue_->totals().senders;
    return std::any_of(senders.begin(), senders.end(), [](const SenderReport& each) { return each.present; });
  }
  /// Actor: done with it.
  void release(const Token& token) { queue("release").release(token.batch); }

  /// Gives up a batch: a rollout's while it is being filled, else an actor's that is being trained on or is
  /// the next one. Counted as dropped if it was handed over.
  void drop(const Token& token) {
    if (outbox_ && outbox_->drop(token.batch, token.buffer)) return;
    queue("drop").drop(token.batch);
  }

  /// Actor: lets a rollout's next incarnation in. Waits until that one makes its end of the channel; the two
  /// then agree in the background on the batch from which on it is expected again. False: the plan has no
  /// route from it to here. Throws Error for an incarnation that was here already, DeadlineError after
  /// `limit` or the plane's deadline.
  bool rejoin(int rollout, std::int64_t incarnation,
              std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    if (!inbox("rejoin").hears(rollout)) return false;
    inbox_->join(rollout,
                 cluster_.channel(channel_name(rollout, roles_.actor(cluster_.rank()), incarnation),
                                  roles_.rollouts[static_cast<std::size_t>(rollout)],
                                  std::min(limit, options_.deadline)),
                 incarnation);
    return true;
  }
  /// The same, over a channel that the caller has made.
  void rejoin(int rollout, std::unique_ptr<Channel> channel, std::int64_t incarnation) {
    inbox("rejoin").join(rollout, std::move(channel), incarnation);
  }
  /// Actor: ends the channel of a rollout that others know is gone; its parts that are not here are lost.
  /// Nothing where the plan has no route from it to here.
  void lose(int rollout, const std::string& why) {
    const bool unheard = rollout >= 0 && rollout < plan_.rollouts && !inbox("lose").hears(rollout);
    if (!unheard) inbox("lose").lose(rollout, why);
  }

  /// Ends every wait here, and at the other ends of the channels; later calls throw.
  void cancel() noexcept {
    if (outbox_) outbox_->close();
    if (queue_) queue_->close();
    if (inbox_) inbox_->close();
  }

  RoutedReport report() const {
    RoutedReport report;
    if (outbox_) {
      const auto totals = outbox_->totals();
      report.sent = totals.sent;
      report.acknowledged = totals.acknowledged;
      report.dropped = totals.refused;
      report.unacknowledged = totals.sent - totals.acknowledged - totals.refused;
      report.bytes_sent = totals.bytes_sent;
      report.back_pressure_s = std::chrono::duration<double>(totals.back_pressure).count();
    }
    if (queue_) {
      auto totals = queue_->totals();
      report.received = totals.received;
      report.trained = totals.trained;
      report.dropped += totals.dropped;
      report.in_flight = totals.in_flight;
      report.lost = totals.lost;
      report.bytes_received = totals.bytes_received;
      report.payload_bytes_copied = totals.bytes_received + totals.bytes_local;
      report.refused = inbox_->refused();
      report.senders = std::move(totals.senders);
      for (SenderReport& sender : report.senders) sender.incarnation = inbox_->incarnation(sender.rollout);
    }
    return report;
  }

 private:
  struct Channels {
    std::vector<std::shared_ptr<Channel>> from, to;  ///< by rollout, by actor; null where nothing goes
  };

  void check(int rollout, int actor, const Roles& roles) const {
    auto require = [](bool holds, const std::string& what) {
      if (!holds) throw ConfigError("data plane: " + what);
    };
    check_routes(plan_);
    require(options_.buffers >= 1 && options_.buffers <= 1 << 20,
            std::to_string(options_.buffers) + " trajectory buffers; at least 1 is needed");
    require(options_.first_batch >= 0 && options_.incarnation >= 0,
            "first batch and incarnation are 0 or more");
    require(static_cast<std::size_t>(plan_.rollouts) == roles.rollouts.size() &&
                static_cast<std::size_t>(plan_.actors) == roles.actors.size(),
            "the plan is for " + std::to_string(plan_.rollouts) + " rollouts and " +
                std::to_string(plan_.actors) + " actors, the job has " +
                std::to_string(roles.rollouts.size()) + " and " + std::to_string(roles.actors.size()));
    auto fits = [&](const auto& layout, int index, std::int64_t episodes, const char* role) {
      require(layout.has_value() == (index >= 0),
              std::string("a rank has a layout for its ") + role + "'s share exactly when it is one");
      if (index < 0) return;
      const std::int64_t columns = layout->transition.seed.count();
      require(columns == episodes, std::string("the layout of ") + role + " " + std::to_string(index) +
                                       " has " + std::to_string(columns) + " episodes, the routing plan " +
                                       std::to_string(episodes));
      (void)detail::column_strips(*layout, columns, 0, columns);
    };
    fits(layouts_.rollout, rollout, rollout < 0 ? 0 : plan_.episodes_from(rollout), "rollout");
    fits(layouts_.actor, actor, actor < 0 ? 0 : plan_.episodes_to(actor), "actor");
    for (const Route& route : plan_.routes)
      require(route.local == (roles.rollouts[static_cast<std::size_t>(route.rollout)] ==
                              roles.actors[static_cast<std::size_t>(route.actor)]),
              "the plan's route from rollout " + std::to_string(route.rollout) + " to actor " +
                  std::to_string(route.actor) + " is wrong about which ranks they are");
  }
  /// All pairs in one order on every rank, so that no two ranks wait for each other's next one.
  Channels connect(Cluster& cluster, const Roles& roles, int rollout, int actor) const {
    Channels channels;
    channels.from.resize(roles.rollouts.size());
    channels.to.resize(roles.actors.size());
    for (const Route& route : plan_.routes) {
      const auto r = static_cast<std::size_t>(route.rollout), a = static_cast<std::size_t>(route.actor);
      if (route.local || (route.rollout != rollout && route.actor != actor)) continue;
      const bool sends = route.rollout == rollout;
      auto& channel = sends ? channels.to[a] : channels.from[r];
      if (channel) continue;  // a second route of the pair
      channel = cluster.channel(channel_name(route.rollout, route.actor, options_.incarnation),
                                sends ? roles.actors[a] : roles.rollouts[r], options_.deadline);
    }
    return channels;
  }
  std::uint64_t fingerprint_of() const {
    Checksum sum;
    const std::string plan = serialise(plan_);
    sum.update(std::as_bytes(std::span(plan)));
    detail::fingerprint_layout(layouts_.rollout ? *layouts_.rollout : *layouts_.actor, sum);
    return sum.value();
  }
  static Trajectory<Decision>& place(Trajectory<Decision>& trajectory, std::byte* block, std::int64_t batch) {
    place_record(trajectory, block);
    trajectory.id = batch;
    return trajectory;
  }
  detail::Outbox& outbox(const char* call) {
    if (!outbox_) throw Error(std::string("data plane: ") + call + " is a rollout's call; this rank is none");
    return *outbox_;
  }
  detail::BatchQueue& queue(const char* call) {
    if (!queue_) throw Error(std::string("data plane: ") + call + " is an actor's call; this rank is none");
    return *queue_;
  }
  detail::Inbox& inbox(const char* call) {
    (void)queue(call);
    return *inbox_;
  }

  Cluster& cluster_;
  const Roles roles_;
  const RoutedLayouts<Decision> layouts_;
  const RoutingPlan plan_;
  const RoutedOptions options_;
  std::optional<detail::Blocks> rollout_blocks_, actor_blocks_;
  std::vector<Trajectory<Decision>> shares_, batches_;  // by buffer; pointed at their blocks when given out
  std::optional<detail::BatchQueue> queue_;
  std::optional<detail::Inbox> inbox_;
  std::optional<detail::Outbox> outbox_;  // both end before the queue
};

template <class Pipeline>
struct machinery<C10d, Pipeline> {
  using type = RoutedTrajectories<typename machinery_t<typename Pipeline::model, Pipeline>::Decision>;
};

}  // namespace dvla
