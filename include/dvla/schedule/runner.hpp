// What the schedules' runners share: options, result, and the checks around each stage of each batch.
// The descriptors (Swimlane<Max>, Synchronous, Replay) are in descriptors.hpp; the machinery in swimlane.hpp,
// synchronous.hpp, replay.hpp.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/handoff/lane.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/schedule/recording.hpp"
#include "dvla/trace/off.hpp"

namespace dvla {

/// Which of the four lanes this process runs: all; those of a rollout (sampling, reception); those of an
/// actor (training, distribution).
enum class lane_share : std::uint8_t { all, rollout, actor };

struct run_options {
  lane_share share = lane_share::all;
  std::int64_t first_batch =
      0;                     ///< number of the first batch, which is also the version that is installed: >= 0
  std::int64_t batches = 1;  ///< how many to run: >= 0
  int staleness = 0;  ///< K: how many versions a batch may lag when it is trained; 0 to the runner's maximum
  /// Limit of each single wait of one lane for another: longer than the longest stage behind it can take.
  std::chrono::nanoseconds deadline = std::chrono::minutes(30);
  /// The deadline of the last wait, the one for lanes to come back after a failure: a stage that is in work
  /// may end by itself, but no thread can be stopped from outside. When it runs out, the process names the
  /// lane on stderr and ends itself (std::abort). Ten minutes unless a program says otherwise; not a knob.
  std::chrono::nanoseconds grace = std::chrono::minutes(10);
  std::function<void(const std::string&)> on_give_up{};  ///< told of it before; may end the process itself
  const stop_flag* stop = nullptr;                       ///< asks for a clean stop; may be null
  /// If not null, the run is written down there, all but `final_weights`; what it held is lost. Needs all
  /// lanes in this process and BoundaryStages. Of a run that fails it holds the rollouts that came to their
  /// end.
  Recording* record = nullptr;
  const Recording* replay = nullptr;  ///< the run that Replay repeats; null for all other schedules
};

struct run_result {
  std::int64_t batches = 0;             ///< batches that went through all stages of this process
  bool stopped = false;                 ///< ended early, and cleanly, because `stop` asked
  int signal = 0;                       ///< the signal that asked; 0: none
  std::int64_t max_staleness = 0;       ///< largest lag of a batch when it was trained
  std::vector<std::int64_t> staleness;  ///< how many batches had lag 0, 1, ..., K
};

namespace detail {

/// `replays`: of Replay.
inline void check_options(const run_options& options, int max_staleness, bool replays = false) {
  const auto reject = [](const std::string& field, const std::string& value, const std::string& range) {
    throw ConfigError("run_options.", field, " is ", value, ", choose ", range);
  };
  if (options.first_batch < 0) reject("first_batch", std::to_string(options.first_batch), "0 or more");
  if (options.batches < 0) reject("batches", std::to_string(options.batches), "0 or more");
  if (options.staleness < 0 || options.staleness > max_staleness)
    reject("staleness", std::to_string(options.staleness),
           max_staleness == 0 ? "0" : "0 to " + std::to_string(max_staleness));
  if (options.deadline <= std::chrono::nanoseconds{0})
    reject("deadline", seconds_text(options.deadline), "more than 0 s");
  if (options.grace <= std::chrono::nanoseconds{0})
    reject("grace", seconds_text(options.grace), "more than 0 s");
  if (options.replay && !replays) reject("replay", "given", "none, or the schedule Replay");
  if (options.record && options.share != lane_share::all)
    reject("record", "given", "none where a process does not run all four lanes");
}

/// The four stages with their checks, traced; what leaves them is a LaneError that names lane and batch.
/// `category`: of the spans.
template <class Stages, class Recorder>
class checked_stages {
 public:
  checked_stages(Stages& stages, Recorder& recorder, const run_options& options,
                 const char* category = "lane")
      : stages_(stages),
        recorder_(recorder),
        staleness_(options.staleness),
        record_(options.record),
        category_(category) {
    if (options.share == lane_share::actor && !ArrivingStages<Stages>)
      throw Error("run_options.share is actor, but the stages have no arrive(token): nobody brings batches");
    if (record_ && !BoundaryStages<Stages>)
      throw Error("run_options.record is given, but the stages have no sample(token, boundaries)");
    if (record_) {
      *record_ = Recording();
      record_->staleness = staleness_;
      record_->first_batch = options.first_batch;
    }
    lags_.assign(static_cast<std::size_t>(staleness_) + 1, 0);
  }

