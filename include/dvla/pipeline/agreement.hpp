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

/// All actors call it, batch after batch: the word that holds for all. Where it neither ends nor anything is here,
/// they wait until a rollout comes again, rather than train on nothing, batch after batch: `asked()` says whether
/// this actor is asked to stop meanwhile, `anybody()` whether it knows of a rollout. Throws DeadlineError when
/// none has come within `limit`. `largest`, called with a std::span<std::int64_t> on each actor, makes each number
/// the largest one's.
template <class Largest, class Asked, class Anybody>
BatchWord agree_on_batch(const Job& job, std::int64_t batch, const BatchWord& own,
                         std::chrono::nanoseconds limit, Largest largest, Asked asked, Anybody anybody) {
  const auto largest_of = [&](std::array<std::int64_t, 3> word) {
    largest(std::span<std::int64_t>(word));
    return word;
  };
  const auto [ends, age, here] = largest_of({own.ends, own.age, own.here});
  BatchWord all{ends != 0, age, here != 0};
  for (const auto until = detail::deadline_after(limit); !all.ends && !all.here;) {
    const bool is_late = std::chrono::steady_clock::now() > until;
    const auto [stops, found, late] = largest_of({asked(), anybody(), is_late});
    all.ends = stops != 0;
    if (all.ends || found != 0) break;
    if (late != 0)
      throw DeadlineError(
          job.name(), " waited ", detail::seconds_text(limit),
          " for a rollout to come again: all of them are gone, and nothing is there of batch ", batch);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return all;
}

}  // namespace dvla
