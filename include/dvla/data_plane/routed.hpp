// The data plane between processes: trajectories cross by whole GRPO groups, as a routing plan says. Paper:
// "high-frequency data plane": symmetric point to point, asymmetric by a plan from the master, all-to-all
// where every rank is both, one code for all. Torch-free: over LibTorch's Gloo by placement/c10d.hpp, over
// threads by testing/thread_cluster.hpp. Same calls as InProcessTrajectories; they wait here, because the
// other lane is in another process.
//
// Rollout: `buffers` buffers of its own share, one thread an actor (batch_sender.hpp). Actor: as many of its
// share of the batch and one thread a rollout (resource_queue.hpp). A rank that is both moves its own part by
// memory, and copies nothing where its share stays whole. Episodes are counted at their sender (sent,
// acknowledged, and dropped where an actor refused them) and at their actor (received, then trained or
// dropped): over all ranks
//   sent = trained + dropped + in flight + unacknowledged,
// where only a rank that is gone leaves unacknowledged ones behind.
#pragma once

#include <algorithm>
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
#include "dvla/data_plane/batch_sender.hpp"
#include "dvla/data_plane/descriptors.hpp"
#include "dvla/data_plane/endpoint.hpp"
#include "dvla/data_plane/resource_queue.hpp"
#include "dvla/data_plane/routing.hpp"
#include "dvla/data_plane/trajectory.hpp"
#include "dvla/handoff/token.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

/// The two shares of a rank, as layouts without storage. Absent: the rank has not that role.
template <class Decision>
struct RoutedLayouts {
  std::optional<Trajectory<Decision>> rollout;  ///< [T, plan.episodes_from(rollout), ...]
  std::optional<Trajectory<Decision>> actor;    ///< [T, plan.episodes_to(actor), ...]
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
        plan_(placed(std::move(plan))),
        options_(options) {
    const int rollout = roles.rollout(cluster.rank()), actor = roles.actor(cluster.rank());
    check(rollout, actor);
    const detail::RoutedJob job{plan_, roles_, cluster.rank(), options_, environment_pool};
    if (actor >= 0) {
      batches_.assign(static_cast<std::size_t>(options_.buffers), *layouts_.actor);
      queue_.emplace(*layouts_.actor, job, !cluster.topology().joined.empty());
    }
    if (rollout >= 0) {
      shares_.assign(static_cast<std::size_t>(options_.buffers), *layouts_.rollout);
      sender_.emplace(*layouts_.rollout, job, queue_ ? &*queue_ : nullptr);
    }
    // All pairs in one order on every rank, so that no two ranks wait for each other's next one.
    for (int from = 0; from < plan_.rollouts; ++from)
      for (int to = 0; to < plan_.actors; ++to) {
        if (from == rollout && sender_->reaches(to))
          sender_->connect(to, channel(from, to, options_.incarnation, options_.deadline));
        if (to == actor) rejoin(from, options_.incarnation);
      }
    if (sender_) sender_->start();
  }
  /// Ends all waits and threads at once. A rollout that did not say goodbye is lost for its actors.
  ~RoutedTrajectories() { cancel(); }

  /// How the data channel of a pair and incarnation is called.
  static std::string channel_name(int rollout, int actor, std::int64_t incarnation) {
    return detail::concat("data/", rollout, "/", actor, "/", incarnation);
  }

  const RoutingPlan& plan() const { return plan_; }
  int buffers() const { return options_.buffers; }
  /// A rollout's first batch, as agreed with its actors: greater than options.first_batch for one that came
  /// back. An actor's: options.first_batch.
  std::int64_t first_batch() const { return sender_ ? sender_->first_batch() : options_.first_batch; }

