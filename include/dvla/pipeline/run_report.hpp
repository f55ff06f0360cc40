// A run's figures, by the definitions of docs/numbers.md: of one process, or of a job of several, whose ranks
// hand theirs in to the leader.
#pragma once

#include <algorithm>
#include <boost/hana.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/pipeline/adaptation.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/schedule/runner.hpp"
#include "dvla/trace/process.hpp"
#include "dvla/trace/report.hpp"

namespace dvla {

/// What one rank of a job did in one train(). Counts of trajectories are episodes; bytes are what this rank
/// sent to and received from others. What a rank is not stays 0.
struct RankReport {
  BOOST_HANA_DEFINE_STRUCT(
      RankReport, (std::int64_t, rank), (double, rollout_time_s),  // mean over its batches, as the next two
      (double, actor_time_s), (double, sync_time_s), (std::int64_t, env_steps), (std::int64_t, chunk_steps),
      (std::int64_t, failed_rows),  // of the environment, each counted once a pass
      (std::int64_t, sent), (std::int64_t, trained), (std::int64_t, dropped), (std::int64_t, in_flight),
      (std::int64_t, unacknowledged), (std::int64_t, lost),
      (std::int64_t, unreported),  // received from rollouts that died and reported nothing
      (std::int64_t, data_bytes_sent), (std::int64_t, data_bytes_received), (std::int64_t, weight_bytes_sent),
      (std::int64_t, weight_bytes_received), (std::int64_t, gradient_bytes_sent),
      (trace::process, trace));  // its name is the rank's
};

/// The three times from the rank's own trace: means over its batches.
inline void time_lanes(RankReport& report) {
  const auto [sampling, training, distribution, reception] = trace::lane_means(report.trace.spans());
  report.rollout_time_s = sampling;
  report.actor_time_s = training;
  report.sync_time_s = distribution + reception;
}

/// Of one train(). In a job of several processes the leader's is the whole job's, every other rank's its own.
struct RunReport {
  trace::report timing;  ///< of a job: see sum_up
  std::int64_t env_steps = 0, chunk_steps = 0;
  std::int64_t failed_rows = 0;  ///< of the environment, in all passes: they were left out and made anew
  double train_wall_s = 0;       ///< from the start of train() to its end
  std::int64_t max_staleness = 0;
  std::vector<std::int64_t> staleness;  ///< batches with lag 0, 1, ... K
  std::int64_t batches = 0;
  bool stopped = false;
  int signal = 0;
  std::vector<Look> looks;        ///< of a placement that adapts, on the leader
  std::vector<RankReport> ranks;  ///< of a job of several processes, on its leader
  std::vector<int> silent;        ///< ranks that gave no report: they died or left the job
  /// One stretch more; batches are counted by the caller in the end.
  void add(const run_result& stretch) {
    batches += stretch.batches;
    stopped = stretch.stopped;
    signal = stretch.signal;
    max_staleness = std::max(max_staleness, stretch.max_staleness);
    staleness.resize(std::max(staleness.size(), stretch.staleness.size()));
    for (std::size_t lag = 0; lag < stretch.staleness.size(); ++lag) staleness[lag] += stretch.staleness[lag];
  }
  double env_steps_per_s() const {
    return train_wall_s > 0 ? static_cast<double>(env_steps) / train_wall_s : 0;
  }
  double chunk_steps_per_s() const {
    return train_wall_s > 0 ? static_cast<double>(chunk_steps) / train_wall_s : 0;
  }
};

/// Sums of counts and bytes over the ranks; times are the largest rank's.
inline RankReport total(const std::vector<RankReport>& ranks) {
  RankReport all{};
  for (const RankReport& each : ranks)
    boost::hana::for_each(boost::hana::accessors<RankReport>(), [&](auto accessor) {
      const auto figure = boost::hana::second(accessor);
      using Figure = std::remove_cvref_t<decltype(figure(all))>;
      if constexpr (std::is_floating_point_v<Figure>)
        figure(all) = std::max(figure(all), figure(each));
      else if constexpr (std::is_integral_v<Figure>)
        figure(all) += figure(each);
    });
  all.rank = -1;
  return all;
}

inline std::vector<trace::process> traces_of(const std::vector<RankReport>& ranks) {
  std::vector<trace::process> traces;
  for (const RankReport& each : ranks) traces.push_back(each.trace);
  return traces;
}

namespace detail {
/// A rollout that left in peace and came again has handed in one for each incarnation.
inline std::string report_of(std::int64_t incarnation) { return "report/" + std::to_string(incarnation); }
}  // namespace detail

/// At the end of a job, every rank but the leader: what the leader gathers.
inline void hand_in(const RankReport& own, const Job& job) {
  job.tell(detail::report_of(job.incarnation()), json_text(own));
}

/// The leader: the reports of the ranks' newest incarnations, in order, and its own among them. Who is lost,
/// and has handed in nothing before, is silent, and so is who hands in nothing within the job's limit.
/// `lost(rank)`: whether one is. `store`: whether the job's store still answers; else all others are silent.
template <class Lost>
void gather(RunReport& report, RankReport own, const Job& job, Lost lost, bool store = true) {
  for (int rank = 0; rank < job.cluster().world(); ++rank) {
    if (rank == job.rank()) {
      report.ranks.push_back(std::move(own));
      continue;
    }
    try {
      const std::string topic = store ? detail::report_of(job.newest_incarnation(rank)) : "";
      if (store && (!lost(rank) || job.has_told(topic, rank))) {
        report.ranks.push_back(
            parse_json<RankReport>(job.told(topic, rank), "report of another rank, whose program differs"));
        continue;
      }
    } catch (const DeadlineError&) {
    } catch (const PeerError&) {
      store = false;
    }
    report.silent.push_back(rank);
  }
}
/// Then: what its ranks' reports make of the job's. In its timing the rank that ended last stands for all, of
/// each batch and lane; the three times are the largest rank's means.
inline void sum_up(RunReport& report) {
  const RankReport all = total(report.ranks);
  const std::vector<trace::process> traces = traces_of(report.ranks);
  std::int64_t dropped = 0;
  for (const trace::process& each : traces) dropped += each.dropped;
  report.timing = trace::make_report(trace::slowest(traces), dropped);
  report.timing.rollout_time_s = all.rollout_time_s;
  report.timing.actor_time_s = all.actor_time_s;
  report.timing.sync_time_s = all.sync_time_s;
  report.env_steps = all.env_steps;
  report.chunk_steps = all.chunk_steps;
  report.failed_rows = all.failed_rows;
}

}  // namespace dvla

/// What of it is a number of its own in report.json.
template <std::same_as<dvla::RunReport> R>
struct boost::hana::accessors_impl<R>
    : dvla::members<&R::env_steps, &R::chunk_steps, &R::failed_rows, &R::train_wall_s, &R::max_staleness,
                    &R::batches, &R::stopped> {};
