// dvla-test: tsan
// PPO as a run: whole lanes, several episodes a row, checkpoints, and what does not fit.
#include <doctest/doctest.h>

#include <string>

#include "dvla/algorithm/ppo.hpp"
#include "dvla/control_plane/in_process.hpp"
#include "dvla/data_plane/in_process.hpp"
#include "dvla/dvla.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/pipeline/checkpoint.hpp"
#include "dvla/pipeline/run.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/weights.hpp"
#include "test/io/temporary_folder.hpp"

namespace {

using Lanes =
    dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearValueModel>, dvla::Trainer<dvla::PPO>>;
using Alternating = Lanes::replace<dvla::Synchronous>;

template <class P>
dvla::Config<P> config(int iterations) {
  dvla::Config<P> config;
  config.environment.environments = 64;
  config.environment.horizon = 4;
  config.environment.actions = 1;
  config.model.bins = 5;
  config.model.chunk = 2;
  config.algorithm.learning_rate = 0.02;
  config.algorithm.global_batch = 64;
  config.algorithm.micro_batch = 32;
  config.algorithm.aggregation = dvla::Aggregation::masked_mean;
  config.memory.environment_pool_mib = 4;
  config.memory.model_pool_mib = 4;
  config.schedule.deadline_s = 30;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.run.iterations = iterations;
  config.run.demonstrations = 0;
  config.run.auto_reset = true;
  config.run.pass_steps = 12;
  config.run.episodes_per_row = 3;
  return config;
}

}  // namespace

TEST_CASE_TEMPLATE("PPO learns with several episodes a row, under four lanes and in turns", P, Lanes,
                   Alternating) {
  dvla::Run<P> run(config<P>(60));
  const auto report = run.train();
  CHECK(report.batches == 60);
  const auto& history = run.history();
  CHECK(history.back().update.success_rate > history.front().update.success_rate + 0.3);
  CHECK(history.back().update.episodes > 64);  // more than one a row
  CHECK(history.back().update.loss.values > 0);
}

TEST_CASE("A run that is resumed goes on as the whole one") {
  const dvla_test::TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  dvla::Run<Alternating> whole(config<Alternating>(6));
  whole.train();
  std::filesystem::path saved;
  {
    dvla::Run<Alternating> first(config<Alternating>(6));
    first.train(3);
    saved = dvla::save_checkpoint(first, checkpoints);
  }
  dvla::Run<Alternating> second(config<Alternating>(6));
  dvla::load_checkpoint(second, dvla::io::open_checkpoint(saved));
  second.train();
  CHECK(dvla::testing::detail::weights_of(second.model()) ==
        dvla::testing::detail::weights_of(whole.model()));
}

TEST_CASE("What does not fit is one sentence before anything starts") {
  const auto message = [](auto change) {
    auto wrong = config<Lanes>(1);
    change(wrong);
    return dvla_test::message_of<dvla::ConfigError>([&] { dvla::Run<Lanes> run(wrong); });
  };
  CHECK(message([](auto& c) {
          c.algorithm.reward_level = dvla::RewardLevel::action;
        }).find("algorithm.reward_level asks for 2 values a decision, and the model gives 1") !=
        std::string::npos);
  CHECK(message([](auto& c) { c.algorithm.kl = 0.1; }).find("knows no reference policy") !=
        std::string::npos);
  CHECK(message([](auto& c) { c.algorithm.gamma = 1.5; }).find("algorithm.gamma") != std::string::npos);
}
