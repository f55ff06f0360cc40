// What the four lanes call: the user's or the framework's stages, as one object. No base class, no
// registration. Design: "The four lanes". A schedule's runner owns the threads, the stages own the work.
#pragma once

#include <concepts>
#include <cstdint>

#include "dvla/handoff/token.hpp"

namespace dvla {

/// The lanes, in the order in which a batch passes them. `every`: one thread that plays all
/// four (Synchronous).
enum class lane_kind : std::uint8_t { sampling, training, distribution, reception, observer, every };

/// Each member is called from its own lane's thread, one batch after the other, in batch order:
///   sample(token)      fills trajectory buffer token.buffer for batch token.batch. token.version comes in as the
///                      version that is installed when the rollout starts; lower it if older weights were used.
///   train(token)       consumes the buffer and makes version token.batch + 1, which is token.version from then on.
///   distribute(token)  packs the weights of token.version and publishes them.
///   receive(token)     installs them for the sampler. When it returns, the buffer may be filled anew.
/// Of a token sample and arrive change the version, nothing else is changed. What they throw stops all lanes (see LaneError).
/// Optional:
///   observe(const Token&)       called for each finished batch, in order, off the lanes' critical path. The
///                               batch's trajectory buffer may be in use again by then: keep what it needs
///                               elsewhere.
///   cancel() noexcept           called when a lane failed, from that lane: end every wait inside the stages.
///   bool arrive(Token&)         called in the training lane before train(): waits for what other processes send
///                               of this batch, and lowers token.version to the oldest weights in it; false: no
///                               more batches will come. Needed where share is `actor`.
///   await(Token&)               called in the reception lane before receive(): waits for weights that other
///                               processes make.
///   enter(lane_kind) noexcept   called in each lane's thread before its first batch, and wherever a thread goes
///                               over to another lane's work.
///   sample(token, boundaries)   see BoundaryStages.
template <class Stages>
concept LaneStages = requires(Stages& stages, Token& token) {
  { stages.sample(token) } -> std::same_as<void>;
  { stages.train(token) } -> std::same_as<void>;
  { stages.distribute(token) } -> std::same_as<void>;
  { stages.receive(token) } -> std::same_as<void>;
};

/// Stages that want to see finished batches.
template <class Stages>
concept ObservingStages = requires(Stages& stages, const Token& token) {
  stages.observe(token);
};

/// Stages whose batches come from other processes too.
template <class Stages>
concept ArrivingStages = requires(Stages& stages, Token& token) {
  { stages.arrive(token) } -> std::same_as<bool>;
};

/// Stages whose weights come from other processes too.
template <class Stages>
concept AwaitingStages = requires(Stages& stages, Token& token) {
  stages.await(token);
};

/// What sample(token, boundaries) tells to nobody; others have the same members.
struct no_boundaries {
  /// Ahead of the batch's chunk boundary number `boundary`, counted from 0: other stages may be called inside
  /// the call, in this thread, so that newer weights are installed when it returns.
  void before(std::int64_t boundary) { (void)boundary; }
  /// After it: which weights decide until the next one; `checksum()` gives that of the weights. May be called
  /// in another thread than sample().
  template <class Checksum>
  void decides(std::int64_t boundary, std::int64_t version, const Checksum& checksum) {
    (void)boundary, (void)version, (void)checksum;
  }
};

/// Stages whose rollouts can be written down and repeated: `sample(token, boundaries)` does what
/// sample(token) does, with any type of boundaries, and tells of each chunk boundary, where newer weights may
/// take over.
template <class Stages>
concept BoundaryStages = requires(Stages& stages, Token& token, no_boundaries& boundaries) {
  { stages.sample(token, boundaries) } -> std::same_as<void>;
};

namespace detail {
template <class Stages>
void enter_lane(Stages& stages, lane_kind kind) noexcept {
  if constexpr (requires { stages.enter(kind); })
    static_assert(noexcept(stages.enter(kind)), "stages: declare enter(lane_kind) noexcept");
  if constexpr (requires { stages.enter(kind); }) stages.enter(kind);
}
}  // namespace detail

}  // namespace dvla
