// Conformance of a schedule's runner: what schedule/concept.hpp promises and a compiler can't check, for
// shipped and users' own ones. Returns one sentence per violation, none if it conforms; no test framework.
// Also the stages that it uses, for tests of your own: they do no work, but watch the schedule. Trajectory
// buffers are plain memory that two lanes touch, and nothing else here orders the lanes, so that
// ThreadSanitizer sees a hand-over that orders too little. Measures no time; a schedule that never returns
// hangs the suite too.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/handoff/semaphore.hpp"
#include "dvla/handoff/stages.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/schedule/concept.hpp"
#include "dvla/schedule/runner.hpp"
#include "dvla/testing/findings.hpp"
#include "dvla/trace/off.hpp"

namespace dvla::testing {

/// The lanes' names in a LaneError; 4 is the observer.
inline constexpr std::array<const char*, 5> lane_names{"sampling", "training", "distribution", "reception",
                                                       "observer"};

/// Stages for one run of batches [first, first + count) with staleness K. The run over, `faults()` says what
/// went against the contract.
class WatchedStages {
 public:
  WatchedStages(int staleness, std::int64_t first, std::int64_t count)
      : trained(first),
        installed(first),
        last_(first + count - 1),
        staleness_(staleness),
        buffers_(static_cast<std::size_t>(staleness) + 1),
        weights_(buffers_.size()) {
    for (auto& one : done) one.store(first, std::memory_order_relaxed);
  }

  void sample(Token& token) {
    const std::int64_t now = installed.load(std::memory_order_relaxed);  // before the trainer may go on
    if (token.version > now || token.version < token.batch - staleness_)
      fault(0, "sample starts with token.version " + std::to_string(token.version) + " where version " +
                   std::to_string(now) + " is installed");
    token.version = now;
    started_.store(token.batch + 1, std::memory_order_release);
    gate_.release();
    if (auto* buffer = buffer_of(0, token)) {
      if (buffer->in_use.exchange(true, std::memory_order_relaxed))
        fault(0, "sample gets a buffer that is in use");
      buffer->batch = token.batch;
    }
    pass(0, token);
  }
  void train(Token& token) {
    const std::int64_t lag = trained - token.version;  // by the trainer's own count of versions
    most_lag = std::max(most_lag, lag);
    least_lag = std::min(least_lag, lag);
    if (lag > staleness_)
      fault(1, "a batch is trained " + std::to_string(lag) + " versions after its weights");
    if (auto* buffer = buffer_of(1, token); buffer != nullptr && buffer->batch != token.batch)
      fault(1, "train gets a buffer with another batch");
    // A trainer that is slower than the sampler, without a clock: it waits for the start of rollout b + K.
    while (slow_trainer &&
           started_.load(std::memory_order_relaxed) <= std::min(token.batch + staleness_, last_))
      gate_.acquire_for(patience);
    pass(1, token);
    ++trained;
  }
  void distribute(Token& token) {
    weights_[slot(token)] = token.version;
    pass(2, token);
  }
  void receive(Token& token) {
    pass(3, token);
    const std::int64_t version = weights_[slot(token)];
    if (version != token.batch + 1 || token.version != version)
      fault(3, "receive is not given the version that train made");
    installed.store(version, std::memory_order_relaxed);
    if (auto* buffer = buffer_of(3, token)) buffer->in_use.store(false, std::memory_order_relaxed);
  }
  void observe(const Token& token) { pass(4, token); }
  void enter(lane_kind kind) noexcept {
    entered.fetch_add(1 << (4 * static_cast<int>(kind)), std::memory_order_relaxed);
    threads_[static_cast<std::size_t>(kind)] = std::this_thread::get_id();
  }
  void cancel() noexcept { until_cancel_.cancel(); }
  /// For on_call: stays in the stage until another lane's failure. False if nobody called cancel() in time.
  bool wait_for_cancel() { return until_cancel_.acquire_for(patience) == wait_result::closed; }

  /// Threads that called stages.
  std::size_t threads() const {
    return std::set<std::thread::id>(called_by_.begin(), called_by_.begin() + 4).size();
  }
  std::vector<std::string> faults() const {
    std::vector<std::string> all;
    for (const std::string& one : fault_)
      if (!one.empty()) all.push_back(one);
    return all;
  }

  std::chrono::nanoseconds patience = std::chrono::seconds(20);  ///< of waits inside stages
  bool slow_trainer = false;  ///< train waits for rollouts to run ahead as far as they may
  /// Called in every stage, lanes 0 to 3 in the order of a batch, 4 = observer; may throw.
  std::function<void(int lane, std::int64_t batch)> on_call;
  std::array<std::atomic<std::int64_t>, 5> done;  ///< next batch of each lane
  std::int64_t trained;                           ///< the trainer's version
  std::atomic<std::int64_t> installed;            ///< the sampler's version
  std::int64_t most_lag = -1, least_lag = std::int64_t{1} << 62;
  std::atomic<int> entered{0};  ///< 4 bits for each lane_kind: how often

 private:
  struct Buffer {
    std::atomic<bool> in_use{false};
    std::int64_t batch = -1;
    Buffer() = default;
    Buffer(const Buffer&) {}
  };

