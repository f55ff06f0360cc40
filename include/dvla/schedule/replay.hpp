// The replay schedule: a recorded run again, one stage at a time. In the recorded run weights arrived while
// rollouts were under way; here a rollout pauses ahead of each chunk boundary at which newer weights took
// over, and the batches that these were made from are trained, distributed and received inside the pause. So
// what decides is what decided then, and the weights at the end are equal. Each version that decides is held
// against the recording's checksum, so a run that strays says where. Not for speed, and its trace has no
// lanes: overlap and gain are not computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <tuple>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/schedule/descriptors.hpp"
#include "dvla/schedule/runner.hpp"

namespace dvla {

/// Interface, checks and result of SwimlaneRunner, in the caller's thread (trace row "replay"). Repeats the
/// first options.batches batches of *options.replay. observe() is called in line, after receive().
class ReplayRunner {
 public:
  /// Throws ConfigError (options; a recording of another length, begin or staleness), LaneError with the
  /// original nested (a stage threw, or other weights decide than did then). Waits for nobody, so
  /// options.deadline has nothing to limit.
  template <LaneStages Stages, class Recorder = trace::Off>
  static run_result run(Stages& stages, const run_options& options, Recorder& recorder = trace::off) {
    static_assert(BoundaryStages<Stages>,
                  "dvla: Replay needs stages with sample(token, boundaries), to pause them at chunk "
                  "boundaries (handoff/stages.hpp)");
    detail::check_options(options, 1024, true);
    check(options);
    if constexpr (BoundaryStages<Stages>) return again<Stages, Recorder>{stages, options, recorder}.run();
    return {};
  }

 private:
  static void check(const run_options& options) {
    const auto differ = [](const char* field, std::int64_t value, const std::string& recorded) {
      throw ConfigError("run_options.", field, " is ", value, ", but the recording ", recorded);
    };
    if (!options.replay) throw ConfigError("run_options.replay is null: Replay needs the recording of a run");
    if (options.share != lane_share::all)
      throw ConfigError("run_options.share is not all: Replay runs all four lanes in one process");
    const Recording& recording = *options.replay;
    if (const std::string flaw = detail::flaw_of(recording); !flaw.empty())
      throw ConfigError("run_options.replay cannot be replayed: ", flaw);
    if (options.staleness != recording.staleness)
      differ("staleness", options.staleness, "is of a run with " + std::to_string(recording.staleness));
    if (options.batches > recording.batches)
      differ("batches", options.batches, "has only " + std::to_string(recording.batches));
    if (options.first_batch != recording.first_batch && options.batches > 0)
      differ("first_batch", options.first_batch,
             "begins with batch " + std::to_string(recording.first_batch) +
                 ": begin where the recorded run did, from the same checkpoint if it had one");
  }

  template <class Stages, class Recorder>
  struct again {
    Stages& stages;
    const run_options& options;
    Recorder& recorder;
    const Recording& recording = *options.replay;
    detail::checked_stages<Stages, Recorder> work{stages, recorder, options, "replay"};
    Recording own{};
    Recording& repeated =
        options.record ? *options.record : own;  // what this run does, to be held against it
    std::int64_t installed = options.first_batch;
    std::vector<Token> live =
        std::vector<Token>(static_cast<std::size_t>(options.staleness) + 1);  // a slot a trajectory buffer

    /// Pauses a rollout, and checks what decides in it.
    struct boundaries : detail::recording_boundaries {
      boundaries(again& whose, std::int64_t of)
          : recording_boundaries(whose.repeated, of), run(whose), batch(of) {}

      void before(std::int64_t boundary) {
        const std::int64_t version = run.deciding(batch, boundary).version;
        if (version <= run.installed) return;
        run.install(version);
        detail::enter_lane(run.stages, lane_kind::sampling);
      }
      template <class Checksum>
      void decides(std::int64_t boundary, std::int64_t version, const Checksum& weights_checksum) {
        recording_boundaries::decides(boundary, version, weights_checksum);
        const HandOver& then = run.deciding(batch, boundary);
        const auto stray = [&](const std::string& what) {
          throw Error("the replay strays from its recording at chunk boundary ", boundary, " of batch ",
                      batch, ": ", what);
        };
        if (version != then.version)
          stray("version " + std::to_string(version) + " decides instead of " + std::to_string(then.version));
        if (run.repeated.hand_overs.back().weights != then.weights)
          stray("the weights of version " + std::to_string(version) +
                " are other ones; are pipeline, settings, seed and machine those of the recorded run?");
      }

      again& run;
      const std::int64_t batch;
    };

    run_result run() {
      auto row = recorder.enter("replay");
      repeated.boundaries = recording.boundaries;
      const std::int64_t end = options.first_batch + options.batches;
      std::int64_t batch = options.first_batch;
      const auto stopped = [&] { return options.stop && options.stop->stop_requested(); };
      for (; batch < end && !stopped(); ++batch) {
        install(deciding(batch, 0).version);
        if (stopped()) break;
        detail::enter_lane(stages, lane_kind::sampling);
        const auto buffer = static_cast<std::size_t>(batch) % live.size();
        live[buffer] = {batch, installed, static_cast<std::int32_t>(buffer)};
        work.sample(live[buffer], [&] {
          boundaries pauses(*this, batch);
          stages.sample(live[buffer], pauses);
          pauses.end();
        });
      }
      install(batch);
      return work.result(installed - options.first_batch, options);
    }

    /// Which hand-over decides there.
    const HandOver& deciding(std::int64_t batch, std::int64_t boundary) const {
      const auto later = std::upper_bound(
          recording.hand_overs.begin(), recording.hand_overs.end(), std::tuple(batch, boundary),
          [](const auto& here, const HandOver& one) { return here < std::tie(one.batch, one.boundary); });
      return *std::prev(later);
    }

    /// The batches before `version`, one after the other, through the other three lanes.
    void install(std::int64_t version) {
      for (; installed < version; ++installed) {
        Token& token = live[static_cast<std::size_t>(installed) % live.size()];
        detail::enter_lane(stages, lane_kind::training);
        if (!work.train(token)) throw Error("stage 'arrive' ends the batches before the recording does");
        detail::enter_lane(stages, lane_kind::distribution);
        work.distribute(token);
        detail::enter_lane(stages, lane_kind::reception);
        work.receive(token);
        detail::enter_lane(stages, lane_kind::observer);
        work.observe(token);
      }
    }
  };
};

template <class Pipeline>
struct machinery<Replay, Pipeline> {
  using type = ReplayRunner;
};

}  // namespace dvla
