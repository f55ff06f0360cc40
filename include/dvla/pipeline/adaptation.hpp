// What Adaptive does while a run goes on: after a stretch of batches every rank says how long its lanes took,
// the leader decides how the work is shared from then on, and all learn it. Paper: "adapted until rollout and
// actor times meet". In one process cores move between the sampling and the training lane; in a job whole
// ranks change their roles, and environments go from slow rollouts to fast ones. The arithmetic is
// placement/balance.hpp's; who rebuilds what, Run's.
#pragma once

#include <algorithm>
#include <array>
#include <boost/hana.hpp>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/json.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/placement/balance.hpp"
#include "dvla/placement/deal.hpp"
#include "dvla/placement/placement_knobs.hpp"

namespace dvla {

/// Who does how much.
struct Shares {
  int rollouts = 1, actors = 1;                    ///< ranks
  int sampling_threads = 1, training_threads = 1;  ///< of each process
  std::vector<std::int64_t> groups;                ///< of environments, by rollout; empty: nearly equal
  bool operator==(const Shares&) const = default;
};

/// "3:1 ranks" or "1:1 threads".
inline std::string to_text(const Shares& shares, bool alone) {
  const auto ratio = [](int one, int other) { return std::to_string(one) + ":" + std::to_string(other); };
  std::string text = alone ? ratio(shares.sampling_threads, shares.training_threads) + " threads"
                           : ratio(shares.rollouts, shares.actors) + " ranks";
  for (std::size_t i = 0; i < shares.groups.size(); ++i)
    text += (i == 0 ? ", groups " : " ") + std::to_string(shares.groups[i]);
  return text;
}

/// One look: what a stretch has shown, and what follows.
struct Look {
  std::int64_t batch = 0;  ///< the first of the next stretch
  Shares shares;           ///< of the stretch that has ended
  LaneTimes times;         ///< medians of its batches, the slowest rank's
  Shares next;
};

namespace detail {
/// What the leader tells the others after a look.
struct SharesDecided {
  std::int64_t stretch = 0;
  Shares shares{};
};
}  // namespace detail

/// The last times of a lane, at most 64. One thread at a time.
class LaneClock {
 public:
  void add(double seconds) { times_[static_cast<std::size_t>(count_++) % times_.size()] = seconds; }
  /// 0 where there is none.
  double median() const {
    std::vector<double> sorted(times_.begin(),
                               times_.begin() + std::min<std::ptrdiff_t>(count_, std::ssize(times_)));
    if (sorted.empty()) return 0;
    std::nth_element(sorted.begin(), sorted.begin() + std::ssize(sorted) / 2, sorted.end());
    return sorted[sorted.size() / 2];
  }

 private:
  std::array<double, 64> times_{};
  std::ptrdiff_t count_ = 0;
};

/// Every rank has one, with the same arguments. One thread at a time.
class Adaptation {
 public:
  /// `splits`: how many ranks may roll out, where there are several; only the leader need know.
  Adaptation(const AdaptiveKnobs& knobs, const Job& job, int sampling_threads, int training_threads,
             std::vector<int> splits)
      : knobs_(knobs),
        alone_(job.alone()),
        shares_{job.rollouts(), job.actors(), sampling_threads, training_threads, {}},
        balance_(alone_ ? sampling_threads + training_threads : job.cluster().world(),
                 alone_ ? sampling_threads : job.rollouts(),
                 alone_ ? up_to(sampling_threads + training_threads - 1) : std::move(splits), knobs.within),
        stretch_(knobs.look_every) {}

  const Shares& shares() const { return shares_; }
  /// Batches until the next look.
  std::int64_t stretch() const { return stretch_; }
  /// How many looks there have been.
  std::int64_t looked() const { return looked_; }
  /// The leader's.
  const std::vector<Look>& looks() const { return looks_; }

  /// All ranks call it when a stretch has ended, before batch `batch`, each with the medians of its own
  /// lanes. `lost(rank)`: whether one is gone; then nothing moves any more. `groups`: of a batch, all in all.
  /// True: the shares are others now. Throws DeadlineError naming the rank that was waited for.
  template <class Lost>
  bool look(const Job& job, const LaneTimes& own, std::int64_t batch, std::int64_t groups, Lost lost) {
    const std::string number = std::to_string(looked_++);
    Shares next = shares_;
    if (job.leads()) {
      std::vector<LaneTimes> times;  // by rank; one that is not a rollout says 0 for sampling, and so on
      LaneTimes slowest;
      for (int rank = 0; rank < job.cluster().world(); ++rank) {
        const auto said =
            rank == job.rank() ? std::optional(own) : told<LaneTimes>(job, "look/" + number, rank, lost);
        frozen_ = frozen_ || !said;
        const LaneTimes& each = times.emplace_back(said.value_or(LaneTimes{}));
        slowest.sampling_s = std::max(slowest.sampling_s, each.sampling_s);
        slowest.training_s = std::max(slowest.training_s, each.training_s);
      }
      next = decide(job, times, slowest, groups);
      const bool moves = !(next == shares_);
      stretch_ = frozen_ ? forever : moves || !balance_.settled() ? knobs_.look_every : 2 * stretch_;
      looks_.push_back({batch, shares_, slowest, next});
      if (!alone_) job.tell("shares/" + number, json_text(detail::SharesDecided{stretch_, next}));
    } else {
      job.tell("look/" + number, json_text(own));
      const auto decided = told<detail::SharesDecided>(job, "shares/" + number, job.roles().leader(), lost);
      if (!decided) throw PeerError("the leader is lost: nobody says how the work is shared from now on");
      stretch_ = decided->stretch;
      next.rollouts = decided->shares.rollouts;  // threads are each process's own
      next.actors = decided->shares.actors;
      next.groups = decided->shares.groups;
    }
    const bool moves = !(next == shares_);
    shares_ = std::move(next);
    return moves;
  }

