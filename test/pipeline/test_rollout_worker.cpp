// dvla-test: tsan
// The sampling side alone, on an environment whose every step is known: groups, counts, masks, seeds, and
// what is called when.
#include <doctest/doctest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "dvla/environment/toy.hpp"
#include "dvla/memory/dual_pool.hpp"
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
  void reset(std::int64_t first, std::span<const std::uint64_t> seeds, const dvla::Observation& next,
             dvla::Arena&) {
    for (std::size_t i = 0; i < seeds.size(); ++i) {
      row_[static_cast<std::size_t>(first) + i] = {seeds[i], 0};
      all_seeds.push_back(seeds[i]);
      show(first, static_cast<std::int64_t>(i), next);
    }
  }
  std::int64_t step(std::int64_t first, dvla::Field<float> action, dvla::Field<float> reward,
                    dvla::Field<std::uint8_t> terminated, dvla::Field<std::uint8_t> truncated,
                    const dvla::Observation& next, dvla::Arena&) {
    const std::int64_t count = action.extents()[0], chunk = action.extents()[1];
    std::int64_t made = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      Row& state = row_[static_cast<std::size_t>(first + i)];
      for (std::int64_t c = 0; c < chunk; ++c) {
        const bool over = state.steps >= length(first + i);
        if (!over) ++state.steps, ++made;
        const bool ends = state.steps >= length(first + i);
        reward[i * chunk + c] = !over && ends && succeeded(first + i) ? 1.0F : 0.0F;
        terminated[i * chunk + c] = ends && succeeded(first + i) ? 1 : 0;
        truncated[i * chunk + c] = ends && !succeeded(first + i) ? 1 : 0;
      }
      show(first, i, next);
    }
    return made;
  }
  void expert(std::int64_t row, std::span<float> action) {
    for (float& value : action) value = 0.1F * static_cast<float>(row_[static_cast<std::size_t>(row)].steps);
  }

  std::vector<std::uint64_t> all_seeds;

 private:
  struct Row {
    std::uint64_t seed = 0;
    std::int64_t steps = 0;
  };
  void show(std::int64_t first, std::int64_t i, const dvla::Observation& next) {
    const Row& state = row_[static_cast<std::size_t>(first + i)];
    float* numbers = next.proprioception.at(i).data();
    numbers[0] = static_cast<float>(first + i);
    numbers[1] = static_cast<float>(state.steps);
    numbers[2] = static_cast<float>(state.seed % 1000);
    next.instruction[i] = 0;
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
  dvla::RolloutWorker<Script, LinearModel, dvla::trace::Off> worker{environment, *front, *back, options, off};
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
    CHECK(world.all->seed[row] == world.all->seed[row / 4 * 4]);
    const auto shown = world.all->observation.proprioception.at(0).at(row);
    CHECK(shown[0] == static_cast<float>(row % N));
    CHECK(shown[1] == 0);
    CHECK(shown[2] == static_cast<float>(world.all->seed[row] % 1000));
    seeds.insert(world.all->seed[row]);
  }
  CHECK(seeds.size() == 4);
  world.worker.rollout(*world.all, *world.decision, 1);
  for (std::int64_t row = 0; row < 2 * N; ++row) seeds.insert(world.all->seed[row]);
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
        CHECK(world.all->observation.proprioception.at(t + 1).at(row)[1] ==
              static_cast<float>(std::min(length, (t + 1) * C)));
      }
      CHECK(earned == (length % 2 == 0 ? 1.0F : 0.0F));
      CHECK(world.all->success[row] == (length % 2 == 0 ? 1 : 0));
    }
    CHECK(world.worker.counts().env_steps == steps);
    CHECK(world.worker.counts().chunk_steps == decisions);
    world.worker.rollout(*world.all, *world.decision, 1);
    CHECK(world.worker.counts().env_steps == 2 * steps);
    world.worker.evaluate(N, dvla::Decoding::mode);  // is no training
    CHECK(world.worker.counts().env_steps == 2 * steps);
  }
}

TEST_CASE("A batch depends on the run's seed and its number only") {
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
  CHECK(one.all->seed[0] != other.all->seed[0]);
}

TEST_CASE("Evaluation, demonstrations and training never share a seed, and evaluation repeats its own") {
  World world;
  auto seeds_of = [&](auto call) {
    world.environment.all_seeds.clear();
    call();
    return std::set<std::uint64_t>(world.environment.all_seeds.begin(), world.environment.all_seeds.end());
  };
  const auto evaluated = seeds_of([&] { world.worker.evaluate(20, dvla::Decoding::mode); });
  CHECK(evaluated.size() == 3 * N);  // whole passes
  CHECK(evaluated == seeds_of([&] { world.worker.evaluate(20, dvla::Decoding::sample); }));
  const auto probed =
      seeds_of([&] { world.worker.evaluate(20, dvla::Decoding::sample, dvla::Stream::probe, 10); });
  const auto shown = seeds_of([&] { world.worker.demonstrate(*world.all, N, 0, 0); });
  const auto trained = seeds_of([&] {
    for (std::int64_t batch = 0; batch < 200; ++batch)
      world.worker.rollout(*world.all, *world.decision, batch);
  });
  CHECK(trained.size() == 400);
  std::set<std::uint64_t> all;
  for (const auto* seeds : {&evaluated, &probed, &shown, &trained}) all.insert(seeds->begin(), seeds->end());
  CHECK(all.size() == evaluated.size() + probed.size() + shown.size() + trained.size());
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
  const std::int64_t solved = world.worker.demonstrate(*world.all, 5, 0, 0);
  CHECK(solved == 2);  // rows 1 and 3 of rows 0 to 4
  for (std::int64_t row = 0; row < N; ++row)
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
  noisy.worker.demonstrate(*noisy.all, N, 2, 0.5);
  again.worker.demonstrate(*again.all, N, 2, 0.5);
  CHECK(same(noisy.all->action, again.all->action));
  CHECK(!same(noisy.all->action, world.all->action));
  for (const float value : noisy.all->action.span()) CHECK((value >= -1 && value <= 1));
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

TEST_CASE("Shapes that do not fit are one sentence") {
  auto message = [](dvla::RolloutOptions options) {
    try {
      World world(options);
    } catch (const dvla::ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(message({.chunk = 4, .group = 4}).find("horizon 6 is not a multiple of chunk 4") == 0);
  CHECK(message({.chunk = 2, .group = 3}).find("environments 8 is not a multiple of group 3") == 0);
  CHECK(message({.chunk = 0, .group = 4}).find("horizon") == 0);
  CHECK(message({.chunk = 2, .group = 0}).find("environments") == 0);
}
