// dvla-test: tsan asan
// The data plane between processes, over threads: what is sent is what is trained on, in every shape of job.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "routed_job.hpp"

using dvla::testing::ThreadCluster;
using namespace routed_job;

TEST_CASE("Every shape of job trains on exactly what was sampled, each episode once, for K of 0 to 2") {
  const std::vector<dvla::Roles> shapes{
      {{0, 1, 2}, {3}}, {{0, 1}, {2, 3}}, {{0}, {1, 2}},       {{0, 1, 2}, {0, 1, 2}},
      {{0, 1, 2}, {0}}, {{0}, {0}},       {{0, 1, 2}, {2, 3}},
  };
  for (const dvla::Roles& roles : shapes)
    for (const int staleness : {0, 1, 2}) {
      constexpr std::int64_t batches = 12;
      const Job job{.roles = roles, .staleness = staleness};
      const auto ledgers = job.run(batches);
      const Sum sum = sum_of(ledgers);
      CAPTURE(describe(job.plan()));
      CHECK(sum.wrong == "");
      const std::int64_t episodes =
          batches * job.episodes_per_rollout() * static_cast<std::int64_t>(roles.rollouts.size());
      CHECK(sum.sent == episodes);
      CHECK(sum.acknowledged == episodes);
      CHECK(sum.trained == episodes);
      CHECK(sum.dropped == 0);
      CHECK(sum.lost == 0);
      CHECK(sum.committed == sum.trained_ids);
      CHECK(sum.bytes_sent == sum.bytes_received);
    }
}
