// dvla-test: core
// The schedule suite must find each way of breaking a promise: a synchronous schedule, broken by a switch,
// and a swimlane whose stages are never told to give up.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "dvla/schedule/swimlane.hpp"
#include "dvla/testing/schedule.hpp"
#include "test/testing/found.hpp"

using namespace dvla;

namespace {

enum class Break {
  nothing,
  skips,
  repeats,
  order,
  stale,
  buffer,
  observe,
  enter,
  swallow,
  raw,
  name,
  abandons,
  late_stop,
  count,
  lag,
  options
};
Break how = Break::nothing;

struct Broken {
  template <class Stages, class Recorder>
  static run_result run(Stages& stages, const run_options& options, Recorder&) {
    if (how != Break::options || options.staleness < 0) detail::check_options(options, 0);
    if (how != Break::enter) stages.enter(lane_kind::every);
    run_result result;
    result.staleness.resize(static_cast<std::size_t>(options.staleness) + 1);
    const auto stop = [&] { return options.stop != nullptr && options.stop->stop_requested(); };
    for (std::int64_t i = 0; i < options.batches; ++i) {
      if (how == Break::late_stop ? stop() && i > 20 : stop()) break;
      const std::int64_t batch = options.first_batch + i;
      Token token{.batch = batch, .version = batch};
      if (how == Break::stale) token.version -= 2;
      if (how == Break::buffer) token.buffer = options.staleness + 1;
      const auto stage = [&](std::size_t lane, auto work) {
        try {
          work();
        } catch (...) {
          if (how == Break::raw) throw;
          if (how != Break::swallow)
            std::throw_with_nested(LaneError(how == Break::name ? "main" : testing::lane_names[lane], batch,
                                             detail::error_text(std::current_exception())));
        }
      };
      stage(0, [&] { stages.sample(token); });
      stage(1, [&] { stages.train(token); });
      token.version = batch + 1;
      if (how == Break::abandons && stop()) break;
      if (how == Break::repeats && i == 3) stage(2, [&] { stages.distribute(token); });
      if (how == Break::order) stage(3, [&] { stages.receive(token); });
      if (how != Break::skips || i != 3) stage(2, [&] { stages.distribute(token); });
      if (how != Break::order) stage(3, [&] { stages.receive(token); });
      if (how != Break::observe) stage(4, [&] { stages.observe(token); });
      if (how != Break::count || i % 2 == 0) ++result.batches;
      ++result.staleness[0];
      if (how == Break::lag) result.max_staleness = 1;
    }
    result.stopped = result.batches < options.batches && stop();
    return result;
  }
};

std::string said(Break broken) {
  how = broken;
  return lines(testing::check_schedule<Broken>(0, std::chrono::milliseconds(20)));
}

/// Hides cancel() from the schedule.
struct Deaf {
  template <class Stages>
  struct Hidden {
    Stages& stages;
    void sample(Token& token) { stages.sample(token); }
    void train(Token& token) { stages.train(token); }
    void distribute(Token& token) { stages.distribute(token); }
    void receive(Token& token) { stages.receive(token); }
    void observe(const Token& token) { stages.observe(token); }
    void enter(lane_kind kind) noexcept { stages.enter(kind); }
  };
  template <class Stages, class Recorder>
  static run_result run(Stages& stages, const run_options& options, Recorder& recorder) {
    Hidden<Stages> hidden{stages};
    return SwimlaneRunner<1>::run(hidden, options, recorder);
  }
};

}  // namespace

TEST_CASE("a schedule that keeps its promises is not accused") { CHECK(said(Break::nothing) == ""); }

TEST_CASE("each broken promise is found and named") {
  check_each_is_found<Break>(
      {
          {Break::skips, "distribution: batch 4 comes where batch 3 is next"},
          {Break::repeats, "distribution: batch 3 comes where batch 4 is next"},
          {Break::order, "reception: a batch comes before distribution has finished it"},
          {Break::stale, "sample starts with token.version"},
          {Break::buffer, "token.buffer is 1 of 1 buffers"},
          {Break::observe, "observer must see every batch exactly once"},
          {Break::enter, "sampling: enter() was not called in its thread"},
          {Break::swallow, "an exception in sampling must end the run"},
          {Break::raw, "an exception in training must be a LaneError"},
          {Break::name, "an exception in reception must be a LaneError that names its lane"},
          {Break::abandons, "all that has started must be finished"},
          {Break::late_stop, "no further batch may start"},
          {Break::count, "the result must count all batches"},
          {Break::lag, "result.max_staleness must be the largest lag"},
          {Break::options, "must be refused before a stage is called: a deadline of 0"},
      },
      said);
}

TEST_CASE("stages that wait and are never told to give up are found") {
  const std::string found = lines(testing::check_schedule<Deaf>(1, std::chrono::milliseconds(400)));
  CAPTURE(found);
  CHECK(found.find("a lane's failure must call stages.cancel()") != std::string::npos);
  CHECK(found.find("when training is stuck the lanes that wait must give up and call cancel()") !=
        std::string::npos);
}
