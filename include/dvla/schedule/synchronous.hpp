// The synchronous schedule: one thread samples, trains, distributes and receives in turn, so that each phase
// may use all cores. The baseline of the swimlane, and what a resumed run repeats bit for bit.
#pragma once

#include "dvla/core/machinery.hpp"
#include "dvla/schedule/descriptors.hpp"
#include "dvla/schedule/runner.hpp"

namespace dvla {

/// Interface, checks, result and trace spans of SwimlaneRunner, in the caller's thread (trace row
/// "synchronous"). Staleness is always 0. observe() is called in line, after receive().
class SynchronousRunner {
 public:
  /// Throws ConfigError (options), LaneError with the original nested (a stage threw). Waits for nobody, so
  /// options.deadline has nothing to limit.
  template <LaneStages Stages, class Recorder = trace::Off>
  static run_result run(Stages& stages, const run_options& options, Recorder& recorder = trace::off) {
    detail::check_options(options, 0);
    detail::checked_stages<Stages, Recorder> work(stages, recorder, options);
    auto row = recorder.enter("synchronous");
    detail::enter_lane(stages, lane_kind::every);
    const bool rolls_out = options.share != lane_share::actor, trains = options.share != lane_share::rollout;
    std::int64_t finished = 0;
    for (; finished < options.batches; ++finished) {
      if (options.stop && options.stop->stop_requested()) break;
      const std::int64_t batch = options.first_batch + finished;
      Token token{batch, batch, 0};
      if (rolls_out) work.sample(token);
      if (trains) {
        if (!work.train(token)) break;
        work.distribute(token);
      }
      if (rolls_out) work.receive(token);
      if (trains) work.observe(token);
    }
    return work.result(finished, options);
  }
};

template <class Pipeline>
struct machinery<Synchronous, Pipeline> {
  using type = SynchronousRunner;
};

}  // namespace dvla
