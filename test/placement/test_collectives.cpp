// Who makes the actors' groups: the job, or what a program with NCCL has set.
#include <doctest/doctest.h>

#include "dvla/placement/make_group.hpp"
#include "dvla/testing/thread_cluster.hpp"

using namespace dvla;
using namespace std::chrono_literals;

namespace {
std::string noted;
std::unique_ptr<Group> note(Cluster& cluster, const std::string& name, const std::vector<int>& members,
                            std::chrono::nanoseconds) {
  CHECK(cluster.rank() == 0);
  CHECK(members == std::vector<int>{0, 1});
  noted += name;
  return std::make_unique<LoneGroup>(name);
}
}  // namespace

TEST_CASE("without NCCL the job makes every group, and nccl is refused") {
  LoneCluster alone;
  CHECK(make_group(Collectives::gloo, alone, "a", {0}, 1s)->size() == 1);
  CHECK(make_group(Collectives::nccl, alone, "b", {0}, 1s)->size() == 1);  // it needs nobody
  CHECK_NOTHROW(check_collectives(Collectives::gloo, Device::cuda));
  CHECK_THROWS_WITH_AS(check_collectives(Collectives::nccl, Device::cpu),
                       doctest::Contains("choose memory.device cuda, or gloo"), ConfigError);
  CHECK_THROWS_WITH_AS(check_collectives(Collectives::nccl, Device::cuda),
                       doctest::Contains("built without NCCL"), ConfigError);
  const auto ranks = testing::ThreadCluster::make(2);
  CHECK_THROWS_WITH_AS(make_group(Collectives::nccl, *ranks[0], "c", {0, 1}, 1s),
                       doctest::Contains("built without NCCL"), ConfigError);
}

TEST_CASE("with it, it makes the groups of several") {
  const auto ranks = testing::ThreadCluster::make(2);
  make_nccl_group = note;
  CHECK_NOTHROW(check_collectives(Collectives::nccl, Device::cuda));
  CHECK_THROWS_AS(check_collectives(Collectives::nccl, Device::cpu), ConfigError);
  make_group(Collectives::nccl, *ranks[0], "alone", {0}, 1s);
  CHECK(noted == "");
  make_group(Collectives::nccl, *ranks[0], "pair", {0, 1}, 1s);
  CHECK(noted == "pair");
  make_nccl_group = nullptr;
}
