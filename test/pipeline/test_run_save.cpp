// A job's checkpoint is whole or is none: what one actor cannot write, no actor has saved, all know it, and
// training goes on. When an error ends it, the actors that are left save what is whole, each for itself.
#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <map>

#include "dvla/pipeline/checkpoint.hpp"
#include "test/io/full_disk.hpp"
#include "test/io/temporary_folder.hpp"
#include "toy_job.hpp"

namespace {
using namespace dvla_test;
using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>,
                         dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>,
                         dvla::Placement<dvla::Hybrid>, dvla::Schedule<dvla::Swimlane<1>>>;

/// Throws in the model of the rank `of` when it is called forwards for the `at`-th time in training.
struct Fault {
  std::atomic<int> of{-1}, calls{0};
  int at = 0;
} fault;
thread_local int this_rank = -1;
struct FaultyModel : dvla::testing::LinearModel {
  static constexpr std::string_view name = "FaultyModel";
  using LinearModel::LinearModel;
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    if (rank_ == fault.of && ++fault.calls == fault.at) throw dvla::Error("the model fails");
    LinearModel::forward(observation, decision, rows, log_prob, entropy);
  }

 private:
  const int rank_ = this_rank;
};
template <class Sharding, class Schedule>
using Ending = dvla::Pipeline<dvla::Sampler<dvla::Toy, FaultyModel>,
                              dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, Sharding>,
                              dvla::Placement<dvla::Hybrid>, dvla::Schedule<Schedule>>;
template <class P>
dvla::Config<P> ending_config(int iterations) {
  auto config = small_config<P>(iterations);
  config.placement.actors = 2;
  config.run.heartbeat_s = 0.3;
  config.algorithm.epochs = 1;
  config.algorithm.global_batch = 32;  // two optimiser steps a batch
  config.algorithm.micro_batch = 16;
  config.algorithm.filter_lower = config.algorithm.filter_upper = 0;
  return config;
}

/// What each of two actors, which roll out too, is told that saves when its training has failed; empty: it has.
template <class P>
std::vector<std::string> save_at_the_end(const dvla::Config<P>& config, const std::filesystem::path& folder,
                                         std::function<void(int, const dvla::Iteration&)> observe) {
  std::vector<std::string> told(2, "training has not failed");
  const auto errors = run_ranks(2, [&](int rank, dvla::Cluster& cluster) {
    this_rank = rank;
    dvla::Run<P> run(config, cluster);
    const dvla::io::CheckpointFolder checkpoints(folder, 100);
    std::string& here = told[static_cast<std::size_t>(rank)];
    try {
      run.train([&](const dvla::Iteration& iteration) { observe(rank, iteration); }, {}, nullptr,
                [&](std::int64_t) { dvla::save_checkpoint(run, checkpoints); });
    } catch (const std::exception&) {
      here.clear();
      try {
        const bool rests = run.while_still(
            [&](const dvla::StillWeights& still) { dvla::save_checkpoint(run, checkpoints, still); });
        CHECK(rests);
      } catch (const dvla::Error& why) {
        here = why.what();
      }
    }
  });
  for (const std::string& error : errors) CHECK_MESSAGE(error.empty(), error);
  return told;
}
std::map<std::string, std::vector<std::byte>> tensors_of(const std::filesystem::path& path) {
  std::map<std::string, std::vector<std::byte>> all;
  const auto add = [&](const dvla::io::SafetensorsFile& file) {
    for (const std::string& name : file.names()) {
      const auto bytes = file.tensor(name).bytes;
      all[file.path().filename().string() + " " + name].assign(bytes.begin(), bytes.end());
    }
  };
  const auto file = dvla::io::CheckpointFolder::open(path);
  add(file);
  for (const auto& part : dvla::io::CheckpointFolder::open_parts(file)) add(part);
  return all;
}
}  // namespace

