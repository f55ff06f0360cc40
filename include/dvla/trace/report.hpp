// The figures of a run, computed from the same spans that the trace file shows: overlap, bubbles, gain,
// critical path. Design: "Numbers, by definition". Reads only spans of category "lane" named sample, train,
// distribute, receive, one of each per batch; all others may lie beside and inside them. Batches without all
// four (their oldest spans were overwritten, or the run broke off) are left out.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/members.hpp"
#include "dvla/core/text.hpp"
#include "dvla/trace/span.hpp"

namespace dvla::trace {

inline constexpr std::array<const char*, 4> lane_span_names{"sample", "train", "distribute", "receive"};
inline constexpr std::array<const char*, 4> lane_names{"sampling", "training", "distribution", "reception"};

/// With no complete batch everything is 0.
struct report {
  std::int64_t iterations = 0;  ///< complete batches
  std::int64_t dropped = 0;     ///< spans that the rings lost, as told by the caller
  double wall_s = 0;            ///< from the first lane span's begin to the last one's end
  double sampling_s = 0;        ///< R: sum of all "sample" spans
  double training_s = 0;        ///< A: sum of all "train" spans
  double sync_s = 0;            ///< W: sum of all "distribute" and "receive" spans
  double overlap = 0;           ///< % of wall in which at least two of the four lanes are busy
  double bubble = 0;            ///< % of wall in which a main lane is idle: 100 (1 - (R + A) / (2 wall))
  double ideal_gain = 0;  ///< (R + A + W) / max(R, A, W): what perfect overlap would give over taking turns
  double achieved_gain = 0;   ///< (R + A + W) / wall
  double step_time_s = 0;     ///< wall / iterations
  double rollout_time_s = 0;  ///< R / iterations
  double actor_time_s = 0;    ///< A / iterations
  double sync_time_s = 0;     ///< W / iterations
  /// The critical path: walk back from the last span; the predecessor of a span is the one that it had to
  /// await and that ended last: the same lane's previous batch, the same batch in the previous lane, or (for
  /// a rollout) the latest reception that was over when it began. Seconds of the path spent in each lane, and
  /// between spans:
  std::array<double, 4> critical_s{};  ///< sampling, training, distribution, reception
  double critical_handover_s = 0;      ///< hand-overs; with critical_s this sums to the wall time
  /// Iterations bounded by each lane. Iteration b runs from the end of reception b - 1 to the end of
  /// reception b (the first from the start); the lane with the largest part of the critical path inside it
  /// bounds it.
  std::array<std::int64_t, 4> bounded_by{};
};

namespace detail {
struct lane_span {
  std::int64_t begin = 0, end = 0;
  bool seen = false;
};
using lane_batch = std::array<lane_span, 4>;

inline std::vector<lane_batch> complete_batches(const std::vector<span_record>& spans) {
  std::map<std::int64_t, lane_batch> by_batch;
  for (const auto& span : spans)
    if (std::string_view(span.category) == "lane")
      for (std::size_t lane = 0; lane < 4; ++lane)
        if (std::string_view(span.name) == lane_span_names[lane])
          by_batch[span.batch][lane] = {span.begin_ns, span.end_ns, true};
  std::vector<lane_batch> complete;
  for (const auto& [number, batch] : by_batch)
    if (std::all_of(batch.begin(), batch.end(), [](const lane_span& span) { return span.seen; }))
      complete.push_back(batch);
  return complete;
}

/// Nanoseconds in which at least two lanes are busy.
inline std::int64_t overlapped(const std::vector<lane_batch>& batches) {
  std::vector<std::pair<std::int64_t, int>> edges;
  for (const auto& batch : batches)
    for (const auto& span : batch) {
      edges.emplace_back(span.begin, +1);
      edges.emplace_back(span.end, -1);
    }
  std::sort(edges.begin(), edges.end());  // at one instant ends come first
  std::int64_t sum = 0, since = 0;
  int busy = 0;
  for (const auto& [when, change] : edges) {
    if (busy >= 2) sum += when - since;
    busy += change;
    since = when;
  }
  return sum;
}

inline void critical_path(const std::vector<lane_batch>& batches, report& into) {
  std::vector<std::array<std::int64_t, 4>> share(batches.size());  // ns of the path per iteration and lane
  const auto add = [&](std::size_t lane, std::int64_t from, std::int64_t to) {
    into.critical_s[lane] += static_cast<double>(to - from) * 1e-9;
    auto at =
        std::upper_bound(batches.begin(), batches.end(), from,
                         [](std::int64_t when, const lane_batch& batch) { return when < batch[3].end; });
    for (; at != batches.end() && from < to; ++at) {
      const std::int64_t until = std::min(to, (*at)[3].end);
      share[static_cast<std::size_t>(at - batches.begin())][lane] += until - from;
      from = until;
    }
  };
  std::size_t batch = batches.size() - 1, lane = 3;
  for (std::int64_t until = batches[batch][lane].end;;) {
    const lane_span& span = batches[batch][lane];
    add(lane, std::min(span.begin, until), until);
    std::int64_t best = -1;  // end of the best predecessor
    std::size_t best_batch = 0, best_lane = 0;
    const auto consider = [&](std::size_t b, std::size_t l) {
      if (batches[b][l].end > best) best = batches[b][l].end, best_batch = b, best_lane = l;
    };
    if (batch > 0) consider(batch - 1, lane);
    if (lane > 0) consider(batch, lane - 1);
    if (lane == 0)
      for (std::size_t b = batch; b-- > 0;)
        if (batches[b][3].end <= span.begin) {
          consider(b, 3);
          break;
        }
    if (best < 0) break;
    into.critical_handover_s += static_cast<double>(std::max<std::int64_t>(0, span.begin - best)) * 1e-9;
    until = std::min(best, span.begin);
    batch = best_batch, lane = best_lane;
  }
  for (const auto& parts : share)
    ++into.bounded_by[static_cast<std::size_t>(std::max_element(parts.begin(), parts.end()) - parts.begin())];
}
}  // namespace detail

/// `dropped`: recorder.dropped(), passed through.
inline report make_report(const std::vector<span_record>& spans, std::int64_t dropped = 0) {
  report out;
  out.dropped = dropped;
  const auto batches = detail::complete_batches(spans);
  if (batches.empty()) return out;
  std::array<std::int64_t, 4> busy{};
  std::int64_t begin = batches[0][0].begin, end = batches[0][0].end;
  for (const auto& batch : batches)
    for (std::size_t lane = 0; lane < 4; ++lane) {
      busy[lane] += batch[lane].end - batch[lane].begin;
      begin = std::min(begin, batch[lane].begin);
      end = std::max(end, batch[lane].end);
    }
  const auto seconds = [](std::int64_t ns) { return static_cast<double>(ns) * 1e-9; };
  const auto ratio = [](double over, double under) { return under > 0 ? over / under : 0; };
  const auto count = static_cast<double>(batches.size());
  out.iterations = static_cast<std::int64_t>(batches.size());
  out.wall_s = seconds(end - begin);
  out.sampling_s = seconds(busy[0]);
  out.training_s = seconds(busy[1]);
  out.sync_s = seconds(busy[2] + busy[3]);
  const double all = out.sampling_s + out.training_s + out.sync_s;
  out.overlap = 100 * ratio(seconds(detail::overlapped(batches)), out.wall_s);
  out.bubble = 100 * (1 - ratio(out.sampling_s + out.training_s, 2 * out.wall_s));
  out.ideal_gain = ratio(all, std::max({out.sampling_s, out.training_s, out.sync_s}));
  out.achieved_gain = ratio(all, out.wall_s);
  out.step_time_s = out.wall_s / count;
  out.rollout_time_s = out.sampling_s / count;
  out.actor_time_s = out.training_s / count;
  out.sync_time_s = out.sync_s / count;
  detail::critical_path(batches, out);
  return out;
}

/// Seconds of each lane's spans, in the mean; 0 where there are none, as of a rank that has not all lanes.
inline std::array<double, 4> lane_means(const std::vector<span_record>& spans) {
  std::array<double, 4> seconds{};
  std::array<std::int64_t, 4> counts{};
  for (const span_record& span : spans)
    for (std::size_t lane = 0; lane < 4; ++lane)
      if (std::string_view(span.category) == "lane" && std::string_view(span.name) == lane_span_names[lane]) {
        seconds[lane] += static_cast<double>(span.end_ns - span.begin_ns) * 1e-9;
        ++counts[lane];
      }
  for (std::size_t lane = 0; lane < 4; ++lane)
    if (counts[lane] > 0) seconds[lane] /= static_cast<double>(counts[lane]);
  return seconds;
}

/// A few lines for people.
inline std::string to_text(const report& r) {
  std::string out = printed(
      "%lld iterations in %.3f s: step %.3g s = rollout %.3g s, actor %.3g s, sync %.3g s, overlapping\n"
      "overlap %.1f %% of wall (two or more lanes busy), bubble %.1f %% (sampling and training idle)\n"
      "gain over taking turns %.2f of ideal %.2f\n"
      "critical path: sampling %.3g s, training %.3g s, distribution %.3g s, reception %.3g s, "
      "hand-over %.3g s; iterations bounded by each lane: %lld, %lld, %lld, %lld\n",
      static_cast<long long>(r.iterations), r.wall_s, r.step_time_s, r.rollout_time_s, r.actor_time_s,
      r.sync_time_s, r.overlap, r.bubble, r.achieved_gain, r.ideal_gain, r.critical_s[0], r.critical_s[1],
      r.critical_s[2], r.critical_s[3], r.critical_handover_s, static_cast<long long>(r.bounded_by[0]),
      static_cast<long long>(r.bounded_by[1]), static_cast<long long>(r.bounded_by[2]),
      static_cast<long long>(r.bounded_by[3]));
  if (r.dropped > 0)
    out += "the trace lost " + std::to_string(r.dropped) + " spans; give the recorder more room\n";
  return out;
}

}  // namespace dvla::trace

template <std::same_as<dvla::trace::report> R>
struct boost::hana::accessors_impl<R>
    : dvla::members<&R::iterations, &R::wall_s, &R::sampling_s, &R::training_s, &R::sync_s, &R::overlap,
                    &R::bubble, &R::ideal_gain, &R::achieved_gain, &R::step_time_s, &R::rollout_time_s,
                    &R::actor_time_s, &R::sync_time_s, &R::critical_s, &R::critical_handover_s,
                    &R::bounded_by> {};
