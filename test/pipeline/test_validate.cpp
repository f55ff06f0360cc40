// dvla-test: asan
// validate(config): what a program filled in is checked as what a user typed.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <dvla/dvla.hpp>
#include <limits>

#include "dvla/pipeline/validate.hpp"

using namespace dvla;
using P = Pipeline<Sampler<Toy>, Trainer<GRPO>>;

namespace {
template <class Pipeline = P, class Change>
std::string complaint(Change change) {
  Config<Pipeline> config;
  change(config);
  try {
    validate(config);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}
}  // namespace

TEST_CASE("every pipeline's defaults are valid") {
  validate(Config<P>{});
  validate(Config<Pipeline<MuJoCo<Push>, GRPO>>{});
  validate(Config<P::replace<Swimlane<0>>>{});
  validate(Config<P::replace<Synchronous, SinglePool, TinyVLA<FlowHead>>>{});
  validate(Config<Pipeline<Sampler<ManiSkill>, Trainer<GRPO, FSDP>, ControlPlane<Gloo>>>{});
}

TEST_CASE("a value out of range is named with its range") {
  CHECK(complaint([](auto& c) { c.algorithm.group = 1; }) ==
        "algorithm.group is 1; it must be a whole number in [2, 4096] (episodes that share a reset state)");
  CHECK(complaint([](auto& c) { c.schedule.deadline_s = -1; }) ==
        "schedule.deadline_s is -1; it must be a number in [0.001, 1e+06] seconds (longest wait of one lane "
        "for another)");
}

TEST_CASE("NaN and infinity are refused") {
  CHECK(complaint([](auto& c) { c.algorithm.learning_rate = std::numeric_limits<double>::quiet_NaN(); }) ==
        "algorithm.learning_rate is nan; it must be a number in [0, 1] (of AdamW; 0 changes nothing)");
  CHECK(complaint([](auto& c) {
          c.algorithm.gradient_clip = std::numeric_limits<double>::infinity();
        }).find("algorithm.gradient_clip is inf; it must be") == 0);
}

TEST_CASE("a choice that does not exist and text with control characters are refused") {
  CHECK(complaint([](auto& c) {
          c.algorithm.log_prob_level = static_cast<LogProbLevel>(9);
        }).find("algorithm.log_prob_level is 9; it must be one of token, action, chunk") == 0);
  CHECK(complaint([](auto& c) { c.run.folder = "a\nb"; }).find("run.folder is \"a?b\"; it must be text") ==
        0);
}

TEST_CASE("rules between members of one slot") {
  CHECK(complaint([](auto& c) { c.algorithm.micro_batch = 100; }) ==
        "algorithm.global_batch is 512; it must be a multiple of algorithm.micro_batch, which is 100");
  CHECK(complaint([](auto& c) { c.algorithm.global_batch = 0; }) == "none");
  CHECK(complaint([](auto& c) { c.algorithm.dual_clip = 0.5; }).find("algorithm.dual_clip is 0.5") == 0);
  CHECK(complaint([](auto& c) { c.algorithm.filter_lower = 1; }).find("algorithm.filter_lower is 1") == 0);
  CHECK(complaint([](auto& c) { c.model.width = 130; }) ==
        "model.width is 130; it must be a multiple of model.attention_heads, which is 4");
  CHECK(complaint([](auto& c) { c.run.name = "../up"; }).find("run.name is '../up'") == 0);
}

TEST_CASE("rules between slots") {
  CHECK(complaint([](auto& c) { c.environment.environments = 60; }) ==
        "environment.environments is 60; it must be a multiple of algorithm.group, which is 8");
  CHECK(complaint([](auto& c) { c.environment.horizon = 6; }) ==
        "environment.horizon is 6; it must be a multiple of model.chunk, which is 4");
  CHECK(complaint([](auto& c) {
          c.schedule.staleness = 2;
        }).find("schedule.staleness is 2; it must be a whole number in [0, 1] with Swimlane<1>") == 0);
  CHECK(complaint<P::replace<Swimlane<2>>>([](auto& c) { c.schedule.staleness = 2; }) == "none");
}
