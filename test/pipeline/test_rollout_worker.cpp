// dvla-test: tsan
// The sampling side alone, on an environment whose every step is known: groups, counts, masks, seeds, and
// what is called when.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "dvla/environment/toy.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/pipeline/evaluation.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/trace/off.hpp"

namespace {

using dvla::testing::LinearModel;

/// Row r of a pass ends after 1 + r % horizon control steps; rows that end on an even step have solved it.
/// The observation shows row, step and the low bits of the seed.
class Script {
 public:
  Script(std::int64_t rows, std::int64_t horizon) : horizon_(horizon), row_(static_cast<std::size_t>(rows)) {
    spec_.proprioception = 3;
    spec_.instructions = {"go"};
  }
  std::int64_t size() const { return static_cast<std::int64_t>(row_.size()); }
  std::int64_t horizon() const { return horizon_; }
  const dvla::ObservationSpec& observation_spec() const { return spec_; }
  dvla::ActionSpec action_spec() const { return {2}; }
  std::int64_t length(std::int64_t row) const { return 1 + row % horizon_; }
  bool succeeded(std::int64_t row) const {
    const Row& state = row_[static_cast<std::size_t>(row)];
    return state.steps == length(row) && state.steps % 2 == 0;
  }
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    rows.for_each([&](std::int64_t row, std::int64_t i) {
      row_[static_cast<std::size_t>(row)] = {starts[static_cast<std::size_t>(i)].seed, 0};
      all_seeds.push_back(starts[static_cast<std::size_t>(i)].seed);
      if (fails_at_reset.contains(row)) throw dvla::Error("row " + std::to_string(row) + " does not begin");
      show(row, next);
    });
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    const std::int64_t chunk = action.extents()[1];
    std::int64_t made = 0;
    rows_stepped += rows.count();
    for (const std::int64_t row : rows.indices())
      taken[row];  // so that rows find theirs from several threads
    if (throws) throw dvla::Error("the simulator is gone");
    if (throws_a_number) throw 7;
    rows.for_each([&](std::int64_t i, std::int64_t) {
      Row& state = row_[static_cast<std::size_t>(i)];
      for (std::int64_t c = 0; c < chunk; ++c) {
        const bool over = state.steps >= length(i);
        if (!over) ++state.steps, ++made;
        const std::span<float> given = action.at(i).at(c).span();
        if (!over) taken[i].insert(taken[i].end(), given.begin(), given.end());
        const bool ends = state.steps >= length(i);
        outcome.reward[i * chunk + c] = !over && ends && succeeded(i) ? 1.0F : 0.0F;
        outcome.terminated[i * chunk + c] = ends && succeeded(i) ? 1 : 0;
        outcome.truncated[i * chunk + c] = ends && !succeeded(i) ? 1 : 0;
      }
      show(i, outcome.next);
      const float nan = std::numeric_limits<float>::quiet_NaN();
      if (const auto fault = faults.find(i); fault != faults.end() && state.steps >= 3) {
        if (fault->second == "throws") throw dvla::Error("its arm fell off");
        if (fault->second == "large") outcome.reward[i * chunk] = 3e38F;
        if (fault->second == "instruction") outcome.next.instruction[i] = 1;
        if (fault->second == "reward") outcome.reward[i * chunk] = nan;
        if (fault->second == "proprioception") outcome.next.proprioception.at(i)[0] = nan;
      }
    });
    return made;
  }
  void expert(std::int64_t row, std::span<float> action) {
    for (float& value : action) value = 0.1F * static_cast<float>(row_[static_cast<std::size_t>(row)].steps);
  }

  std::map<std::int64_t, std::vector<float>>
      taken;  ///< the actions that a row was given, one after the other
  std::vector<std::uint64_t> all_seeds;
  std::int64_t rows_stepped = 0;
  std::set<std::int64_t> fails_at_reset;
  std::map<std::int64_t, std::string> faults;  ///< of rows, from their third step on
  bool throws = false, throws_a_number = false;

