// The arithmetic of Adaptive: how many of n equal workers (cores of a process, ranks of a job) should sample
// and how many should train, so that the two meet; and how the groups of environments are dealt to rollouts
// of different speeds. Paper: "adapted until rollout and actor times meet"; the best period of a batch is
// that of the slower side. Pure: measures nothing, moves nothing.
#pragma once

#include <algorithm>
#include <boost/hana.hpp>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/placement/deal.hpp"

namespace dvla {

/// Of one batch, in seconds.
struct LaneTimes {
  double sampling_s = 0, training_s = 0;
  double period() const { return std::max(sampling_s, training_s); }
};

/// Goes from split to split until the times meet, or no other split promises a gain of `within`. What a split
/// would give is first taken to be in inverse proportion to its workers; once it has been tried, what was
/// measured counts. So each split is tried at most once, and the best of those is kept. Where the times drift
/// away afterwards, for two looks in a row, it begins anew; where that led nowhere, only after twice as many
/// the next time. One thread at a time.
class Balance {
 public:
  /// `sampling` of `total` workers sample at first. `splits`: the numbers that may sample, each from 1 to
  /// total - 1. `within`: how far the times may be apart, as a share of the longer one.
  Balance(int total, int sampling, std::vector<int> splits, double within)
      : total_(total), splits_(std::move(splits)), sampling_(sampling), within_(within) {
    splits_.push_back(sampling);
    for (const int split : splits_)
      if (split < 1 || split >= total)
        throw Error("Balance: ", split, " of ", total,
                    " workers sample; at least one is needed on either side");
    if (!(within > 0 && within < 1))
      throw Error("Balance: within is ", std::to_string(within), "; it must be above 0 and below 1");
  }

  int total() const { return total_; }
  int sampling() const { return sampling_; }
  bool settled() const { return settled_; }

  /// `times` at the present split; returns the next one.
  int look(const LaneTimes& times) {
    const double period = times.period();
    if (!(period > 0)) return sampling_;  // nothing was measured
    if (settled_) {
      const bool drifts = std::abs(period - measured_[sampling_]) > within_ * measured_[sampling_];
      drifted_ = drifts ? drifted_ + 1 : 0;
      if (drifted_ < patience_) return sampling_;
      measured_.clear();  // the work is another one than it was
      settled_ = false;
      drifted_ = 0;
      before_ = sampling_;
    }
    measured_[sampling_] = period;
    const bool meet = std::abs(times.sampling_s - times.training_s) <= within_ * period;
    int best = sampling_;
    double least = period * (1 - within_);  // less is not worth a move
    for (const int split : splits_) {
      const auto tried = measured_.find(split);
      if (tried == measured_.end() && meet) continue;
      const double expected = tried != measured_.end()
                                  ? tried->second
                                  : std::max(times.sampling_s * sampling_ / split,
                                             times.training_s * (total_ - sampling_) / (total_ - split));
      if (expected < least) {
        best = split;
        least = expected;
      }
    }
    settled_ = best == sampling_ || measured_.contains(best);
    if (settled_ && best == before_) patience_ = std::min(2 * patience_, 1024);  // it was in vain
    return sampling_ = best;
  }

 private:
  const int total_;
  std::vector<int> splits_;
  int sampling_;
  const double within_;
  bool settled_ = false;
  int drifted_ = 0;                 ///< looks in a row, since it settled
  int patience_ = 2;                ///< so many of them begin anew; twice as many when that led nowhere
  int before_ = 0;                  ///< where it had settled
  std::map<int, double> measured_;  ///< period by split
};

/// `groups` dealt in proportion to `speed` (of any unit, above 0), at least one each. Throws Error for fewer
/// groups than rollouts.
inline std::vector<std::int64_t> deal_groups(std::int64_t groups, const std::vector<double>& speed) {
  if (groups < std::ssize(speed) || speed.empty())
    throw Error("deal_groups: ", groups, " groups for ", speed.size(), " rollouts; each needs one");
  std::vector<std::int64_t> dealt(speed.size(), 1);
  detail::deal(groups, speed, dealt);
  return dealt;
}

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::LaneTimes, sampling_s, training_s);
