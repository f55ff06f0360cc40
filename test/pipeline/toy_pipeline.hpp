// Whole pipelines without torch for the tests of this folder: the Toy environment and LinearModel, all nine
// slots.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "dvla/algorithm/grpo.hpp"
#include "dvla/dvla.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/memory/single_pool.hpp"
#include "dvla/pipeline/run.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/trace/off.hpp"

namespace dvla_test {

/// Toy, LinearModel and GRPO, with whatever else is named.
template <class... More>
using ToyPipeline =
    dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>, More...>;

/// 64 episodes of 4 control steps a batch, which learn in about a hundred iterations; one thread a lane.
template <class Pipeline>
dvla::Config<Pipeline> small_config(int iterations) {
  dvla::Config<Pipeline> config;
  config.environment.environments = 64;
  config.environment.horizon = 4;
  config.algorithm.group = 8;
  config.algorithm.learning_rate = 0.03;
  config.algorithm.global_batch = 0;
  config.algorithm.micro_batch = 64;
  config.memory.environment_pool_mib = 4;
  config.memory.model_pool_mib = 4;
  config.schedule.deadline_s = 30;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.run.iterations = iterations;
  config.run.demonstrations = 0;
  return config;
}

inline std::vector<float> values(std::span<const float> view) { return {view.begin(), view.end()}; }
/// Equal bit for bit.
inline bool same_bits(std::span<const float> one, std::span<const float> two) {
  return one.size() == two.size() && std::memcmp(one.data(), two.data(), one.size_bytes()) == 0;
}
template <class One, class Two>
bool same_state(One& one, Two& two) {
  return same_bits(one.model().parameters(), two.model().parameters()) &&
         same_bits(one.weights().state().first_moment, two.weights().state().first_moment) &&
         same_bits(one.weights().state().second_moment, two.weights().state().second_moment) &&
         one.weights().state().step == two.weights().state().step && one.next_batch() == two.next_batch();
}

}  // namespace dvla_test