 private:
  struct Row {
    std::uint64_t seed = 0;
    std::int64_t steps = 0;
  };
  void show(std::int64_t row, const dvla::Observation& next) {
    const Row& state = row_[static_cast<std::size_t>(row)];
    float* numbers = next.proprioception.at(row).data();
    numbers[0] = static_cast<float>(row);
    numbers[1] = static_cast<float>(state.steps);
    numbers[2] = static_cast<float>(state.seed % 1000);
    next.instruction[row] = 0;
  }
  std::int64_t horizon_;
  dvla::ObservationSpec spec_;
  std::vector<Row> row_;
};
static_assert(dvla::EnvironmentMachinery<Script> && dvla::HasExpert<Script>);

constexpr std::int64_t N = 8, horizon = 6, C = 2, T = horizon / C;

struct World {
  explicit World(dvla::RolloutOptions with = {.seed = 5, .chunk = C, .group = 4}) : options(with) {}
  std::unique_ptr<LinearModel> model() const {
    return std::make_unique<LinearModel>(
        dvla::testing::LinearKnobs{.chunk = static_cast<int>(C)},
        dvla::ModelInputs{environment.observation_spec(), environment.action_spec(), C}, 1);
  }
  dvla::RolloutOptions options;
  Script environment{N, horizon};
  dvla::trace::Off off;
  std::unique_ptr<LinearModel> front = model(), back = model();
  std::vector<std::string> said;
  dvla::RolloutWorker<Script, LinearModel, dvla::trace::Off> worker{
      environment, *front, *back, options, off, [this](const std::string& what) { said.push_back(what); }};
  std::int64_t episodes = N * options.rollout_epochs;
  std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
  dvla::OwnedRecord<dvla::Transition> all{
      dvla::transition_layout(environment.observation_spec(), environment.action_spec(), {T, episodes, C}),
      heap};
  dvla::OwnedRecord<dvla::testing::LinearDecision> decision{
      worker.models().front().model->decision_layout({T, episodes}), heap};
};

template <class Field>
bool same(const Field& one, const Field& two) {
  return std::equal(one.span().begin(), one.span().end(), two.span().begin(), two.span().end());
}

}  // namespace

TEST_CASE("A group shares its seed and its reset state; groups, passes and batches differ") {
  World world({.seed = 5, .chunk = C, .group = 4, .rollout_epochs = 2});
  const auto shape = world.worker.shape();
  CHECK(shape.decisions == T);
  CHECK(shape.episodes == 2 * N);
  CHECK(shape.chunk == C);
  world.worker.rollout(*world.all, *world.decision, 0);
  std::set<std::uint64_t> seeds;
  for (std::int64_t row = 0; row < 2 * N; ++row) {
    CHECK(world.all->group[row] == row / 4);
    CHECK(world.all->episode.seed[row] == world.all->episode.seed[row / 4 * 4]);
    const auto shown = world.all->observation.proprioception.at(0).at(row);
    CHECK(shown[0] == static_cast<float>(row % N));
    CHECK(shown[1] == 0);
    CHECK(shown[2] == static_cast<float>(world.all->episode.seed[row] % 1000));
    seeds.insert(world.all->episode.seed[row]);
  }
  CHECK(seeds.size() == 4);
  world.worker.rollout(*world.all, *world.decision, 1);
  for (std::int64_t row = 0; row < 2 * N; ++row) seeds.insert(world.all->episode.seed[row]);
  CHECK(seeds.size() == 8);
}