  /// Rollout: the buffer to fill with token.batch, once its last use is acknowledged by every actor. Throws
  /// DeadlineError that names the actors that have not, PeerError when one of them is gone.
  Trajectory<Decision>& produce(const Token& token) {
    std::byte* block = sender("produce").produce(token);
    return place(shares_[static_cast<std::size_t>(token.buffer)], block, token.batch);
  }
  /// Rollout: hands it over, with token.version as the oldest weights in it. Does not wait.
  void commit(const Token& token, const SenderCounts& counts = {}) { sender("commit").commit(token, counts); }
  /// Both roles, once their lanes are done: parts in peace, which is what tells leaving from dying. A rollout
  /// waits until all that it committed is taken or refused, and tells the last batch; an actor drops what it
  /// did not train on, refuses what still comes, and waits for the rollouts' goodbyes.
  void goodbye() {
    if (queue_) queue_->end();
    if (sender_) sender_->goodbye();
    if (queue_) queue_->await_goodbyes();
  }

  /// Actor: waits until all of token.batch is there, or is known to be lost, and lowers token.version to the
  /// oldest weights in it. False: all rollouts have said goodbye before it, and none of them joined the job,
  /// for those may come again; or all are gone and `stop`, which may be null, asks. token.buffer means
  /// nothing here. Throws DeadlineError that names the rollouts and groups that are missing.
  bool arrive(Token& token, const stop_flag* stop = nullptr) {
    if (!queue("arrive").await(token.batch, stop)) return false;
    if (const std::int64_t oldest = arrival(token).oldest_version; oldest >= 0)
      token.version = std::min(token.version, oldest);
    return true;
  }
  /// Actor: the batch, once it is there (as arrive; an Error if it never will be). Again gives the same.
  /// Columns of lost rollouts have group -1, everything else 0, and the batch's oldest version.
  Trajectory<Decision>& consume(const Token& token) {
    if (!queue("consume").await(token.batch))
      throw Error("data plane: there is no batch ", token.batch,
                  ": all rollouts have said goodbye before it");
    const auto& reading = queue_->reading(token.batch);
    auto& batch =
        place(batches_[static_cast<std::size_t>(token.batch % options_.buffers)], reading.block, token.batch);
    for (std::size_t i = 0; i < reading.parts.size(); ++i) {
      if (reading.parts[i] == detail::ResourceQueue::Part::arrived) continue;
      detail::clear_strips(reading.block, queue_->strips(i));
      const Route& route = queue_->routes()[i];
      const std::int64_t end = route.first_episode + route.groups * plan_.group_episodes;
      for (std::int64_t column = route.first_episode; column < end; ++column) {
        batch.transition.group[column] = -1;
        for (std::int64_t t = 0; t < batch.transition.version.extents()[0]; ++t)
          batch.transition.version.at(t)[column] = std::max<std::int64_t>(reading.arrival.oldest_version, 0);
      }
    }
    return batch;
  }
  /// Actor: what came of the batch that is being trained on.
  BatchArrival arrival(const Token& token) { return queue("arrival").reading(token.batch).arrival; }
  /// Actor: whether any rollout that sends to it is there.
  bool anybody() const { return queue_ && queue_->anybody(); }
  /// Actor: done with it.
  void release(const Token& token) { queue("release").release(token.batch); }

  /// Gives up a batch: a rollout's while it is being filled, else an actor's that is being trained on or is
  /// the next one. Counted as dropped if it was handed over.
  void drop(const Token& token) {
    if (sender_ && sender_->drop(token)) return;
    queue("drop").drop(token.batch);
  }

  /// Actor: lets a rollout's next incarnation in. Waits until that one makes its end of the channel; the two
  /// then agree in the background on the batch from which on it is expected again. False: the plan has no
  /// route from it to here. Throws Error for an incarnation that was here already, DeadlineError after
  /// `limit` or the plane's deadline.
  bool rejoin(int rollout, std::int64_t incarnation,
              std::chrono::nanoseconds limit = std::chrono::nanoseconds::max()) {
    if (!queue("rejoin").reaches(rollout)) return false;
    queue_->join(rollout, incarnation, [&] {
      return channel(rollout, roles_.actor(cluster_.rank()), incarnation, std::min(limit, options_.deadline));
    });
    return true;
  }
  /// Actor: ends the channel of a rollout that others know is gone; its parts that are not here are lost.
  /// Nothing where the plan has no route from it to here.
  void lose(int rollout, const std::string& why) {
    const bool in_job = rollout >= 0 && rollout < plan_.rollouts;
    if (!in_job || queue("lose").reaches(rollout)) queue("lose").lose(rollout, why);
  }

