// What weights that several actors share tell an algorithm beside ShardingMachinery (sharding/concept.hpp):
// how many actors there are, figures over all of them, and which micro-batch is an optimiser step's last.
// Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "dvla/placement/group.hpp"

namespace dvla {

/// Makes one group of all actors, in the order of actors. Weights ask for one per purpose ("gradients", ...),
/// on each actor the same ones in the same order.
using GroupSource = std::function<std::shared_ptr<Group>(const std::string& purpose)>;

/// The source of a job with one actor.
inline std::unique_ptr<Group> lone_group(const std::string&) { return std::make_unique<LoneGroup>(); }

/// Bytes that this actor has sent to the others; it received as many.
struct ShardTraffic {
  std::int64_t gathered = 0, reduced = 0;
  std::int64_t total() const { return gathered + reduced; }
};

/// The answers of weights that know no other actor; derive from it. Weights of several actors have the same
/// members:
/// - `actor()` in [0, actors()); the trainer checks `actors()` against its batch sizes.
/// - `sum(values)`, `max(values)` over the actors: collectives, called on each with the same sizes.
/// - `begin_micro_batch(last)` before each micro-batch of an optimiser step, also before one that is empty
///   here: gradients may travel from the last one on, and in no other. It is a hint; step() sends what was
///   not sent.
struct LoneActor {
  static constexpr int actor() { return 0; }
  static constexpr int actors() { return 1; }
  static void sum(std::span<double>) {}
  static void max(std::span<std::int64_t>) {}
  static void begin_micro_batch(bool) {}
};

}  // namespace dvla