TEST_CASE(
    "Steps are counted exactly, and rows after an episode's end are marked, pay nothing and are not "
    "stepped") {
  for (const int stages : {1, 2, 3}) {
    World world({.seed = 5, .chunk = C, .group = 4, .stages = stages});
    world.worker.rollout(*world.all, *world.decision, 0);
    std::int64_t steps = 0, decisions = 0;
    for (std::int64_t row = 0; row < N; ++row) {
      const std::int64_t length = world.environment.length(row);
      steps += length;
      decisions += (length + C - 1) / C;
      float earned = 0;
      for (std::int64_t t = 0; t < T; ++t) {
        CHECK(world.all->version.at(t)[row] == 0);
        for (std::int64_t c = 0; c < C; ++c) {
          const bool ended = t * C + c + 1 >= length, solved = world.environment.succeeded(row);
          CHECK(world.all->terminated.at(t).at(row)[c] == (ended && solved ? 1 : 0));
          CHECK(world.all->truncated.at(t).at(row)[c] == (ended && !solved ? 1 : 0));
          earned += world.all->reward.at(t).at(row)[c];
        }
        // What follows the decision in which it ended is 0.
        CHECK(world.all->observation.proprioception.at(t + 1).at(row)[1] ==
              static_cast<float>(t * C >= length ? 0 : std::min(length, (t + 1) * C)));
      }
      CHECK(earned == (length % 2 == 0 ? 1.0F : 0.0F));
      const dvla::EpisodeTable& episode = world.all->episode;
      CHECK(episode.success[row] == (length % 2 == 0 ? 1 : 0));
      CHECK(episode.decision[row] == (length - 1) / C);
      CHECK(episode.step[row] == (length - 1) % C);
      CHECK(episode.end[row] ==
            static_cast<int>(length % 2 == 0 ? dvla::EpisodeEnd::terminated : dvla::EpisodeEnd::truncated));
      CHECK(episode.final_observation.proprioception.absent());
    }
    CHECK(world.worker.counts().env_steps == steps);
    CHECK(world.worker.counts().chunk_steps == decisions);
    CHECK(world.environment.rows_stepped == decisions);
    world.worker.rollout(*world.all, *world.decision, 1);
    CHECK(world.worker.counts().env_steps == 2 * steps);
    world.worker.evaluate(N, dvla::Decoding::mode);  // is no training
    CHECK(world.worker.counts().env_steps == 2 * steps);
  }
}

TEST_CASE(
    "A batch depends on the run's seed and its number only, not on how many rows a call of the model has") {
  World few({.seed = 5, .chunk = C, .group = 4, .inference_rows = 3}), every;
  few.worker.rollout(*few.all, *few.decision, 3);
  every.worker.rollout(*every.all, *every.decision, 3);
  CHECK(same(few.all->action, every.all->action));
  CHECK(same(few.decision->log_prob, every.decision->log_prob));
  World one, two;
  one.worker.rollout(*one.all, *one.decision, 3);
  two.worker.rollout(*two.all, *two.decision, 7);
  two.worker.evaluate(20, dvla::Decoding::sample);
  CHECK(!same(one.all->action, two.all->action));
  two.worker.rollout(*two.all, *two.decision, 3);
  CHECK(same(one.all->action, two.all->action));
  CHECK(same(one.decision->log_prob, two.decision->log_prob));
  World other({.seed = 6, .chunk = C, .group = 4});
  other.worker.rollout(*other.all, *other.decision, 3);
  CHECK(!same(one.all->action, other.all->action));
  CHECK(one.all->episode.seed[0] != other.all->episode.seed[0]);
}

TEST_CASE("Evaluation, demonstrations and training never share a seed, and evaluation repeats its own") {
  World world;
  auto seeds_of = [&](auto call) {
    world.environment.all_seeds.clear();
    call();
    return std::set<std::uint64_t>(world.environment.all_seeds.begin(), world.environment.all_seeds.end());
  };
  const auto evaluated = seeds_of([&] { world.worker.evaluate(20, dvla::Decoding::mode); });
  CHECK(evaluated.size() == 20);
  CHECK(evaluated == seeds_of([&] { world.worker.evaluate(20, dvla::Decoding::sample); }));
  const auto probed =
      seeds_of([&] { world.worker.evaluate(20, dvla::Decoding::sample, dvla::Stream::probe, 10); });
  const auto shown = seeds_of([&] { world.worker.demonstrate(*world.all, 0, N, 0); });
  const auto trained = seeds_of([&] {
    for (std::int64_t batch = 0; batch < 200; ++batch)
      world.worker.rollout(*world.all, *world.decision, batch);
  });
  CHECK(trained.size() == 400);
  std::set<std::uint64_t> all;
  for (const auto* seeds : {&evaluated, &probed, &shown, &trained}) all.insert(seeds->begin(), seeds->end());
  CHECK(all.size() == evaluated.size() + probed.size() + shown.size() + trained.size());
}