  /// Ends every wait here, and at the other ends of the channels; later calls throw.
  void cancel() noexcept {
    if (sender_) sender_->close();
    if (queue_) queue_->close();
  }

  RoutedReport report() const {
    RoutedReport report = queue_ ? queue_->report() : RoutedReport{};
    if (sender_) sender_->add_to(report);
    return report;
  }

 private:
  void check(int rollout, int actor) const {
    const auto require = [](bool holds, const auto&... what) {
      if (!holds) throw ConfigError("data plane: ", what...);
    };
    require(options_.buffers >= 1 && options_.buffers <= 1 << 20, options_.buffers,
            " trajectory buffers; at least 1 is needed");
    require(options_.first_batch >= 0 && options_.incarnation >= 0,
            "first batch and incarnation are 0 or more");
    require(static_cast<std::size_t>(plan_.rollouts) == roles_.rollouts.size() &&
                static_cast<std::size_t>(plan_.actors) == roles_.actors.size(),
            "the plan is for ", plan_.rollouts, " rollouts and ", plan_.actors, " actors, the job has ",
            roles_.rollouts.size(), " and ", roles_.actors.size());
    const auto fits = [&](const auto& layout, int index, std::int64_t episodes, const char* role) {
      require(layout.has_value() == (index >= 0), "a rank has a layout for its ", role,
              "'s share exactly when it is one");
      const std::int64_t columns = layout ? layout->transition.group.count() : 0;
      require(columns == episodes, "the layout of ", role, " ", index, " has ", columns,
              " episodes, the routing plan ", episodes);
    };
    fits(layouts_.rollout, rollout, plan_.episodes_from(rollout), "rollout");
    fits(layouts_.actor, actor, plan_.episodes_to(actor), "actor");
  }
  std::unique_ptr<Channel> channel(int rollout, int actor, std::int64_t incarnation,
                                   std::chrono::nanoseconds limit) {
    const int ranks[] = {roles_.rollouts[static_cast<std::size_t>(rollout)],
                         roles_.actors[static_cast<std::size_t>(actor)]};
    return cluster_.channel(channel_name(rollout, actor, incarnation),
                            ranks[ranks[0] == cluster_.rank() ? 1 : 0], limit);
  }
  static Trajectory<Decision>& place(Trajectory<Decision>& trajectory, std::byte* block, std::int64_t batch) {
    place_record(trajectory, block);
    trajectory.id = batch;
    return trajectory;
  }
  detail::BatchSender& sender(const char* call) {
    if (!sender_) throw Error("data plane: ", call, " is a rollout's call; this rank is none");
    return *sender_;
  }
  detail::ResourceQueue& queue(const char* call) {
    if (!queue_) throw Error("data plane: ", call, " is an actor's call; this rank is none");
    return *queue_;
  }

  Cluster& cluster_;
  const Roles roles_;
  const RoutedLayouts<Decision> layouts_;
  const RoutingPlan plan_;
  const RoutedOptions options_;
  std::vector<Trajectory<Decision>> shares_, batches_;  // by buffer; pointed at their blocks when given out
  std::optional<detail::ResourceQueue> queue_;
  std::optional<detail::BatchSender> sender_;  // ends before the queue
};

template <class Pipeline>
struct machinery<C10d, Pipeline> {
  using type = RoutedTrajectories<typename machinery_t<typename Pipeline::model, Pipeline>::Decision>;
};

}  // namespace dvla