  void fault(int lane, const std::string& what) {
    auto& mine = fault_[static_cast<std::size_t>(lane)];
    if (mine.empty()) mine = what;
  }
  std::size_t slot(const Token& token) const {
    return static_cast<std::size_t>(token.batch) % weights_.size();
  }
  Buffer* buffer_of(int lane, const Token& token) {
    if (token.buffer >= 0 && token.buffer <= staleness_)
      return &buffers_[static_cast<std::size_t>(token.buffer)];
    fault(lane, "token.buffer is " + std::to_string(token.buffer) + " of " + std::to_string(buffers_.size()) +
                    " buffers");
    return nullptr;
  }
  /// In order, once, after the lane before, in the thread that entered as this lane.
  void pass(int lane, const Token& token) {
    const auto at = static_cast<std::size_t>(lane);
    const std::string who = lane_names[at];
    if (const std::int64_t next = done[at].load(std::memory_order_relaxed); token.batch != next)
      fault(lane, who + ": batch " + std::to_string(token.batch) + " comes where batch " +
                      std::to_string(next) + " is next");
    if (lane > 0 && done[at - 1].load(std::memory_order_relaxed) <= token.batch)
      fault(lane, who + ": a batch comes before " + lane_names[at - 1] + " has finished it");
    const auto self = std::this_thread::get_id();
    called_by_[at] = self;
    if (self != threads_[at] && self != threads_[static_cast<std::size_t>(lane_kind::every)])
      fault(lane, who + ": enter() was not called in its thread");
    if (on_call) on_call(lane, token.batch);
    done[at].store(token.batch + 1, std::memory_order_relaxed);
  }

  const std::int64_t last_;
  const int staleness_;
  std::vector<Buffer> buffers_;
  std::vector<std::int64_t> weights_;         // distribution writes, reception reads
  std::array<std::string, 5> fault_;          // each its lane's own
  std::array<std::thread::id, 5> called_by_;  // likewise
  std::array<std::thread::id, 6> threads_;    // likewise, by lane_kind
  timed_semaphore gate_, until_cancel_;
  std::atomic<std::int64_t> started_{0};
};
static_assert(LaneStages<WatchedStages> && ObservingStages<WatchedStages>);

namespace detail {

template <class Runner>
class ScheduleProbe {
 public:
  ScheduleProbe(int max_staleness, std::chrono::nanoseconds patience)
      : most_(max_staleness), patience_(patience) {
    for (const int k : {0, 1, 2, 3, max_staleness})
      if (k <= max_staleness && (bounds_.empty() || k > bounds_.back())) bounds_.push_back(k);
  }

  std::vector<std::string> run() {
    for (const int k : bounds_) {
      for (const bool slow : {false, true}) goes_through(k, 0, 300, slow);
      goes_through(k, 1000, 20, false);
      goes_through(k, 7, 0, false);
      for (int lane = 0; lane < 5; ++lane)
        for (const std::int64_t at : {0, 4, 8}) fails(k, lane, at);
      stops(k);
    }
    if (threads_ > 1)
      for (int lane = 0; lane < 4; ++lane) outlasts_the_deadline(lane);
    if (threads_ > 1 && most_ > 0) cancels();
    refuses("staleness above the most", [&](run_options& how) { how.staleness = most_ + 1; });
    refuses("a negative staleness", [](run_options& how) { how.staleness = -1; });
    refuses("a negative number of batches", [](run_options& how) { how.batches = -1; });
    refuses("a negative first batch", [](run_options& how) { how.first_batch = -2; });
    refuses("a deadline of 0", [](run_options& how) { how.deadline = std::chrono::seconds(0); });
    return expect.sentences;
  }

 private:
  static run_options options(int staleness, std::int64_t first, std::int64_t count) {
    run_options how;
    how.first_batch = first;
    how.batches = count;
    how.staleness = staleness;
    how.deadline = std::chrono::seconds(60);
    return how;
  }
  run_result run(WatchedStages& stages, const run_options& how) {
    stages.patience = patience_;
    trace::Off off;
    return Runner::run(stages, how, off);
  }
  void adopt(const WatchedStages& stages, const std::string& where) {
    for (const std::string& one : stages.faults()) expect(false, where + one);
  }

  void goes_through(int k, std::int64_t first, std::int64_t count, bool slow) {
    const std::string where = "staleness " + std::to_string(k) + ": ";
    WatchedStages stages(k, first, count);
    stages.slow_trainer = slow;
    try {
      const run_result result = run(stages, options(k, first, count));
      expect(result.batches == count && !result.stopped,
             where + "the result must count all batches, and not be stopped");
      std::int64_t counted = 0;
      for (const std::int64_t batches : result.staleness) counted += batches;
      expect(counted == count && result.staleness.size() == static_cast<std::size_t>(k) + 1,
             where + "result.staleness must count each batch once, by lag 0 to K");
      expect(result.max_staleness == std::max<std::int64_t>(stages.most_lag, 0),
             where + "result.max_staleness must be the largest lag");
    } catch (const std::exception& error) {
      expect(false, where + "a run without a failure threw: " + error.what());
    }
    for (std::size_t lane = 0; lane < 5; ++lane)
      expect(stages.done[lane] == first + count,
             where + lane_names[lane] + " must see every batch exactly once");
    adopt(stages, where);
    if (count > 0) threads_ = std::max(threads_, stages.threads());
  }