TEST_CASE("An evaluation plays exactly what it is asked for, and the k-th fresh episode is always the same") {
  World world;
  std::vector<dvla::Start> starts;
  for (std::uint64_t k = 0; k < 11; ++k) starts.push_back({.seed = 100 + k});
  world.environment.all_seeds.clear();
  const auto results = world.worker.evaluate(starts, dvla::Decoding::mode);
  REQUIRE(results.size() == 11);
  for (std::size_t k = 0; k < 11; ++k) {
    CHECK(world.environment.all_seeds[k] == 100 + k);
    CHECK(results[k].start.seed == 100 + k);
    CHECK(results[k].success == (world.environment.length(static_cast<std::int64_t>(k % N)) % 2 == 0));
    CHECK(!results[k].failed);
  }
  CHECK(dvla::fresh_starts(5, dvla::Stream::evaluation, 9, 1)[0].seed ==
        dvla::fresh_starts(5, dvla::Stream::evaluation, 0, 11)[9].seed);
  world.environment.faults = {{3, "throws"}};
  const auto failing = world.worker.evaluate(starts, dvla::Decoding::mode);
  CHECK(failing[3].failed);
  CHECK(!failing[3].success);
  CHECK(!failing[4].failed);
}

TEST_CASE("evaluate counts the asked episodes only") {
  World world;
  // Rows 1, 3, 5 and 7 of a pass solve it; row 7 ends after 2 steps, as row 1 does.
  CHECK(world.worker.evaluate(N, dvla::Decoding::mode) == doctest::Approx(0.5));
  CHECK(world.worker.evaluate(1, dvla::Decoding::mode) == 0);
  CHECK(world.worker.evaluate(2, dvla::Decoding::mode) == doctest::Approx(0.5));
  CHECK(world.worker.evaluate(N + 1, dvla::Decoding::mode) == doctest::Approx(4.0 / 9));
  CHECK(world.worker.evaluate(0, dvla::Decoding::mode) == 0);
}

TEST_CASE("Demonstrations record what the expert did, step by step, and its noise is seeded") {
  World world;
  const std::int64_t solved = world.worker.demonstrate(*world.all, 0, 5, 0);
  CHECK(solved == 2);  // rows 1 and 3 of rows 0 to 4
  for (std::int64_t row = 0; row < 5; ++row)
    for (std::int64_t t = 0; t < T; ++t) {
      CHECK(world.all->observation.proprioception.at(t).at(row)[1] ==
            static_cast<float>(std::min(world.environment.length(row), t * C)));
      for (std::int64_t c = 0; c < C; ++c) {
        const std::int64_t steps = std::min(world.environment.length(row), t * C + c);
        CHECK(world.all->action.at(t).at(row).at(c)[0] == doctest::Approx(0.1 * static_cast<double>(steps)));
        const bool ended = t * C + c + 1 >= world.environment.length(row);
        CHECK(world.all->terminated.at(t).at(row)[c] == (ended && world.environment.succeeded(row) ? 1 : 0));
        CHECK(world.all->truncated.at(t).at(row)[c] == (ended && !world.environment.succeeded(row) ? 1 : 0));
      }
    }
  World noisy, again;
  noisy.worker.demonstrate(*noisy.all, 2 * N, N, 0.5);
  again.worker.demonstrate(*again.all, 2 * N, N, 0.5);
  CHECK(same(noisy.all->action, again.all->action));
  CHECK(!same(noisy.all->action, world.all->action));
  for (const float value : noisy.all->action.span()) CHECK((value >= -1 && value <= 1));
}

