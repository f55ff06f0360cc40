// What makes an asynchronous run irreproducible, written down: from which chunk boundary of which rollout on
// a weight version decided. All else follows from seeds and from the order of batches, which no lane changes.
// Paper: "weights are swapped at chunk boundaries". Replay repeats a recording. A plain struct; its file is
// schedule/recording_file.hpp's. Memory: 32 bytes a version that decided, so at most 32 bytes a batch.
#pragma once

#include <boost/hana.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dvla/core/checksum.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// Weights handed over to the sampler: from this chunk boundary of this batch on they decide, until the next
/// hand-over.
struct HandOver {
  std::int64_t version = 0;
  std::int64_t batch = 0;
  std::int64_t boundary = 0;  ///< counted in the batch, from 0
  std::uint64_t weights = 0;  ///< checksum
  bool operator==(const HandOver&) const = default;
};

struct Recording {
  int staleness = 0;                             ///< K of the recorded run
  std::int64_t boundaries = 0;                   ///< chunk boundaries of each batch
  std::int64_t first_batch = 0;                  ///< also the version that the run began with
  std::int64_t batches = 0;                      ///< rollouts that came to their end
  std::vector<HandOver> hand_overs{};            ///< in order; the first is that of the weights at the start
  std::optional<std::uint64_t> final_weights{};  ///< checksum at the end; none if the run failed
  bool operator==(const Recording&) const = default;
};

namespace detail {

/// Writes one rollout down: what sample(token, boundaries) is given while a run records.
class recording_boundaries {
 public:
  recording_boundaries(Recording& into, std::int64_t batch) : into_(into), batch_(batch) {}

  void before(std::int64_t) {}
  template <class Checksum>
  void decides(std::int64_t boundary, std::int64_t version, const Checksum& weights_checksum) {
    auto& all = into_.hand_overs;
    if (boundary != passed_++ || (!all.empty() && version < all.back().version))
      throw Error("stage 'sample' tells of version ", version, " at chunk boundary ", boundary,
                  "; boundaries are counted from 0, and versions never fall");
    if (all.empty() || version > all.back().version)
      all.push_back({version, batch_, boundary, weights_checksum()});
  }
  /// The rollout is over. The first one says how many boundaries there are, unless `into` does.
  void end() {
    if (into_.boundaries == 0) into_.boundaries = passed_;
    if (passed_ == 0 || passed_ != into_.boundaries)
      throw Error("stage 'sample' passed ", passed_, " chunk boundaries; that must be ",
                  passed_ == 0 ? "1 or more" : std::to_string(into_.boundaries) + ", as in the first batch");
    ++into_.batches;
  }

 private:
  Recording& into_;
  const std::int64_t batch_;
  std::int64_t passed_ = 0;
};

/// What no run can have done, in a sentence; empty: nothing.
inline std::string flaw_of(const Recording& recording) {
  const std::int64_t boundaries = recording.boundaries, first = recording.first_batch,
                     batches = recording.batches, bound = recording.staleness;
  const std::vector<HandOver>& all = recording.hand_overs;
  constexpr std::int64_t most = std::int64_t{1} << 53;
  if (bound < 0 || bound > 1024) return "its staleness is not 0 to 1024";
  if (first < 0 || first > most || batches < 0 || batches > most) return "it has no sound range of batches";
  if (batches == 0) return all.empty() ? "" : "it has hand-overs, but no batch";
  if (boundaries < 1 || boundaries > most) return "its batches have no chunk boundaries";
  if (all.empty() || all[0].version != first || all[0].batch != first || all[0].boundary != 0)
    return "it does not begin with the weights of its first batch";
  const auto too_old = [&](const HandOver& deciding, std::int64_t begun) {
    if (begun - deciding.version <= bound) return std::string();
    return "batch " + std::to_string(begun) + " begins with version " + std::to_string(deciding.version) +
           ", more than its staleness of " + std::to_string(bound) + " allows";
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    const HandOver& one = all[i];
    const auto but = [&](const char* what) {
      return "its hand-over of version " + std::to_string(one.version) + what;
    };
    if (one.batch < first || one.batch >= first + batches || one.boundary < 0 || one.boundary >= boundaries)
      return but(" lies in no rollout");
    if (one.version > one.batch) return but(" comes before those weights were made");
    if (i == 0) continue;
    const HandOver& earlier = all[i - 1];
    if (one.version <= earlier.version) return but(" is not of newer weights");
    if (std::tie(one.batch, one.boundary) <= std::tie(earlier.batch, earlier.boundary))
      return but(" is not later than the one before");
    if (std::string flaw = too_old(earlier, one.batch - (one.boundary == 0 ? 1 : 0)); !flaw.empty())
      return flaw;
  }
  return too_old(all.back(), first + batches - 1);
}

}  // namespace detail

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::HandOver, version, batch, boundary, weights);
BOOST_HANA_ADAPT_STRUCT(dvla::Recording, staleness, boundaries, first_batch, batches, hand_overs,
                        final_weights);
