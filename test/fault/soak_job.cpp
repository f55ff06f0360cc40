// The job that check_soak.py plagues: the Toy environment and LinearModel, rollouts and actors apart. Its
// environment takes a millisecond a step. It gives NaN in a row, takes a second and a half for a step, throws, or
// does not come back, each once for a file that it finds in DVLA_SOAK_FOLDER, "nan-<rank>", "slow-<rank>",
// "throw-<rank>", "hang-<rank>", and removes.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "dvla/algorithm/grpo.hpp"
#include "dvla/control_plane/broadcast.hpp"
#include "dvla/data_plane/routed.hpp"
#include "dvla/dvla.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/pipeline/job_main.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/testing/linear_model.hpp"

namespace {
std::string variable(const char* name) {
  const char* const text = std::getenv(name);
  return text ? text : "";
}
/// Whether somebody has asked for it; then it is done.
bool asked_for(const std::string& what) {
  static const std::string folder = variable("DVLA_SOAK_FOLDER") + "/", rank = "-" + variable("RANK");
  return ::unlink((folder + what + rank).c_str()) == 0;
}

struct Plagued {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "Plagued";
};
struct PlaguedEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    std::this_thread::sleep_for(std::chrono::milliseconds(asked_for("slow") ? 1500 : 1));
    if (asked_for("throw")) throw std::runtime_error("the simulator is gone");
    while (asked_for("hang")) std::this_thread::sleep_for(std::chrono::hours(1));
    const std::int64_t made = ToyEnvironment::step(rows, action, outcome);
    if (!rows.indices().empty() && asked_for("nan"))
      outcome.reward.at(rows.indices()[0])[0] = std::numeric_limits<float>::quiet_NaN();
    return made;
  }
};
}  // namespace

template <class Around>
struct dvla::machinery<Plagued, Around> {
  using type = PlaguedEnvironment;
};

int main(int argc, char** argv) {
  using Soak = dvla::Pipeline<dvla::Sampler<Plagued, dvla::testing::LinearModel>,
                              dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>,
                              dvla::Placement<dvla::Separated<>>, dvla::Schedule<dvla::Swimlane<1>>>;
  dvla::Config<Soak> config;
  config.environment.environments = 48;
  config.environment.horizon = 4;
  config.algorithm.group = 8;
  config.algorithm.learning_rate = 1e-4;
  config.placement.rollouts = 3;
  config.placement.actors = 1;
  config.schedule.deadline_s = 60;
  config.run.iterations = 100000000;
  config.run.checkpoint_every = 50;
  config.run.demonstrations = 0;
  config.run.evaluation_episodes = 0;
  config.run.animation = false;
  config.run.heartbeat_s = 1;
  config.run.step_deadline_s = 3;
  return dvla::job_main<Soak>(argc, argv, config);
}