TEST_CASE("The adapter stands between model and environment: records keep the model's units") {
  dvla::RolloutOptions options{.seed = 5, .chunk = C, .group = 4};
  const dvla::AdaptedNumber shown{0.1, -1, -100, 100};
  options.adapter.emplace("turned",
                          std::vector<dvla::AdaptedAction>{{.from = 1, .number = {-2, 0, -9, 9}},
                                                           {.from = 0, .number = {0.5, 0.1, -9, 9}}},
                          std::vector(3, shown));
  World world(options), plain;
  plain.worker.rollout(*plain.all, *plain.decision, 0);
  world.worker.rollout(*world.all, *world.decision, 0);
  for (std::int64_t row = 0; row < N; ++row) {
    const auto& taken = world.environment.taken[row];
    REQUIRE(std::ssize(taken) == 2 * world.environment.length(row));
    for (std::int64_t step = 0; step < world.environment.length(row); ++step) {
      const auto decided = world.all->action.at(step / C).at(row).at(step % C);
      CHECK(taken[static_cast<std::size_t>(2 * step)] == -2 * decided[1]);
      CHECK(taken[static_cast<std::size_t>(2 * step + 1)] ==
            doctest::Approx(0.5 * static_cast<double>(decided[0]) + 0.1));
      CHECK(std::abs(decided[0]) <= 1);
    }
    for (std::int64_t t = 0; t <= (world.environment.length(row) - 1) / C; ++t)
      for (std::int64_t p = 0; p < 3; ++p)
        CHECK(world.all->observation.proprioception.at(t).at(row)[p] ==
              doctest::Approx(
                  0.1 * static_cast<double>(plain.all->observation.proprioception.at(t).at(row)[p]) - 1));
  }
  world.environment.taken.clear();
  world.worker.demonstrate(*world.all, 0, N, 0.0);
  for (std::int64_t step = 0; step < 6; ++step) {  // row 5 has six; the expert says 0.1 a step
    const auto decided = world.all->action.at(step / C).at(5).at(step % C);
    CHECK(decided[1] == doctest::Approx(-0.05 * static_cast<double>(step)));
    CHECK(decided[0] == doctest::Approx(0.2 * static_cast<double>(step) - 0.2));
    for (std::int64_t a = 0; a < 2; ++a)
      CHECK(world.environment.taken[5][static_cast<std::size_t>(2 * step + a)] ==
            doctest::Approx(0.1 * static_cast<double>(step)).epsilon(1e-5));
  }
}

TEST_CASE("A demonstration that fails is left out, and the others are as they would be") {
  World world, sound;
  world.environment.faults = {{3, "throws"}, {5, "reward"}};
  CHECK(world.worker.demonstrate(*world.all, 0, N, 0.1) == 2);  // rows 1 and 7 of 1, 3, 5 and 7
  sound.worker.demonstrate(*sound.all, 0, N, 0.1);
  REQUIRE(world.said.size() == 2);
  CHECK(world.said[0].find("environment 3 failed in the expert's demonstration: its arm fell off") == 0);
  for (std::int64_t row = 0; row < N; ++row) {
    CHECK(world.all->group[row] == (row == 3 || row == 5 ? -1 : 0));
    if (world.all->group[row] == 0)
      for (std::int64_t t = 0; t < T; ++t)
        CHECK(same(world.all->action.at(t).at(row), sound.all->action.at(t).at(row)));
  }
}

TEST_CASE("watch calls once at the start and once after every control step") {
  World world;
  std::vector<std::int64_t> calls;
  std::vector<std::int64_t> solved;
  world.worker.watch(dvla::Decoding::mode, [&](std::int64_t step) {
    calls.push_back(step);
    solved.push_back(world.environment.succeeded(1));
  });
  CHECK(calls == std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6});
  CHECK(solved == std::vector<std::int64_t>{0, 0, 1, 1, 1, 1, 1});
}

