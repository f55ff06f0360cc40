// A job's checkpoint is whole or is none: what one actor cannot write, no actor has saved, all know it, and
// training goes on.
#include <doctest/doctest.h>

#include <atomic>

#include "dvla/pipeline/checkpoint.hpp"
#include "test/io/full_disk.hpp"
#include "test/io/temporary_folder.hpp"
#include "toy_job.hpp"

namespace {
using namespace dvla_test;
using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>,
                         dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>,
                         dvla::Placement<dvla::Hybrid>, dvla::Schedule<dvla::Swimlane<1>>>;
}  // namespace

TEST_CASE("A part that cannot be written, or the file that counts on the parts, is told to every actor") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path(), 100);
  std::atomic<int> left{1};
  const FullDisk disk([&](const std::string& path) {
    if (!contains(path, folder.path().string())) return false;
    const bool last = std::filesystem::exists(folder / "step-3.actor-0-of-2.safetensors") &&
                      std::filesystem::exists(folder / "step-3.actor-1-of-2.safetensors") &&
                      !std::filesystem::exists(folder / "step-4.actor-0-of-2.safetensors");
    return left.fetch_sub(1) > 0 || last;  // a part of step 1; the leader's file of step 3
  });
  auto config = small_config<P>(3);
  config.placement.actors = 2;
  std::atomic<int> failed[3]{}, told_of_another{0};
  const auto errors = run_ranks(2, [&](int, dvla::Cluster& cluster) {
    dvla::Run<P> run(config, cluster);
    const auto report = run.train({}, [&](std::int64_t batch) {
      try {
        dvla::save_checkpoint(run, checkpoints);
      } catch (const dvla::NotSaved& why) {
        ++failed[batch];
        told_of_another += contains(why.what(), "another actor could not write");
      }
    });
    CHECK(report.batches == 3);
  });
  for (const std::string& error : errors) CHECK_MESSAGE(error.empty(), error);
  CHECK(failed[0] == 2);
  CHECK(failed[1] == 0);
  CHECK(failed[2] == 2);
  CHECK(told_of_another == 2);  // once each
  CHECK(checkpoints.steps() == std::vector<std::int64_t>{2});
  CHECK(checkpoints.latest().checkpoint->step == 2);
}
