// dvla-test: gpu serial
// NcclGroup with one member on one GPU against the conformance suite; where there is none, that it is refused
// in one sentence. Several members need several GPUs: not in this test.
#if __has_include(<nccl.h>)

#define DOCTEST_CONFIG_IMPLEMENT
#define DOCTEST_CONFIG_NO_SHORT_MACRO_NAMES
#include <doctest/doctest.h>

#include <cstdio>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "dvla/placement/nccl_group.hpp"
#include "dvla/testing/cluster.hpp"

using namespace dvla;

namespace {

/// One process whose group of one is NCCL's all the same.
class OneGpu final : public Cluster {
 public:
  int rank() const override { return 0; }
  const Topology& topology() const override { return lone_.topology(); }
  std::unique_ptr<Channel> channel(const std::string& name, int peer,
                                   std::chrono::nanoseconds limit) override {
    return lone_.channel(name, peer, limit);
  }
  std::unique_ptr<Group> group(const std::string& name, const std::vector<int>& members,
                               std::chrono::nanoseconds limit) override {
    check_members(name, members);
    return std::make_unique<dvla::detail::NcclGroup>(lone_, c10::make_intrusive<c10d::HashStore>(), name,
                                                     members, limit);
  }
  void put(const std::string& key, const std::string& value) override { lone_.put(key, value); }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    return lone_.get(key, limit);
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds limit) override {
    return lone_.has_within(key, limit);
  }
  std::int64_t count(const std::string& key) override { return lone_.count(key); }

 private:
  LoneCluster lone_;
};

}  // namespace

DOCTEST_TEST_CASE("a group of one on a GPU conforms") {
  OneGpu cluster;
  for (const std::string& fault : dvla::testing::check_cluster(cluster)) DOCTEST_FAIL_CHECK(fault);
}

DOCTEST_TEST_CASE("what is longer than a stage goes in pieces; a closed group is finished") {
  OneGpu cluster;
  const auto group = cluster.group("long", {0}, std::chrono::seconds(20));
  std::vector<double> values(dvla::detail::NcclGroup::stage_bytes / 8 * 2 + 5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  const std::vector<double> before = values;
  group->sum(std::span(values));
  DOCTEST_CHECK(values == before);
  group->close();
  DOCTEST_CHECK_THROWS_AS(group->barrier(), PeerError);
}

int main(int argc, char** argv) {
  const std::string why = cuda_form.load()->missing();
  if (why.empty()) return doctest::Context(argc, argv).run();
  const std::string how =
      dvla::testing::detail::outcome([] { OneGpu().group("none", {0}, std::chrono::seconds(1)); });
  if (how != "Error: memory.device is cuda, but no GPU can be used here: " + why + "; choose cpu") {
    std::printf("a group without a GPU must be refused, not: %s\n", how.c_str());
    return 1;
  }
  std::printf("SKIPPED: %s\n", why.c_str());
  return 77;
}

#else
#include <cstdio>

int main() {
  std::printf("SKIPPED: this program was compiled without nccl.h\n");
  return 77;
}
#endif
