// Several threads and stages in the sampling lane. Not under ThreadSanitizer: libtbb is not instrumented, so
// its own hand-overs look like races.
#include <doctest/doctest.h>

#include <algorithm>

#include "test/pipeline/toy_pipeline.hpp"

using dvla::Run;
using dvla_test::small_config;
using InTurn = dvla_test::ToyPipeline<dvla::Schedule<dvla::Synchronous>>;

TEST_CASE("Threads change nothing; stages change which actions are drawn, and nothing else") {
  auto trained = [](int threads, int stages) {
    auto config = small_config<InTurn>(10);
    config.schedule.sampling_threads = threads;
    config.schedule.sampling_stages = stages;
    Run<InTurn> run(config);
    run.train();
    return dvla_test::values(run.model());
  };
  const auto one = trained(1, 1), staged = trained(1, 2);
  CHECK(dvla_test::same_bits(one, trained(2, 1)));
  CHECK(dvla_test::same_bits(staged, trained(2, 2)));
  CHECK(
      !dvla_test::same_bits(one, staged));  // actions are seeded by (batch, decision, first row of the stage)

  auto first_batch = [](int stages, auto compare) {
    auto config = small_config<InTurn>(1);
    config.schedule.sampling_stages = stages;
    Run<InTurn> run(config);
    auto& heap = *std::pmr::new_delete_resource();
    dvla::OwnedRecord<dvla::Transition> all(run.worker().layout(4, 1), heap);
    dvla::OwnedRecord<dvla::testing::LinearDecision> decisions(run.model().decision_layout({4, 64}), heap);
    run.worker().rollout(*all, *decisions, 0);
    compare(*all);
  };
  first_batch(1, [&](const dvla::Transition& whole) {
    first_batch(2, [&](const dvla::Transition& halves) {
      const auto same = [](const auto& a, const auto& b) {
        return std::equal(a.span().begin(), a.span().end(), b.span().begin());
      };
      CHECK(same(whole.episode.seed, halves.episode.seed));
      CHECK(same(whole.group, halves.group));
      CHECK(same(whole.observation.proprioception.at(0), halves.observation.proprioception.at(0)));
      for (std::int64_t t = 0; t < 4; ++t)  // the first stage begins at row 0 either way
        CHECK(same(whole.action.at(t).rows(0, 32), halves.action.at(t).rows(0, 32)));
      CHECK(!same(whole.action, halves.action));
    });
  });
}