  void fails(int k, int lane, std::int64_t at) {
    const std::string where =
        std::string("an exception in ") + lane_names[static_cast<std::size_t>(lane)] + " must ";
    WatchedStages stages(k, 0, 9);
    stages.on_call = [&](int in, std::int64_t batch) {
      if (in == lane && batch == at) throw std::domain_error("the arm fell off");
    };
    try {
      run(stages, options(k, 0, 9));
      expect(false, where + "end the run");
    } catch (const LaneError& error) {
      expect(error.lane() == lane_names[static_cast<std::size_t>(lane)] && error.step() == at,
             where + "be a LaneError that names its lane and batch");
      expect(std::string(error.what()).find("the arm fell off") != std::string::npos,
             where + "be told in the LaneError");
      try {
        std::rethrow_if_nested(error);
        expect(false, where + "be nested in the LaneError");
      } catch (const std::domain_error&) {
      } catch (...) {
        expect(false, where + "be nested in the LaneError, as it was thrown");
      }
    } catch (...) {
      expect(false, where + "be a LaneError");
    }
    expect(stages.done[static_cast<std::size_t>(lane)] == at, where + "end its lane");
    adopt(stages, "");
  }

  void stops(int k) {
    const std::string where = "after a stop request ";
    for (const bool before : {true, false}) {
      stop_flag stop;
      WatchedStages stages(k, 0, 1000000);
      if (before) stop.request_stop();
      stages.on_call = [&](int lane, std::int64_t batch) {
        if (lane == 1 && batch == 5) stop.request_stop();
      };
      run_options how = options(k, 0, 1000000);
      how.stop = &stop;
      try {
        const run_result result = run(stages, how);
        expect(result.stopped, where + "the result must say so");
        expect(before ? result.batches == 0 : result.batches >= 6 && result.batches <= 7 + k,
               where + "no further batch may start");
        for (std::size_t lane = 0; lane < 5; ++lane)
          expect(stages.done[lane] == result.batches, where + "all that has started must be finished");
      } catch (const std::exception& error) {
        expect(false, where + "the run must end without an error: " + error.what());
      }
      adopt(stages, "");
    }
  }

  /// A stage that stays until another lane gives up waiting for it.
  void outlasts_the_deadline(int lane) {
    const std::string name = lane_names[static_cast<std::size_t>(lane)];
    WatchedStages stages(0, 0, 5);
    stages.on_call = [&](int in, std::int64_t batch) {
      if (in == lane && batch == 2)
        expect(stages.wait_for_cancel(),
               "when " + name + " is stuck the lanes that wait must give up and call cancel()");
    };
    run_options how = options(0, 0, 5);
    how.deadline = std::chrono::milliseconds(100);
    expect.refused<DeadlineError>("a run in which " + name + " is stuck", name, [&] { run(stages, how); });
    adopt(stages, "");
  }

  /// A stage that waits inside is ended by another lane's failure.
  void cancels() {
    WatchedStages stages(1, 0, 9);
    std::atomic<bool> ended{false};
    timed_semaphore inside;
    stages.on_call = [&](int lane, std::int64_t batch) {
      if (lane == 1 && batch == 0) inside.release(), ended = stages.wait_for_cancel();
      if (lane == 0 && batch == 1) inside.acquire_for(patience_), throw std::domain_error("the arm fell off");
    };
    expect.refused<LaneError>("an exception while another stage waits", "the arm fell off",
                              [&] { run(stages, options(1, 0, 9)); });
    expect(ended, "a lane's failure must call stages.cancel() while another stage waits");
  }

  template <class Change>
  void refuses(const std::string& what, Change change) {
    WatchedStages stages(most_ + 1, 0, 1);
    run_options how = options(0, 0, 1);
    change(how);
    expect.refused<ConfigError>(what, "", [&] { run(stages, how); });
    expect(stages.done[0] == 0, "must be refused before a stage is called: " + what);
  }

  const int most_;
  const std::chrono::nanoseconds patience_;
  std::vector<int> bounds_;
  std::size_t threads_ = 1;
  Findings expect;
};

}  // namespace detail

/// `Runner` is a schedule's machinery, `max_staleness` its policy's; `patience` is how long a stage waits for
/// a lane that should run or fail. Takes about a second. A schedule whose stages all run in one thread waits
/// for nobody, so deadlines and cancel() are not asked of it.
template <class Runner>
std::vector<std::string> check_schedule(int max_staleness,
                                        std::chrono::nanoseconds patience = std::chrono::seconds(20)) {
  static_assert(ScheduleMachinery<Runner, WatchedStages, trace::Off>,
                "dvla: check_schedule needs a schedule's machinery: static run(stages, options, recorder)");
  return detail::ScheduleProbe<Runner>(max_staleness, patience).run();
}

}  // namespace dvla::testing
