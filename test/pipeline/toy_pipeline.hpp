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
#include "dvla/testing/model.hpp"
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

/// The trainable weights, unit after unit.
template <class Model>
std::vector<float> values(const Model& model) {
  return dvla::testing::detail::weights_of(model);
}
/// AdamW's moments of a run's weights.
template <class Run>
std::vector<float> moments(Run& run) {
  std::vector<float> all;
  for (const auto& piece : run.weights().pieces())
    for (const auto& part : {piece.first_moment, piece.second_moment})
      all.insert(all.end(), part.begin(), part.end());
  return all;
}
/// Equal bit for bit.
inline bool same_bits(std::span<const float> one, std::span<const float> two) {
  return one.size() == two.size() && std::memcmp(one.data(), two.data(), one.size_bytes()) == 0;
}
template <class One, class Two>
bool same_state(One& one, Two& two) {
  return same_bits(values(one.model()), values(two.model())) && same_bits(moments(one), moments(two)) &&
         one.weights().steps() == two.weights().steps() && one.next_batch() == two.next_batch();
}

}  // namespace dvla_test
