// Why a job ends: the first reason that an actor found, which all ranks then give alike. It lies in the job's
// store before that actor's connections close, so that who sees no more than those close can ask for it. What
// ends a rollout is no such reason: the job goes on without it. Nobody waits for long: the store may be
// stopped, or gone with rank 0, which is the reason then.
#pragma once

#include <chrono>
#include <exception>
#include <string>

#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/placement/cluster.hpp"

namespace dvla {

/// The job has ended for a reason that all ranks give alike. The text names the rank.
class JobEnded : public PeerError {
 public:
  using PeerError::PeerError;
};

namespace detail {

inline std::string cause_is_read(int rank) { return "run/read/" + std::to_string(rank); }

/// The first reason, of which `own` may be the consequence; `own` where it is the first, or where there is
/// none and none comes within `patience`. `says`: an actor's, which is to call this before it closes anything.
inline std::string cause_of(Cluster& cluster, const std::string& own, bool says,
                            std::chrono::milliseconds patience = std::chrono::milliseconds(250)) try {
  const std::string key = "run/why";
  constexpr std::chrono::seconds most{1};
  const auto over = [until = deadline_after(patience)] { return std::chrono::steady_clock::now() >= until; };
  const std::string first = says ? cluster.put_once(key, own, most)
                                 : wait_for_text(cluster, key, deadline_after(most), "", over).value_or(own);
  if (says || first != own) cluster.put_once(cause_is_read(cluster.rank()), "read", most);
  return first;
} catch (const std::exception& lost_store) {
  return std::string(lost_store.what()) + " (" + own + ")";
}

/// The job's store may go with rank 0, which waits a moment until the others have read.
inline void wait_for_readers(Cluster& cluster) noexcept try {
  const auto until = deadline_after(std::chrono::seconds(1));
  for (int rank = 1; rank < cluster.world(); ++rank)
    wait_for_text(cluster, cause_is_read(rank), until, "", [] { return false; });
} catch (...) {
}

}  // namespace detail

}  // namespace dvla
