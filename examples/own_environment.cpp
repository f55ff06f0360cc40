// dvla-example: smoke
// Own environment: a ferry, written as one struct, checked against the library's promises and trained.
//
// A pipeline steps environments in batches, from several threads, straight into pool memory. That sounds
// like much to write, but it is one loop around the logic of a single environment: `Boat` below knows
// nothing of batches, `Ferry` is policy and machinery in one and turns boats into rows.
// testing::check_environment then plays it in every way that the lanes will (other rows, other threads,
// other pasts) and says in sentences what it does wrong. No torch, no simulator: with the small linear model
// of dvla/testing/ this file compiles in seconds and learns in one.
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/dvla.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/environment.hpp>
#include <dvla/testing/linear_model.hpp>
#include <memory_resource>

/// One ferry on one crossing. It reaches the far bank after eight control steps, wherever the current has
/// taken it.
struct Boat {
  static constexpr std::array instructions{"land at the mill", "land at the church"};
  static constexpr int steps_to_cross = 8;

  float along = 0, current = 0,
        landing = 0;  // metres down the river; metres a step; where the instruction says
  int instruction = 0, steps = 0;
  bool over = false, solved = false;

  void reset(std::uint64_t seed) {
    dvla::SplitMix64 random(seed);  // all chance comes from the seed
    *this = {};
    along = random.uniform(-0.3F, 0.3F);
    current = random.uniform(-0.06F, 0.06F);
    instruction = static_cast<int>(random.below(2));
    landing = instruction == 0 ? -0.6F : 0.6F;
  }
  /// One control step. Returns the reward: 1 on landing where it was told to, else 0.
  float step(float rudder) {
    if (over) return 0;
    along += 0.15F * rudder + current;
    over = ++steps == steps_to_cross;
    solved = over && std::abs(along - landing) < 0.1F;
    return solved ? 1.0F : 0.0F;
  }
};

struct FerryKnobs {
  int environments = 64;
};
BOOST_HANA_ADAPT_STRUCT(FerryKnobs, environments);
template <>
inline constexpr auto dvla::knob_docs<FerryKnobs> = std::to_array<dvla::KnobDoc>({
    {"environments", "boats at once; a multiple of the group", 1, 65536},
});

/// The policy, and its machinery: N boats as rows. A call says which rows it is about; the fields have all N.
class Ferry {
 public:
  using slot = dvla::environment_slot;
  using knobs = FerryKnobs;
  static constexpr std::string_view name = "Ferry";

  Ferry(const FerryKnobs& chosen, std::pmr::memory_resource& pool)
      : boats_(static_cast<std::size_t>(chosen.environments), &pool) {
    spec_.proprioception = 3;
    spec_.instructions.assign(Boat::instructions.begin(), Boat::instructions.end());
  }

  std::int64_t size() const { return static_cast<std::int64_t>(boats_.size()); }
  std::int64_t horizon() const { return Boat::steps_to_cross; }
  const dvla::ObservationSpec& observation_spec() const { return spec_; }
  dvla::ActionSpec action_spec() const { return {1}; }
  bool succeeded(std::int64_t row) const { return boats_[static_cast<std::size_t>(row)].solved; }

  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    rows.for_each([&](std::int64_t row, std::int64_t i) {  // what throws in here fails this row only
      boat(row).reset(starts[static_cast<std::size_t>(i)].seed);
      show(row, next);
    });
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    std::atomic<std::int64_t> made{0};
    rows.for_each([&](std::int64_t row, std::int64_t) {
      Boat& one = boat(row);
      const int before = one.steps;
      for (std::int64_t c = 0; c < action.extents()[1]; ++c) {  // the chunk's control steps
        outcome.reward.at(row)[c] = one.step(action.at(row).at(c)[0]);
        outcome.terminated.at(row)[c] = one.over ? 1 : 0;  // landed, wherever that is: nothing follows
        outcome.truncated.at(row)[c] = 0;
      }
      made += one.steps - before;
      show(row, outcome.next);
    });
    return made;
  }

 private:
  Boat& boat(std::int64_t row) { return boats_[static_cast<std::size_t>(row)]; }
  void show(std::int64_t row, const dvla::Observation& next) {
    const Boat& one = boat(row);
    const dvla::Field<float> numbers = next.proprioception.at(row);  // about [-1, 1] each
    numbers[0] = one.along;
    numbers[1] = 10 * one.current;
    numbers[2] = static_cast<float>(one.steps) / Boat::steps_to_cross;
    next.instruction[row] = one.instruction;
  }

  dvla::ObservationSpec spec_;
  std::pmr::vector<Boat> boats_;
};

using Crossing = dvla::Pipeline<dvla::Sampler<Ferry, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>>;

int main() try {
  dvla::DualPoolMachinery memory({});
  Ferry ferry({.environments = 32}, memory.environment());
  const auto broken = dvla::testing::check_environment(ferry);
  for (const std::string& sentence : broken) std::printf("broken promise: %s\n", sentence.c_str());
  std::printf("check_environment: %zu broken promises\n\n%s\n", broken.size(), Crossing::describe().c_str());
  if (!broken.empty()) return 1;

  dvla::Config<Crossing> config;
  config.model.chunk = 2;
  config.algorithm.learning_rate = 0.03;
  config.run.iterations = 800;
  dvla::Run<Crossing> run(config);
  const double before = run.evaluate(1024);
  const dvla::RunReport report = run.train([](const dvla::Iteration& done) {
    if ((done.batch + 1) % 200 == 0)
      std::printf("batch %3lld: %.2f of the ferries land where they were told to\n",
                  static_cast<long long>(done.batch + 1), done.update.success_rate);
  });
  std::printf("success on 1024 fresh crossings: %.2f before, %.2f after %.1f s (%.0f env_steps/s)\n", before,
              run.evaluate(1024), report.train_wall_s, report.env_steps_per_s());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
