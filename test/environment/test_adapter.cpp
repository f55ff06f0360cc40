// dvla-test: asan
#include <doctest/doctest.h>

#include <limits>

#include "dvla/environment/adapter.hpp"

using dvla::Adapter;

namespace {
std::vector<float> taken(const Adapter& adapter, std::vector<float> model) {
  std::vector<float> environment(model.size(), -9);
  adapter.to_environment(model, environment);
  return environment;
}
std::vector<float> decided(const Adapter& adapter, std::vector<float> environment) {
  std::vector<float> model(environment.size(), -9);
  adapter.to_model(environment, model);
  return model;
}
}  // namespace

TEST_CASE(
    "Bounds: [-1, 1] onto what the environment states, and back; without a word of it nothing changes") {
  const Adapter plain = Adapter::bounds({3});
  CHECK(plain.name() == "bounds");
  CHECK_FALSE(plain.changes_actions());
  CHECK_FALSE(plain.changes_proprioception());
  CHECK(taken(plain, {-1, 0.25F, 1}) == std::vector<float>{-1, 0.25F, 1});
  const Adapter bounds = Adapter::bounds({.dimensions = 3, .bounds = {{-2, 2}, {0, 1}, {-1, 1}}});
  CHECK(bounds.changes_actions());
  CHECK(taken(bounds, {-1, -1, -1}) == std::vector<float>{-2, 0, -1});
  CHECK(taken(bounds, {0.5F, 0, 0.5F}) == std::vector<float>{1, 0.5F, 0.5F});
  CHECK(taken(bounds, {1.5F, -3, 2}) == std::vector<float>{2, 0, 1});  // never beyond
  CHECK(decided(bounds, {1, 0.5F, 0.5F}) == std::vector<float>{0.5F, 0, 0.5F});
}

TEST_CASE("Categories pass through unchanged, whatever the bounds beside them") {
  const Adapter adapter =
      Adapter::bounds({.dimensions = 2, .categories = {5, 0}, .bounds = {{0, 0}, {-2, 2}}});
  CHECK(taken(adapter, {4, 0.5F}) == std::vector<float>{4, 1});
  CHECK(decided(adapter, {4, 1}) == std::vector<float>{4, 0.5F});
  CHECK_FALSE(Adapter::bounds({.dimensions = 1, .categories = {5}, .bounds = {{0, 0}}}).changes_actions());
}

TEST_CASE("Axes are permuted, signs turned, and back") {
  const Adapter adapter("turned",
                        {{.from = 1, .number = {-2, 0, -9, 9}}, {.from = 0, .number = {1, 3, -9, 9}}});
  CHECK(taken(adapter, {1, 2}) == std::vector<float>{-4, 4});
  CHECK(decided(adapter, {-4, 4}) == std::vector<float>{1, 2});
}

TEST_CASE("A binary gripper opens or closes; what is not finite reaches the environment, which tells of it") {
  const Adapter adapter("gripper", {{.number = {2, -1}, .binary = true}});
  CHECK(taken(adapter, {0.4F}) == std::vector<float>{-1});
  CHECK(taken(adapter, {0.6F}) == std::vector<float>{1});
  CHECK(decided(adapter, {1}) == std::vector<float>{1});
  CHECK(decided(adapter, {-1}) == std::vector<float>{0});
  CHECK(std::isnan(taken(adapter, {std::numeric_limits<float>::quiet_NaN()})[0]));
}