 private:
  static constexpr std::int64_t forever = std::numeric_limits<std::int64_t>::max() / 4;

  static std::vector<int> up_to(int last) {
    std::vector<int> all(static_cast<std::size_t>(last));
    std::iota(all.begin(), all.end(), 1);
    return all;
  }
  /// What rank `whom` tells under `topic`; nothing where it is lost instead.
  template <class Type, class Lost>
  static std::optional<Type> told(const Job& job, const std::string& topic, int whom, Lost lost) {
    const auto text =
        job.wait_for(Job::key(topic, whom), job.name(whom) + " to say how the shares of the work are",
                     [&] { return lost(whom); });
    if (!text) return std::nullopt;
    return parse_json<Type>(
        *text, "shares of the work, as " + job.name(whom) + " tells them; the ranks' programs differ");
  }

  Shares decide(const Job& job, const std::vector<LaneTimes>& times, const LaneTimes& slowest,
                std::int64_t groups) {
    Shares next = shares_;
    if (frozen_) return next;
    if (alone_) {
      next.sampling_threads = balance_.look(slowest);
      next.training_threads = balance_.total() - next.sampling_threads;
      return next;
    }
    const std::vector<int>& ranks = job.roles().rollouts;
    for (int i = 0; i < shares_.rollouts; ++i) {
      const int rank = ranks[static_cast<std::size_t>(i)];
      const double seconds = times[static_cast<std::size_t>(rank)].sampling_s;
      if (seconds > 0)
        speed_[rank] = static_cast<double>(dealt_to(shares_.groups, groups, shares_.rollouts, i)) / seconds;
    }
    next.rollouts = balance_.look(slowest);
    next.actors = balance_.total() - next.rollouts;
    next.groups = dealt(groups, detail::separated(next.actors, job.cluster().topology()),
                        slowest.training_s * shares_.actors / next.actors);
    return next;
  }
  /// Groups of rollout `i`: `share`, which is empty where they are nearly equal.
  static std::int64_t dealt_to(const std::vector<std::int64_t>& share, std::int64_t groups, int rollouts,
                               int i) {
    return share.empty() ? share_of(groups, rollouts, i).count : share[static_cast<std::size_t>(i)];
  }
  /// By the rollouts' speeds where that promises a shorter period; a rank that never rolled out counts as the
  /// mean. `training_s`: what the actors are expected to need.
  std::vector<std::int64_t> dealt(std::int64_t groups, const Roles& roles, double training_s) const {
    double sum = 0;
    for (const auto& [rank, speed] : speed_) sum += speed;
    if (!(sum > 0)) return {};
    std::vector<double> speed;
    for (const int rank : roles.rollouts) {
      const auto found = speed_.find(rank);
      speed.push_back(found != speed_.end() ? found->second : sum / static_cast<double>(speed_.size()));
    }
    const int rollouts = static_cast<int>(speed.size());
    const auto period = [&](const std::vector<std::int64_t>& share) {
      double seconds = training_s;
      for (int i = 0; i < rollouts; ++i) {
        const auto place = static_cast<std::size_t>(i);
        seconds = std::max(seconds, static_cast<double>(dealt_to(share, groups, rollouts, i)) / speed[place]);
      }
      return seconds;
    };
    const std::vector<std::int64_t> now =
        rollouts == shares_.rollouts ? shares_.groups : std::vector<std::int64_t>();
    const std::vector<std::int64_t> better = deal_groups(groups, speed);
    return period(better) < period(now) * (1 - knobs_.within) ? better : now;
  }

  const AdaptiveKnobs knobs_;
  const bool alone_;
  Shares shares_;
  Balance balance_;
  std::int64_t stretch_;
  std::int64_t looked_ = 0;
  bool frozen_ = false;          ///< the leader's: a rank is lost
  std::map<int, double> speed_;  ///< groups a second, by rank
  std::vector<Look> looks_;
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::Look, batch, shares, times, next);
BOOST_HANA_ADAPT_STRUCT(dvla::Shares, rollouts, actors, sampling_threads, training_threads, groups);
BOOST_HANA_ADAPT_STRUCT(dvla::detail::SharesDecided, stretch, shares);