TEST_CASE_TEMPLATE(
    "An error outside of an update ends a job of several actors: what they have trained is saved", Sharding,
    dvla::FSDP, dvla::Unsharded) {
  CAPTURE(Sharding::name);
  using InTurn = Ending<Sharding, dvla::Synchronous>;
  for (const int culprit : {0, 1}) {
    CAPTURE(culprit);
    const TemporaryFolder folder, whole;
    const auto fail = [&](int rank, const dvla::Iteration& iteration) {
      if (rank == culprit && iteration.batch == 3) throw dvla::Error("the observer fails");
    };
    for (const std::string& each : save_at_the_end(ending_config<InTurn>(100), folder.path(), fail))
      CHECK(each == "");
    const auto steps = dvla::io::CheckpointFolder(folder.path()).steps();
    REQUIRE(steps.size() == 1);
    CHECK(steps[0] >= 4);
    // Bit for bit what a job saves that ends there in peace, but for the weights in its parts.
    save_at_the_end(ending_config<InTurn>(static_cast<int>(steps[0])), whole.path(),
                    [](int, const dvla::Iteration&) {});
    auto saved = tensors_of(dvla::io::CheckpointFolder(folder.path()).path_of(steps[0]));
    const auto packed = std::erase_if(saved, [](const auto& each) { return contains(each.first, "packed"); });
    CHECK(packed == (std::string(Sharding::name) == "FSDP" ? 2 : 0));
    const auto expected = tensors_of(dvla::io::CheckpointFolder(whole.path()).path_of(steps[0]));
    CHECK(saved.size() == expected.size());
    for (const auto& [name, bytes] : expected) CHECK_MESSAGE(saved[name] == bytes, name);

    using Late = Ending<Sharding, dvla::Swimlane<1>>;  // whose updates go on while the observer fails
    const TemporaryFolder late;
    for (const std::string& each : save_at_the_end(ending_config<Late>(100), late.path(), fail))
      CHECK(each == "");
    const auto newest = dvla::io::CheckpointFolder(late.path()).latest();
    REQUIRE(newest.checkpoint);
    const auto errors = run_ranks(2, [&](int, dvla::Cluster& cluster) {
      const int more = static_cast<int>(newest.checkpoint->step) + 2;
      dvla::Run<Late> again(ending_config<Late>(more), cluster);
      dvla::load_checkpoint(again, dvla::io::open_checkpoint(late.path()));
      CHECK(again.train().batches == 2);
    });
    for (const std::string& error : errors) CHECK_MESSAGE(error.empty(), error);
  }
}

TEST_CASE(
    "Actors that are in the midst of an update, gone or at another batch save no checkpoint, and say who") {
  using InTurn = Ending<dvla::FSDP, dvla::Synchronous>;
  const auto in_peace = [](int, const dvla::Iteration&) {};
  for (const int step : {0, 1}) {  // of batch 2; each is 2 passes here
    const TemporaryFolder folder;
    fault.calls = 0;
    fault.at = 2 * 2 * 1 + 2 * step + 1;
    fault.of = 1;
    const auto told = save_at_the_end(ending_config<InTurn>(100), folder.path(), in_peace);
    fault.of = -1;
    const auto steps = dvla::io::CheckpointFolder(folder.path()).steps();
    CAPTURE(told[0]);
    if (step == 0) {
      CHECK(told == std::vector<std::string>{"", ""});
      CHECK(steps.size() == 1);
    } else {
      CHECK(contains(told[0], "(actor "));
      CHECK(contains(told[0], "it is in the midst of an update"));
      CHECK(steps.empty());
    }
  }
  // One that is killed, and one that has saved this batch in an earlier run.
  const TemporaryFolder folder;
  const auto clusters = dvla::testing::ThreadCluster::make(2);
  std::vector<std::thread> ranks;
  std::string told;
  for (int rank = 0; rank < 2; ++rank)
    ranks.emplace_back([&, rank] {
      dvla::Run<InTurn> run(ending_config<InTurn>(100), *clusters[static_cast<std::size_t>(rank)]);
      try {
        run.train([&](const dvla::Iteration& iteration) {
          if (rank == 1 && iteration.batch == 3) clusters[0]->kill(1);
        });
      } catch (const std::exception&) {
        if (rank == 1) return;
        try {
          run.while_still([&](const dvla::StillWeights& still) {
            dvla::save_checkpoint(run, dvla::io::CheckpointFolder(folder.path()), still);
          });
        } catch (const dvla::Error& why) {
          told = why.what();
        }
      }
    });
  for (std::thread& rank : ranks) rank.join();
  CHECK_MESSAGE((contains(told, "rank 1 (actor 1 and rollout 1): it is gone") ||
                 contains(told, "it is in the midst of an update")),
                told);
  CHECK(dvla::io::CheckpointFolder(folder.path()).steps().empty());
}

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
