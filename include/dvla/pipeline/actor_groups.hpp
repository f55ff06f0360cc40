// The groups of a job's actors, which the loss of one of them ends. A group is owned by whoever asked for it
// (the weights, for gradients; the start of training); a collective in which an actor waits for one that is
// gone must end nevertheless, from the thread that has noticed the loss. Torch-free.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/pipeline/job.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/placement/nccl_form.hpp"

namespace dvla {

/// An actor's. make() in one thread, before any other can call close().
class ActorGroups {
 public:
  /// One group of all actors of `job`, which each of them asks for with the same `purpose`. It may be used
  /// and destroyed at any time.
  std::unique_ptr<Group> make(const Job& job, Collectives collectives, const std::string& purpose,
                              std::chrono::nanoseconds limit) {
    std::shared_ptr<Group> group =
        make_group(collectives, job.cluster(), "actors/" + purpose, job.roles().actors, limit);
    groups_.push_back(group);
    return std::make_unique<Shared>(std::move(group));
  }
  /// All collectives that go on, and later ones, fail.
  void close() noexcept {
    for (const auto& group : groups_) group->close();
  }

 private:
  class Shared final : public Group {
   public:
    explicit Shared(std::shared_ptr<Group> group) : group_(std::move(group)) {}
    int rank() const override { return group_->rank(); }
    int size() const override { return group_->size(); }
    void broadcast(std::span<std::byte> bytes, int root) override { group_->broadcast(bytes, root); }
    void sum(std::span<float> values) override { group_->sum(values); }
    void sum(std::span<double> values) override { group_->sum(values); }
    void max(std::span<std::int64_t> values) override { group_->max(values); }
    void all_gather(std::span<const std::byte> part, std::span<std::byte> all) override {
      group_->all_gather(part, all);
    }
    void reduce_scatter(std::span<const float> all, std::span<float> part) override {
      group_->reduce_scatter(all, part);
    }
    void barrier() override { group_->barrier(); }
    void close() noexcept override { group_->close(); }

   private:
    std::shared_ptr<Group> group_;
  };

  std::vector<std::shared_ptr<Group>> groups_;
};

}  // namespace dvla
