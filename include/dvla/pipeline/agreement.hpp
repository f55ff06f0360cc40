// What the actors of a job agree on before they train on a batch: whether they go on, how old it is, and what
// they do when nothing of it is there because all rollouts are gone. Each knows only its own part of the
// batch, and all must do the same; so they take the largest of a few numbers, in one collective. Torch-free;
// moves no trajectories.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/handoff/waiting.hpp"
#include "dvla/pipeline/job.hpp"

namespace dvla {

/// Of one batch: one actor's word, or that of all.
struct BatchWord {
  bool ends = false;     ///< no more batches come, or somebody asks to stop
  std::int64_t age = 0;  ///< versions between the weights that train on it and the oldest that sampled
  bool here = false;     ///< something of it has come
};

/// `Largest`: called with a std::span<std::int64_t> on each actor, makes each number the largest one's.
template <class Largest>
class Agreement {
 public:
  /// `limit`: of the wait for a rollout to come again.
  Agreement(const Job& job, std::chrono::nanoseconds limit, Largest largest)
      : job_(job), limit_(limit), largest_(std::move(largest)) {}

  /// All actors call it, batch after batch: the word that holds for all. Where it neither ends nor anything
  /// is here, they wait until a rollout comes again, rather than train on nothing, batch after batch:
  /// `asked()` says whether this actor is asked to stop meanwhile, `anybody()` whether it knows of a rollout.
  /// Throws DeadlineError when none has come.
  template <class Asked, class Anybody>
  BatchWord on(std::int64_t batch, const BatchWord& own, Asked asked, Anybody anybody) {
    std::array<std::int64_t, 3> word{own.ends, own.age, own.here};
    largest_(std::span<std::int64_t>(word));
    BatchWord all{word[0] != 0, word[1], word[2] != 0};
    if (!all.ends && !all.here) all.ends = await_rollouts(batch, asked, anybody);
    return all;
  }

 private:
  /// Whether one of the actors is asked to stop.
  template <class Asked, class Anybody>
  bool await_rollouts(std::int64_t batch, Asked& asked, Anybody& anybody) {
    const auto until = detail::deadline_after(limit_);
    for (;;) {
      const bool late = std::chrono::steady_clock::now() > until;
      std::array<std::int64_t, 3> word{asked(), anybody(), late};
      largest_(std::span<std::int64_t>(word));
      if (word[0] != 0 || word[1] != 0) return word[0] != 0;
      if (word[2] != 0)
        throw DeadlineError(
            job_.name() + " waited " + detail::seconds_text(limit_) +
            " for a rollout to come again: all of them are gone, and nothing is there of batch " +
            std::to_string(batch));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  const Job& job_;
  const std::chrono::nanoseconds limit_;
  Largest largest_;
};

}  // namespace dvla