TEST_CASE("Weights that are installed take over at the next decision, and the oldest one is reported") {
  World world;
  world.worker.models().fill([](auto& back) { back.version = 4; });
  CHECK(world.worker.rollout(*world.all, *world.decision, 4) == 4);
  for (const std::int64_t version : world.all->version.span()) CHECK(version == 4);
}

TEST_CASE("A row that fails costs its group, or itself, and one sentence; the others are as they would be") {
  using Costs = dvla::FailureCosts;
  for (const Costs costs : {Costs::group, Costs::row})
    for (const int stages : {1, 2})
      for (const std::string fault :
           {"throws", "reward", "large", "proprioception", "instruction", "reset"}) {
        CAPTURE(fault);
        const dvla::RolloutOptions options{.seed = 5,
                                           .chunk = C,
                                           .group = 4,
                                           .stages = stages,
                                           .failure_costs = costs,
                                           .reward_scale = fault == "large" ? 10 : 1.0};
        World sound(options), world(options);
        sound.worker.rollout(*sound.all, *sound.decision, 0);
        if (fault == "reset")
          world.environment.fails_at_reset = {5};
        else
          world.environment.faults = {{5, fault}};
        std::memset(world.all.block().data(), 0x77, world.all.block().size());  // stale bytes
        CHECK(world.worker.rollout(*world.all, *world.decision, 0) == 0);
        REQUIRE(world.said.size() == 1);
        for (const std::int32_t instruction : world.all->observation.instruction.span())
          CHECK(instruction == 0);
        CHECK(world.said[0].find("environment 5 failed in batch 0, decision " +
                                 std::string(fault == "reset" ? "0" : "1") + ": ") == 0);
        CHECK(world.said[0].find(costs == Costs::group ? "its group is left out" : "it is left out") !=
              std::string::npos);
        CHECK(world.worker.counts().failed_rows == 1);
        for (std::int64_t row = 0; row < N; ++row) {
          const bool absent = costs == Costs::group ? row >= 4 : row == 5;
          CHECK(world.all->group[row] == (absent ? -1 : row / 4));
          if (row == 5) continue;
          for (std::int64_t t = 0; t < T; ++t) {
            CHECK(same(world.all->action.at(t).at(row), sound.all->action.at(t).at(row)));
            CHECK(same(world.all->reward.at(t).at(row), sound.all->reward.at(t).at(row)));
          }
        }
        for (const float value : world.all->reward.span()) CHECK(std::isfinite(value));
        for (const float value : world.all->observation.proprioception.span()) CHECK(std::isfinite(value));
        // It is made anew.
        world.environment.faults.clear();
        world.environment.fails_at_reset.clear();
        sound.worker.rollout(*sound.all, *sound.decision, 1);
        world.worker.rollout(*world.all, *world.decision, 1);
        CHECK(same(world.all->action, sound.all->action));
        for (std::int64_t row = 0; row < N; ++row) CHECK(world.all->group[row] == row / 4);
      }
}

TEST_CASE("More failures than a stated share end the run; one row alone never does") {
  World world({.seed = 5, .chunk = C, .group = 4, .failed_share = 0.2});
  world.environment.faults = {{3, "throws"}, {5, "throws"}};
  CHECK_THROWS_WITH_AS(world.worker.rollout(*world.all, *world.decision, 4),
                       "2 of the 8 rows of batch 4 failed, more than run.failed_share allows; the first: "
                       "environment 3 failed in batch 4, decision 1: its arm fell off; its group is left "
                       "out, and it is made anew",
                       dvla::Error);
  World patient({.seed = 5, .chunk = C, .group = 4, .failed_share = 0.25});
  patient.environment.faults = world.environment.faults;
  patient.worker.rollout(*patient.all, *patient.decision, 4);
  World strict({.seed = 5, .chunk = C, .group = 4, .failed_share = 0});
  strict.environment.faults = {{3, "throws"}};
  strict.worker.rollout(*strict.all, *strict.decision, 4);
  World gone;
  gone.environment.throws = true;  // out of the call: that is all its rows
  CHECK_THROWS_WITH(gone.worker.rollout(*gone.all, *gone.decision, 0),
                    doctest::Contains("8 of the 8 rows of batch 0 failed"));
  dvla::stop_flag stop;  // what ends the run has ended them
  stop.request_stop();
  CHECK_NOTHROW(gone.worker.rollout(*gone.all, *gone.decision, 0, dvla::no_boundaries(), &stop));
  World odd;
  odd.environment.throws_a_number = true;
  CHECK_THROWS_AS(odd.worker.rollout(*odd.all, *odd.decision, 0), dvla::RowsFailed);
}

