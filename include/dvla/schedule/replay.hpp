// The replay schedule: a recorded run again, one stage at a time. In the recorded run weights arrived while
// rollouts were under way; here a rollout pauses ahead of each chunk boundary at which newer weights took
// over, and the batches that these were made from are trained, distributed and received inside the pause. So
// what decides is what decided then, and the weights at the end are equal. Each version that decides is held
// against the recording's checksum, so a run that strays says where. Not for speed, and its trace has no
// lanes: overlap and gain are not computed.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
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
      throw ConfigError(std::string("run_options.") + field + " is " + std::to_string(value) +
                        ", but the recording " + recorded);
    };
    if (!options.replay) throw ConfigError("run_options.replay is null: Replay needs the recording of a run");
    if (options.share != lane_share::all)
      throw ConfigError("run_options.share is not all: Replay runs all four lanes in one process");
    const Recording& recording = *options.replay;
    if (const std::string flaw = detail::flaw_of(recording); !flaw.empty())
      throw ConfigError("run_options.replay cannot be replayed: " + flaw);
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
    std::int64_t installed = options.first_batch;
    std::vector<Token> live =
        std::vector<Token>(static_cast<std::size_t>(options.staleness) + 1);  // a slot a trajectory buffer
    std::size_t next = 0;                                                     // hand-over
    std::int64_t deciding = -1;                                               // version
    std::exception_ptr inside{};

    /// Pauses a rollout, and checks what decides in it.
    struct boundaries {
      boundaries(again& whose, std::int64_t of) : run(whose), batch(of) {
        if (run.options.record) record.emplace(*run.options.record, batch);
      }

      void before(std::int64_t boundary) {
        if (const HandOver* due = run.due(batch, boundary); due && due->version > run.installed) {
          run.install(due->version);
          detail::enter_lane(run.stages, lane_kind::sampling);
        }
      }
      template <class Checksum>
      void decides(std::int64_t boundary, std::int64_t version, const Checksum& weights_checksum) {
        const auto stray = [&](const std::string& what) {
          throw Error("the replay strays from its recording at chunk boundary " + std::to_string(boundary) +
                      " of batch " + std::to_string(batch) + ": " + what);
        };
        if (boundary != passed++ || boundary >= run.recording.boundaries)
          stray("the recorded rollouts have " + std::to_string(run.recording.boundaries) +
                " boundaries, told of in order");
        if (const HandOver* due = run.due(batch, boundary)) {
          if (version == due->version && weights_checksum() != due->weights)
            stray("the weights of version " + std::to_string(version) +
                  " are other ones; are pipeline, settings, seed and machine those of the recorded run?");
          run.deciding = due->version;
          ++run.next;
        }
        if (version != run.deciding)
          stray("version " + std::to_string(version) + " decides instead of " + std::to_string(run.deciding));
        if (record) record->decides(boundary, version, weights_checksum);
      }
      void end() {
        if (passed != run.recording.boundaries)
          throw Error("stage 'sample' passed " + std::to_string(passed) +
                      " chunk boundaries, in the recorded run " + std::to_string(run.recording.boundaries));
        if (record) record->end();
      }

      again& run;
      const std::int64_t batch;
      std::int64_t passed = 0;
      std::optional<detail::recording_boundaries> record;
    };

    run_result run() {
      auto row = recorder.enter("replay");
      const std::int64_t end = options.first_batch + options.batches;
      std::int64_t batch = options.first_batch;
      const auto stopped = [&] { return options.stop && options.stop->stop_requested(); };
      for (; batch < end && !stopped(); ++batch) {
        if (const HandOver* at_start = due(batch, 0)) {
          install(at_start->version);
          if (stopped()) break;
        }
        detail::enter_lane(stages, lane_kind::sampling);
        const auto buffer = static_cast<std::size_t>(batch) % live.size();
        live[buffer] = {batch, installed, static_cast<std::int32_t>(buffer)};
        sample(live[buffer]);
      }
      install(batch);
      return work.result(installed - options.first_batch, options);
    }

    void sample(Token& token) {
      try {
        work.sample(token, [&] {
          boundaries pauses(*this, token.batch);
          stages.sample(token, pauses);
          pauses.end();
        });
      } catch (...) {
        if (inside) std::rethrow_exception(inside);  // another lane's error, which the rollout let through
        throw;
      }
    }

    /// The hand-over at this chunk boundary, if there is one.
    const HandOver* due(std::int64_t batch, std::int64_t boundary) const {
      if (next == recording.hand_overs.size()) return nullptr;
      const HandOver& one = recording.hand_overs[next];
      return one.batch == batch && one.boundary == boundary ? &one : nullptr;
    }

    /// The batches before `version`, one after the other, through the other three lanes.
    void install(std::int64_t version) {
      try {
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
      } catch (...) {
        inside = std::current_exception();
        throw;
      }
    }
  };
};

template <class Pipeline>
struct machinery<Replay, Pipeline> {
  using type = ReplayRunner;
};

}  // namespace dvla
