// dvla-example: smoke
// Single stages: parts of the library on their own, without a pipeline, a run or a model.
//
// Four of them, each usable in another trainer as it stands: GRPO's arithmetic on plain spans (advantages,
// loss and its gradient in closed form, ready for any framework's backward), an environment batch that is
// stepped by a thread arena, a mailbox between two threads, and the swimlane with stages of one's own. Each
// prints what it made and how long one item took on this machine; bench/ measures the same parts properly,
// against hand-written equivalents.
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <dvla/algorithm/aggregation.hpp>
#include <dvla/algorithm/clip_loss.hpp>
#include <dvla/algorithm/group_advantage.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/handoff/mailbox.hpp>
#include <dvla/memory/environment_pool.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/schedule/synchronous.hpp>
#include <dvla/trace/recorder.hpp>
#include <dvla/trace/report.hpp>
#include <numeric>
#include <thread>
#include <vector>

using namespace std::chrono_literals;

/// Mean nanoseconds of `times` calls.
template <class Body>
double time_of(int times, Body body) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) body(i);
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / times;
}

/// Two groups of four episodes, one decision each of one action: from returns to d loss / d log-prob.
void grpo_arithmetic() {
  const std::array<float, 8> returns{1, 0, 0, 1, 0, 0, 0, 0};
  std::array<float, 8> advantage{}, gradient{};
  dvla::group_advantage(4, returns, {}, advantage);
  std::printf("advantages of returns 1 0 0 1 | 0 0 0 0:      ");
  for (const float value : advantage) std::printf(" %+.2f", value);

  // Log-probs when the actions were drawn, and now. The first one's ratio, e^0.4, is beyond 1.28: clipped.
  const std::array<float, 8> behaviour{-1, -1, -1, -1, -1, -1, -1, -1};
  const std::array<float, 8> current{-0.6F, -1, -1, -1.1F, -1, -1, -1, -1}, weight{1, 1, 1, 1, 1, 1, 1, 1};
  dvla::LossInputs<float> inputs;
  inputs.current = current;
  inputs.behaviour = behaviour;
  inputs.advantage = advantage;
  inputs.weight = weight;
  const dvla::LossShape shape{.rows = 8, .chunk = 1, .action_dim = 1};
  const auto loss = [&] {
    return dvla::clip_loss<dvla::Uncorrected, float>(shape, inputs, {}, 8.0, std::span<float>(gradient));
  };
  const dvla::LossStats stats = loss();
  std::printf("\nd loss / d log-prob, the first is clipped:    ");
  for (const float value : gradient) std::printf(" %+.2f", value + 0.0F);
  std::printf("\nloss %.4f, share of ratios above 1.28: %.3f; %.0f ns a call\n\n", stats.policy_loss,
              stats.clip_fraction_high(), time_of(100000, [&](int) { loss(); }));
}

/// 256 environments in a pre-faulted pool, reset from seeds and stepped a chunk at a time by two threads.
void environment_stepping() {
  constexpr std::int64_t rows = 256, chunk = 4;
  dvla::EnvironmentPool pool(std::size_t{4} << 20);
  dvla::ToyEnvironment environment({.environments = rows, .horizon = chunk}, pool);
  dvla::Arena arena(2);
  dvla::OwnedRecord<dvla::Transition> batch(
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(), {1, rows, chunk}),
      pool);
  std::vector<dvla::Start> starts(rows);
  std::vector<std::int64_t> indices(rows);
  std::iota(indices.begin(), indices.end(), std::int64_t{0});
  dvla::RowFailures failures(rows);
  dvla::Rows every(indices, arena, failures);
  const auto at = [&](std::int64_t t) {
    return dvla::cut_record(batch->observation, [t](auto field) { return field.at(t); });
  };
  std::int64_t made = 0, solved = 0;
  const double ns = time_of(200, [&](int episode) {
    for (std::int64_t row = 0; row < rows; ++row)
      starts[static_cast<std::size_t>(row)].seed = dvla::mix_seed(1, episode, row);
    environment.reset(every, starts, at(0));
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t c = 0; c < chunk; ++c)
        environment.expert(row, batch->action.at(0).at(row).at(c).span());
    made += environment.step(every, batch->action.at(0),
                             {batch->reward.at(0), batch->terminated.at(0), batch->truncated.at(0), at(1)});
    for (std::int64_t row = 0; row < rows; ++row) solved += environment.succeeded(row) ? 1 : 0;
  });
  std::printf(
      "200 passes of %lld environments: the expert solves %lld of %lld episodes in %lld steps; %.0f ns a "
      "row\n\n",
      static_cast<long long>(rows), static_cast<long long>(solved), static_cast<long long>(200 * rows),
      static_cast<long long>(made), ns / static_cast<double>(rows));
}

/// A bounded mailbox: push waits while it is full, pop while it is empty, and neither longer than its
/// deadline.
void mailbox_between_threads() {
  constexpr std::int64_t items = 200000;
  dvla::mailbox<std::int64_t> box(64);
  std::int64_t sum = 0;
  const double ns = time_of(1, [&](int) {
    std::thread consumer([&] {
      while (const auto item = box.pop(10s, {"consumer", "an item", "producer"})) sum += *item;
    });
    for (std::int64_t i = 0; i < items; ++i) box.push(i, 10s, {"producer", "room", "consumer"});
    box.close();
    consumer.join();
  });
  std::printf("mailbox: %lld items through 64 places, sum %lld, %.0f ns an item\n",
              static_cast<long long>(items), static_cast<long long>(sum), ns / static_cast<double>(items));
  try {
    dvla::mailbox<int> nobody(1);
    nobody.pop(20ms, {"evaluator", "a checkpoint", "trainer", 7});
  } catch (const dvla::DeadlineError& error) {
    std::printf("mailbox: a wait that runs out says: %s\n\n", error.what());
  }
}

/// Stages for the four lanes. They could render frames, call a web service or train a network; here they
/// sleep.
struct Sleepers {
  void sample(dvla::Token&) { std::this_thread::sleep_for(4ms); }
  void train(dvla::Token&) { std::this_thread::sleep_for(4ms); }
  void distribute(dvla::Token&) { std::this_thread::sleep_for(100us); }
  void receive(dvla::Token&) { std::this_thread::sleep_for(100us); }
};

void lanes_alone() {
  Sleepers stages;
  dvla::run_options options;
  options.batches = 50;
  dvla::trace::Recorder one_after_the_other, four_lanes;
  dvla::SynchronousRunner::run(stages, options, one_after_the_other);
  options.staleness = 1;
  const dvla::run_result result = dvla::SwimlaneRunner<1>::run(stages, options, four_lanes);
  const auto turns = dvla::trace::make_report(one_after_the_other.spans());
  const auto lanes = dvla::trace::make_report(four_lanes.spans());
  std::printf(
      "lanes: 50 batches of 4 ms + 4 ms take %.0f ms in turns, %.0f ms as a swimlane (%.2f times; ideal "
      "%.2f), lag at most %lld\n",
      1e3 * turns.wall_s, 1e3 * lanes.wall_s, turns.wall_s / lanes.wall_s, lanes.ideal_gain,
      static_cast<long long>(result.max_staleness));
}

int main() {
  grpo_arithmetic();
  environment_stepping();
  mailbox_between_threads();
  lanes_alone();
  return 0;
}