TEST_CASE("A row that fails in an evaluation, a self-test or a picture is told of, and the others go on") {
  World world;
  world.environment.fails_at_reset = {3};
  const auto results = world.worker.evaluate(std::vector<dvla::Start>(2 * N), dvla::Decoding::mode);
  for (std::int64_t k = 0; k < 2 * N; ++k) {
    CHECK(results[static_cast<std::size_t>(k)].failed == (k % N == 3));
    CHECK(results[static_cast<std::size_t>(k)].instruction == (k % N == 3 ? -1 : 0));
  }
  const auto tasks = dvla::by_task(results, world.environment.observation_spec());
  REQUIRE(tasks.size() == 2);
  CHECK(tasks[0].episodes == 14);
  CHECK(tasks[1].task == dvla::unknown_task);
  CHECK(tasks[1].failed == 2);

  world.said.clear();
  dvla::OwnedRecord<dvla::Transition> first(world.worker.layout(1, C), world.heap);
  dvla::OwnedRecord<dvla::testing::LinearDecision> made(world.front->decision_layout({N}), world.heap);
  CHECK(world.worker.probe(*first, *made) == std::vector<std::int64_t>{0, 1, 2, 4, 5, 6, 7});
  CHECK(world.said == std::vector<std::string>{"environment 3 failed: row 3 does not begin"});
  world.environment.faults = {{5, "proprioception"}};
  std::int64_t shown = 0;
  world.worker.watch(dvla::Decoding::sample, [&](std::int64_t step) { CHECK(step == shown++); });
  CHECK(shown == horizon + 1);
  CHECK(world.said.size() == 3);
  world.environment.fails_at_reset = {0, 1, 2, 3, 4, 5, 6, 7};
  CHECK_THROWS_WITH_AS(world.worker.probe(*first, *made),
                       "no environment can be reset; the first: row 0 does not begin", dvla::Error);
}

