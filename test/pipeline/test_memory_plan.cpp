// dvla-test: asan
#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include "dvla/pipeline/memory_plan.hpp"

using dvla::Dtype;
using dvla::MemoryPlace;
using dvla::MemoryPlan;
using dvla::Parameter;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

Parameter parameter(std::vector<std::int64_t> shape, Dtype dtype, bool trainable = true) {
  Parameter made;
  made.shape = std::move(shape);
  made.dtype = dtype;
  made.trainable = trainable;
  return made;
}

std::size_t planned(const std::vector<Parameter>& parameters, int copies, bool trains = true,
                    int actors = 1) {
  MemoryPlan plan;
  dvla::plan_weights(plan, {.parameters = parameters, .copies = copies, .trains = trains, .actors = actors});
  CHECK(plan.total() == plan.of(MemoryPlace::model_pool) + plan.of(MemoryPlace::heap));
  return plan.of(MemoryPlace::model_pool);
}

}  // namespace

TEST_CASE("A float32 parameter takes 24 bytes with two copies to sample from and 16 with none") {
  const std::vector<Parameter> all{parameter({100, 7}, Dtype::f32), parameter({300}, Dtype::f32)};
  CHECK(planned(all, 2) == 24 * 1000);
  CHECK(planned(all, 0) == 16 * 1000);
}

TEST_CASE("A bfloat16 parameter takes 22 bytes, its float32 master among them") {
  CHECK(planned({parameter({1000}, Dtype::bf16)}, 2) == 22 * 1000);
  CHECK(planned({parameter({1000}, Dtype::bf16)}, 0) == 18 * 1000);
}

TEST_CASE("Adapters that are a fraction f of a frozen bfloat16 model take 2 + 22 f bytes a parameter of it") {
  CHECK(planned({parameter({100000}, Dtype::bf16, false), parameter({1000}, Dtype::bf16)}, 2) ==
        2 * 100000 + 22 * 1000);
}

TEST_CASE("Frozen weights that are views of a mapped file are named and not counted") {
  Parameter frozen = parameter({1000}, Dtype::bf16, false);
  frozen.mapped = true;
  CHECK(planned({frozen, parameter({10}, Dtype::bf16)}, 2) == 22 * 10);
  MemoryPlan plan;
  const std::vector<Parameter> all{frozen};
  dvla::plan_weights(plan, {.parameters = all, .copies = 2, .trains = true});
  CHECK(plan.of(MemoryPlace::file) == 2 * 1000);
  CHECK_NOTHROW(plan.check(0));
}

TEST_CASE("A rank that only samples plans no gradients, masters or moments") {
  CHECK(planned({parameter({1000}, Dtype::bf16)}, 1, false) == 2 * 2 * 1000);
}

TEST_CASE("Actors that share masters and moments plan those of their share of elements, rounded up") {
  // Values and gradients of all 1000; masters, moments and the gradient over all actors of 334; a padded unit.
  CHECK(planned({parameter({1000}, Dtype::bf16)}, 0, true, 3) ==
        (2 + 4) * 1000 + (4 + 8 + 4) * 334 + 4 * 1002);
  CHECK(planned({parameter({1002}, Dtype::bf16)}, 0, true, 3) == (2 + 4) * 1002 + (4 + 8 + 4) * 334);
}

TEST_CASE("Actors that release units plan a share of the model, and two of the largest units whole") {
  std::vector<Parameter> all(10, parameter({600}, Dtype::f32));
  for (std::size_t unit = 0; unit < all.size(); ++unit) all[unit].unit = unit;
  all[9] = parameter({300}, Dtype::f32, false);
  all[9].unit = 3;
  const auto plan = [&](dvla::WeightsPlan weights) {
    MemoryPlan made;
    weights.parameters = all;
    weights.trains = true;
    dvla::plan_weights(made, weights);
    return made;
  };
  // Moments, the gradient over all actors, a part of it on its way, and what is received: at all times.
  const std::size_t always = 8 * 1800 + 4 * 1800 + 4 * 200 + 2400;
  // Frozen whole, values a share, two units gathered, two gradients: less than the whole model is, at times.
  const MemoryPlan three = plan({.parameters = {}, .actors = 3, .units_at_once = 2});
  CHECK(1200 + 4 * 1800 + 2 * 2400 + 2 * 2400 < 1200 + 4 * 5400);
  CHECK(three.total() == always + 1200 + 4 * 5400);
  CHECK(three.addresses() == 4 * 5400);
  // More than that with two actors, of which each has more, and where all gradients may wait to be sent.
  const MemoryPlan waiting =
      plan({.parameters = {}, .actors = 2, .units_at_once = std::numeric_limits<std::size_t>::max()});
  CHECK(waiting.total() == 8 * 2700 + 4 * 2700 + 4 * 300 + 2400 + 1200 + 4 * 5400 + 4 * 5400);
  CHECK(waiting.addresses() == 0);
  // Frozen units that are sharded are released with the others.
  CHECK(plan({.parameters = {}, .actors = 3, .units_at_once = 9, .shard_frozen = true}).total() ==
        always + (400 + 4 * 1800) + (800 + 4 * 3600) + 4 * 5400);
  CHECK(plan({.parameters = {}, .actors = 1, .units_at_once = 2}).addresses() == 0);
}

TEST_CASE("A parameter under a second name is planned once") {
  Parameter tied = parameter({1000}, Dtype::f32);
  tied.alias_of = "embedding";
  CHECK(planned({parameter({1000}, Dtype::f32), tied}, 2) == 24 * 1000);
}

TEST_CASE("A plan that does not fit is refused with its three largest parts, one that just fits is not") {
  MemoryPlan plan;
  plan.add("records", MemoryPlace::environment_pool, 1 * mib);
  plan.add("moments", MemoryPlace::model_pool, 8 * mib);
  plan.add("activations", MemoryPlace::heap, 2 * mib);
  plan.add("gradients", MemoryPlace::model_pool, 4 * mib);
  plan.add("masters", MemoryPlace::model_pool, 0);
  CHECK(plan.items().size() == 4);
  CHECK(plan.of(MemoryPlace::model_pool) == 12 * mib);
  CHECK_NOTHROW(plan.check(15 * mib));
  CHECK_THROWS_WITH_AS(plan.check(15 * mib - 1),
                       "the run would take 15.0 MiB of memory, and 15.0 MiB can be had here; its largest "
                       "parts are moments 8.0 MiB, gradients 4.0 MiB, activations 2.0 MiB",
                       dvla::ConfigError);
}
