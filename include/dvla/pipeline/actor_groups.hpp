// The groups of a job's actors, which the loss of one of them ends. A group is owned by whoever asked for it
// (the weights, for gradients; the start of training); a collective in which an actor waits for one that is
// gone must end nevertheless, from the thread that has noticed the loss. Torch-free.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dvla/pipeline/job.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/placement/make_group.hpp"

namespace dvla {

/// An actor's. make() in one thread, before any other can call close().
class ActorGroups {
 public:
  /// One group of all actors of `job`, which each of them asks for with the same `purpose`. This keeps it
  /// too.
  std::shared_ptr<Group> make(const Job& job, Collectives collectives, const std::string& purpose,
                              std::chrono::nanoseconds limit) {
    std::shared_ptr<Group> group =
        make_group(collectives, job.cluster(), "actors/" + purpose, job.roles().actors, limit);
    groups_.push_back(group);
    return group;
  }
  /// All collectives that go on, and later ones, fail.
  void close() noexcept {
    for (const auto& group : groups_) group->close();
  }

 private:
  std::vector<std::shared_ptr<Group>> groups_;
};

}  // namespace dvla