TEST_CASE(
    "Rows that go on with another episode are reset at chunk boundaries, and their ends stand in the table") {
  constexpr std::int64_t S = 3, pass = 10, decisions = pass / C;
  World world({.seed = 5, .chunk = C, .group = 4, .pass_steps = pass, .table = S});
  const auto shape = world.worker.shape();
  CHECK(shape.decisions == decisions);
  CHECK(shape.table == S);
  dvla::OwnedRecord<dvla::Transition> all(
      dvla::transition_layout(world.environment.observation_spec(), world.environment.action_spec(), shape),
      world.heap);
  dvla::OwnedRecord<dvla::testing::LinearDecision> made(world.front->decision_layout({decisions, N}),
                                                        world.heap);
  std::memset(all.block().data(), 0x77, all.block().size());  // stale bytes
  world.worker.rollout(*all, *made, 0);
  std::set<std::uint64_t> seeds;
  for (std::int64_t row = 0; row < N; ++row) {
    CAPTURE(row);
    const std::int64_t length = world.environment.length(row), whole = (length + C - 1) / C;
    std::int64_t t = 0;
    for (std::int64_t s = 0; s < S; ++s) {
      CAPTURE(s);
      if (t >= decisions) {  // unused
        CHECK(all->episode.seed.at(s)[row] == 0);
        CHECK(all->episode.end.at(s)[row] == 0);
        CHECK(all->episode.decision.at(s)[row] == 0);
        CHECK(all->episode.final_observation.proprioception.at(s).at(row)[1] == 0);
        continue;
      }
      if (const std::uint64_t first = all->episode.seed.at(s)[row / 4 * 4]; first != 0)
        CHECK(all->episode.seed.at(s)[row] == first);  // a group's
      seeds.insert(all->episode.seed.at(s)[row]);
      CHECK(all->observation.proprioception.at(t).at(row)[1] == 0);  // begins at a chunk boundary
      const bool cut = t + whole > decisions;                        // the pass ends before it
      const std::int64_t last = cut ? decisions - 1 : t + whole - 1;
      const bool solved = !cut && length % 2 == 0;
      CHECK(all->episode.decision.at(s)[row] == last);
      CHECK(all->episode.step.at(s)[row] == (cut ? C - 1 : (length - 1) % C));
      CHECK(all->episode.success.at(s)[row] == solved);
      CHECK(all->episode.end.at(s)[row] ==
            static_cast<int>(solved ? dvla::EpisodeEnd::terminated : dvla::EpisodeEnd::truncated));
      CHECK(all->episode.final_observation.proprioception.at(s).at(row)[1] ==
            static_cast<float>(cut ? (decisions - t) * C : length));
      CHECK(all->terminated.at(last).at(row)[C - 1] == solved);
      CHECK(all->truncated.at(last).at(row)[C - 1] == !solved);
      t += whole;
    }
    for (; t < decisions; ++t) {  // used up: no further episode
      CHECK(all->observation.proprioception.at(t + 1).at(row)[2] == 0);
      for (const float value : made->log_prob.at(t).at(row).span()) CHECK(value == 0);
    }
  }
  CHECK(seeds.size() >= 4);
  World same_again({.seed = 5, .chunk = C, .group = 4, .stages = 2, .pass_steps = pass, .table = S});
  dvla::OwnedRecord<dvla::Transition> again(
      dvla::transition_layout(world.environment.observation_spec(), world.environment.action_spec(), shape),
      world.heap);
  same_again.worker.rollout(*again, *made, 0);
  CHECK(same(all->episode.seed, again->episode.seed));
  CHECK(same(all->episode.decision, again->episode.decision));
}

TEST_CASE("A last chunk may be shorter than the others, and rewards can be scaled") {
  World world({.seed = 5, .chunk = 4, .group = 4, .reward_scale = 2.5});  // of a horizon of 6
  CHECK(world.worker.shape().decisions == 2);
  const auto model = std::make_unique<LinearModel>(
      dvla::testing::LinearKnobs{.chunk = 4},
      dvla::ModelInputs{world.environment.observation_spec(), world.environment.action_spec(), 4}, 1);
  dvla::RolloutWorker<Script, LinearModel, dvla::trace::Off> worker(world.environment, *model, *model,
                                                                    world.options, world.off);
  dvla::OwnedRecord<dvla::Transition> all(
      dvla::transition_layout(world.environment.observation_spec(), world.environment.action_spec(),
                              worker.shape()),
      world.heap);
  dvla::OwnedRecord<dvla::testing::LinearDecision> made(model->decision_layout({2, N}), world.heap);
  worker.rollout(*all, *made, 0);
  float most = 0;
  for (std::int64_t row = 0; row < N; ++row) {
    const std::int64_t length = world.environment.length(row);
    CHECK(all->episode.decision[row] == (length - 1) / 4);
    CHECK(all->episode.step[row] == (length - 1) % 4);
    if (length > 4) CHECK(all->ended(1, row));
  }
  for (const float value : all->reward.span()) most = std::max(most, value);
  CHECK(most == 2.5F);
}

TEST_CASE("Shapes that do not fit are one sentence") {
  auto message = [](dvla::RolloutOptions options) {
    try {
      World world(options);
    } catch (const dvla::ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message({.chunk = 2, .group = 3}).find("environments 8 is not a multiple of group 3") == 0);
  CHECK(message({.chunk = 0, .group = 4}).find("a chunk of 0") == 0);
  CHECK(message({.chunk = 2, .group = 0}).find("environments") == 0);
}
