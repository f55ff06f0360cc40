// validate(config): what a program filled in is checked as what a user typed.
#include <doctest/doctest.h>

#include <dvla/dvla.hpp>
#include <limits>

#include "dvla/pipeline/validate.hpp"
#include "test/complaint.hpp"

using namespace dvla;
using P = Pipeline<Sampler<Toy>, Trainer<GRPO>>;

namespace {
template <class Pipeline = P, class Change>
std::string complaint(Change change) {
  Config<Pipeline> config;
  change(config);
  return dvla_test::complaint([&] { validate(config); });
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

TEST_CASE("NCCL is refused where models compute on the CPU") {
  CHECK(complaint([](auto& c) { c.run.collectives = Collectives::nccl; }) ==
        "run.collectives is nccl, which works between GPUs, but models compute on the CPU; choose "
        "memory.device cuda, or gloo");
}

TEST_CASE("rewards and values are of the same level where the algorithm learns from both") {
  const auto by_action = [](auto& c) { c.algorithm.reward_level = RewardLevel::action; };
  CHECK(complaint<Pipeline<Sampler<Toy, WithValue<TinyVLA<>>>, Trainer<PPO>>>(by_action) ==
        "algorithm.reward_level is action and model.value_level is chunk; give rewards and values the same "
        "level");
  CHECK(complaint<Pipeline<Sampler<Toy, WithValue<TinyVLA<>>>, Trainer<GRPO>>>(by_action) == "none");
  CHECK(complaint(by_action) == "none");
}

TEST_CASE("deadlines of workers end before the run's") {
  const auto late = [](auto& c) { c.environment.worker_start_s = 250; };
  CHECK(
      complaint<Pipeline<Sampler<ManiSkill>, Trainer<GRPO>>>(late) ==
      "run.step_deadline_s is 300; it must be more than 310, which the environment's own deadlines allow one "
      "call: else what is late ends the run");
}

TEST_CASE("noise that a flow head cannot have, or that nothing can be trained on, is refused") {
  using Flow = P::replace<TinyVLA<FlowHead>>;
  CHECK(
      complaint<Flow>([](auto& c) { c.model.noise = FlowNoise::ode; }) ==
      "model.noise is ode, which has no log-probabilities to train on, and run.iterations is 150; make it 0 "
      "to clone and evaluate, or choose another noise");
  CHECK(complaint<Flow>([](auto& c) { c.model.noise = FlowNoise::ode, c.run.iterations = 0; }) == "none");
  CHECK(complaint<Flow>([](auto& c) { c.model.noise = FlowNoise::flow_noise; }) ==
        "model.noise is flow_noise, and this model has no head that learns it; choose flow_sde, flow_cps or "
        "ode");
  CHECK(complaint<Flow>([](auto& c) {
          c.model.noise = FlowNoise::flow_cps, c.model.denoise_steps = 1;
        }).find("model.denoise_steps is 1; flow_cps has no noise in the last step") == 0);
}

TEST_CASE("a choice that does not exist and text with control characters are refused") {
  CHECK(complaint([](auto& c) {
          c.algorithm.log_prob_level = static_cast<LogProbLevel>(9);
        }).find("algorithm.log_prob_level is 9; it must be one of token, action, chunk") == 0);
  CHECK(
      complaint([](auto& c) { c.run.folder = "a\nb"; }) ==
      "run.folder is \"a?b\"; it must be text in UTF-8 without control characters (where runs are written)");
}

TEST_CASE("text is UTF-8, whichever field it stands in") {
  for (const char* good :
       {"", "ascii", "\xc3\xa4", "\xe2\x82\xac", "\xed\x9f\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    CAPTURE(good);
    CHECK(complaint([&](auto& c) { c.run.resume = good; }) == "none");
  }
  // Cut short, overlong, surrogates, beyond U+10FFFF, and bytes that never occur.
  for (const char* bad : {"a\x80", "\xc3", "\xc3(", "\xc0\xaf", "\xe0\x80\xaf", "\xe2\x82", "\xed\xa0\x80",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    CAPTURE(bad);
    CHECK(complaint([&](auto& c) { c.run.resume = bad; }).find("run.resume is \"") == 0);
    CHECK(complaint([&](auto& c) { c.run.folder = bad; }).find("run.folder is \"") == 0);
    CHECK(complaint([&](auto& c) { c.run.name = bad; }).find("run.name is ") == 0);
  }
}

TEST_CASE("rules between members of one slot") {
  CHECK(complaint([](auto& c) { c.algorithm.micro_batch = 100; }) ==
        "algorithm.global_batch is 512; it must be a multiple of algorithm.micro_batch, which is 100");
  CHECK(complaint([](auto& c) { c.algorithm.global_batch = 0; }) == "none");
  CHECK(complaint([](auto& c) { c.algorithm.dual_clip = 0.5; }).find("algorithm.dual_clip is 0.5") == 0);
  CHECK(complaint([](auto& c) { c.algorithm.filter_lower = 1; }).find("algorithm.filter_lower is 1") == 0);
  CHECK(complaint([](auto& c) { c.model.width = 130; }) ==
        "model.width is 130; it must be a multiple of model.attention_heads, which is 4");
  CHECK(complaint([](auto& c) { c.run.name = "../up"; }) ==
        "run.name is '../up'; it must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or "
        "digit: it becomes a folder's name");
}

TEST_CASE("rules between slots") {
  CHECK(complaint([](auto& c) { c.environment.environments = 60; }) ==
        "environment.environments is 60; it must be a multiple of algorithm.group, which is 8");
  CHECK(complaint([](auto& c) { c.environment.horizon = 6; }) == "none");  // the last chunk is shorter
  CHECK(complaint([](auto& c) {
          c.schedule.staleness = 2;
        }).find("schedule.staleness is 2; it must be a whole number in [0, 1] (K: a rollout's") == 0);
  CHECK(complaint<P::replace<Swimlane<2>>>([](auto& c) { c.schedule.staleness = 2; }) == "none");
}
