// dvla-test: torch mujoco
// A model with a value head under an algorithm that asks for no values: a whole run, and what is left of it.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "dvla/algorithm/grpo.hpp"
#include "dvla/dvla.hpp"
#include "dvla/environment/mujoco.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/model/with_value.hpp"
#include "dvla/pipeline/checkpoint.hpp"
#include "dvla/pipeline/run.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/trace/off.hpp"
#include "test/io/temporary_folder.hpp"

namespace {

using P =
    dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::WithValue<dvla::TinyVLA<dvla::TokenHead>>>,
                   dvla::Trainer<dvla::GRPO>>;
using Run = dvla::Run<P, dvla::trace::Off>;

dvla::Config<P> config() {
  dvla::Config<P> config;
  config.environment.environments = 16;
  config.environment.horizon = 8;
  config.environment.dense_reward = true;
  config.model.width = 32;
  config.model.blocks = 2;
  config.model.attention_heads = 2;
  config.model.bins = 8;
  config.model.chunk = 2;
  config.model.value_level = dvla::RewardLevel::action;
  config.algorithm.group = 8;
  config.algorithm.global_batch = 0;
  config.algorithm.micro_batch = 32;
  config.memory.environment_pool_mib = 16;
  config.memory.model_pool_mib = 16;
  config.schedule.deadline_s = 60;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.run.demonstrations = 8;
  config.run.iterations = 2;
  return config;
}

/// The weights of the head, or those of the rest.
std::string weights(Run& run, bool head) {
  std::string all;
  for (const dvla::Parameter& each : run.model().parameters())
    if (each.name.starts_with("value.") == head)
      all.append(reinterpret_cast<const char*>(each.data), each.bytes());
  return all;
}

}  // namespace

TEST_CASE("GRPO trains a policy that has a value head, and leaves the head as it was") {
  const dvla_test::TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  std::string head, trained;
  {
    Run run(config());
    head = weights(run, true);
    const std::string policy = weights(run, false);
    run.warm_start();
    const std::string cloned = weights(run, false);
    CHECK((cloned != policy));
    CHECK((weights(run, true) == head));
    CHECK(run.train(2).batches == 2);
    trained = weights(run, false);
    CHECK((trained != cloned));
    CHECK((weights(run, true) == head));
    dvla::save_checkpoint(run, checkpoints);
  }
  Run resumed(config());
  dvla::load_checkpoint(resumed, checkpoints.load(2).file);
  CHECK((weights(resumed, true) == head));
  CHECK((weights(resumed, false) == trained));
  CHECK(checkpoints.load(2).file.contains("model.value.out.weight"));
}