  // What a lane does with each of its tokens. False: no batch follows this one, which has not come either.
  bool sample(Token& token) {
    sample(token, [&] {
      if constexpr (BoundaryStages<Stages>) {
        if (record_) {
          recording_boundaries boundaries(*record_, token.batch);
          stages_.sample(token, boundaries);
          boundaries.end();
          return;
        }
      }
      stages_.sample(token);
    });
    return true;
  }
  /// `work` calls the stage.
  template <class Work>
  void sample(Token& token, Work work) {
    call("sampling", "sample", category_, token, work, [&] {
      if (!in_bounds(token))
        throw Error("stage 'sample' reports weight version ", token.version,
                    "; report the oldest version that it used, which is ", token.batch - staleness_, " to ",
                    token.batch);
    });
  }
  /// Where batches come from elsewhere too, waits for this one first.
  bool train(Token& token) {
    bool more = true;
    if constexpr (ArrivingStages<Stages>)
      call(
          "training", "arrive", "wait", token, [&] { more = stages_.arrive(token); },
          [&] {
            if (more && !in_bounds(token))
              throw Error("stage 'arrive' reports weight version ", token.version, " for batch ", token.batch,
                          "; the oldest allowed is ", token.batch - staleness_,
                          ": a rollout started before the weights that it had to wait for were installed");
          });
    if (!more) return false;
    const std::int64_t lag = token.batch - token.version;  // in 0..K: sample() saw to that
    call("training", "train", category_, token, [&] { stages_.train(token); });
    token.version = token.batch + 1;
    ++lags_[static_cast<std::size_t>(lag)];
    return true;
  }
  bool distribute(Token& token) {
    call("distribution", "distribute", category_, token, [&] { stages_.distribute(token); });
    return true;
  }
  bool receive(Token& token) {
    if constexpr (AwaitingStages<Stages>)
      call("reception", "await", "wait", token, [&] { stages_.await(token); });
    call("reception", "receive", category_, token, [&] { stages_.receive(token); });
    return true;
  }
  bool observe(Token& token) {
    if constexpr (ObservingStages<Stages>) {
      auto span = recorder_.span("observe", token.batch, "observer");
      run_stage("observer", token.batch, [&] { stages_.observe(std::as_const(token)); });
    }
    return true;
  }

  /// Valid when the training lane is done.
  run_result result(std::int64_t finished, const run_options& options) const {
    run_result out;
    out.batches = finished;
    out.stopped = finished < options.batches && options.stop && options.stop->stop_requested();
    out.signal = out.stopped ? options.stop->signal() : 0;
    out.staleness = lags_;
    for (std::size_t lag = 0; lag < lags_.size(); ++lag)
      if (lags_[lag] > 0) out.max_staleness = static_cast<std::int64_t>(lag);
    return out;
  }

 private:
  bool in_bounds(const Token& token) const {
    return token.version <= token.batch && token.version >= token.batch - staleness_;
  }
  template <class Work, class Check>
  void call(const char* lane, const char* name, const char* category, const Token& token, Work work,
            Check check) {
    run_stage(lane, token.batch, [&] {
      const Token before = token;
      {
        auto span = recorder_.span(name, before.batch, category);
        work();
      }
      if (token.batch != before.batch || token.buffer != before.buffer)
        throw Error("stage '", name, "' changed the token's batch or buffer; change its version only");
      check();
    });
  }
  template <class Work>
  void call(const char* lane, const char* name, const char* category, const Token& token, Work work) {
    call(lane, name, category, token, work, [] {});
  }

  Stages& stages_;
  Recorder& recorder_;
  const int staleness_;
  Recording* const record_;
  const char* const category_;
  std::vector<std::int64_t> lags_;
};

}  // namespace detail

}  // namespace dvla
