// UnshardedWeights: the whole model in one trainer.
#include <doctest/doctest.h>

#include "dvla/memory/model_pool.hpp"
#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/sharding.hpp"

using dvla::testing::LinearModel;

TEST_CASE("UnshardedWeights keep what a sharding promises") {
  const auto make = [](LinearModel& model, std::pmr::memory_resource& memory) {
    return dvla::UnshardedWeights<LinearModel>(model, memory);
  };
  for (const std::string& violation : dvla::testing::check_sharding(make)) FAIL_CHECK(violation);
}

TEST_CASE("The moments live in the pool that was given, the parameters where the model has them") {
  dvla::ModelPool pool{std::size_t{1} << 20};
  LinearModel model({}, {{.cameras = {}, .proprioception = 3, .instructions = {"go"}}, {.dimensions = 2}, 1},
                    7);
  dvla::UnshardedWeights<LinearModel> weights(model, pool);
  const dvla::AdamWState& state = weights.state();
  CHECK(state.parameter.data() == model.parameters().data());
  CHECK(state.first_moment.size() == model.parameters().size());
  CHECK(pool.contains(state.first_moment.data()));
  CHECK(pool.contains(state.second_moment.data()));
}
