// Jobs of several ranks for the tests of this folder: threads as ranks, each with a Run of its own.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dvla/control_plane/broadcast.hpp"
#include "dvla/data_plane/routed.hpp"
#include "dvla/placement/descriptors.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/testing/thread_cluster.hpp"
#include "toy_pipeline.hpp"

namespace dvla_test {

/// Runs `body(rank, cluster)` in a thread for each rank. `node`: each rank's machine; empty: all on one. What
/// each threw, as text; empty: nothing.
template <class Body>
std::vector<std::string> run_ranks(int world, Body body, std::vector<int> node = {}) {
  const auto clusters = dvla::testing::ThreadCluster::make(world, std::move(node));
  std::vector<std::string> errors(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        body(rank, *clusters[static_cast<std::size_t>(rank)]);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(rank)] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

/// What is left of a job that has trained.
struct JobResult {
  std::vector<std::string> errors;          ///< by rank
  std::vector<dvla::RunReport> reports;     ///< by rank
  std::vector<std::vector<float>> weights;  ///< of the trainers, by rank; empty elsewhere
  std::vector<dvla::Iteration> history;     ///< the leader's
  int leader = 0;
  dvla::RunReport& report() { return reports[static_cast<std::size_t>(leader)]; }
};

/// What stands between a rank's run and its cluster, such as one that counts.
using WrapCluster = std::function<std::unique_ptr<dvla::Cluster>(dvla::Cluster&)>;

template <class P>
JobResult train_job(int world, const dvla::Config<P>& config,
                    std::function<const dvla::stop_flag*(int)> stop_of = {},
                    std::function<void(int, std::int64_t)> after_update = {}, std::vector<int> node = {},
                    const WrapCluster& wrap = {}) {
  JobResult result;
  result.reports.resize(static_cast<std::size_t>(world));
  result.weights.resize(static_cast<std::size_t>(world));
  const auto body = [&](int rank, dvla::Cluster& cluster) {
    const auto place = static_cast<std::size_t>(rank);
    const std::unique_ptr<dvla::Cluster> wrapped = wrap ? wrap(cluster) : nullptr;
    dvla::Run<P> run(config, wrapped ? *wrapped : cluster);
    result.reports[place] = run.train(
        {},
        [&](std::int64_t batch) {
          if (after_update) after_update(rank, batch);
        },
        stop_of ? stop_of(rank) : nullptr);
    if (run.job().trains()) {
      if constexpr (requires { run.weights().gather_all(); }) run.weights().gather_all();
      result.weights[place] = values(run.model());
    }
    if (run.job().leads()) {
      result.leader = rank;
      result.history = run.history();
    }
  };
  result.errors = run_ranks(world, body, std::move(node));
  return result;
}

}  // namespace dvla_test
