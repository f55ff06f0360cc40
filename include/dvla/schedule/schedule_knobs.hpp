// What a user tunes in the schedules.
#pragma once

#include <string>

#include "dvla/core/knobs.hpp"

namespace dvla {

/// Of every schedule but Replay.
struct SynchronousKnobs {
  double deadline_s = 120;  ///< of every wait between lanes
  int sampling_threads =
      0;  ///< cores of the sampling lane; 0 = what this process may use, or half where lanes
          ///< run at once
  int training_threads = 0;
  int sampling_stages = 1;  ///< parts of the environments: one part steps while another infers
};

struct SwimlaneKnobs : SynchronousKnobs {
  int staleness = 1;  ///< K: weights may be this many versions old, at most the schedule's Max
};

struct ReplayKnobs {
  std::string recording;     ///< of the run to repeat
  double deadline_s = 120;   ///< of waits inside stages
  int sampling_threads = 1;  ///< as in the recorded run: a model may compute other bits with other threads
  int training_threads = 1;
  int sampling_stages = 1;  ///< as in the recorded run
};

template <>
inline constexpr auto knob_docs<SynchronousKnobs> = std::to_array<KnobDoc>({
    {"deadline_s", "longest wait of one lane for another", 0.001, 1e6, "seconds"},
    {"sampling_threads",
     "cores of the sampling lane; 0 = what the process may use, or half of it where lanes run at once", 0,
     1024},
    {"training_threads",
     "cores of the training lane; 0 = what the process may use, or half of it where lanes run at once", 0,
     1024},
    {"sampling_stages",
     "parts of the environments: one part steps while another infers; wants 2 sampling threads", 1, 16},
});

template <>
inline constexpr auto knob_docs<SwimlaneKnobs> = joined_docs(
    knob_docs<SynchronousKnobs>,
    std::to_array<KnobDoc>({
        {"staleness", "K: a rollout's weights are at most this many versions old; at most the schedule's Max",
         0, 1024},  // less where schedule or algorithm allow less: see list_knobs
    }));

template <>
inline constexpr auto knob_docs<ReplayKnobs> = std::to_array<KnobDoc>({
    {"recording", "hand_overs.json of the run to repeat (run.record)"},
    {"deadline_s", "longest wait of one lane for another", 0.001, 1e6, "seconds"},
    {"sampling_threads", "cores of a rollout, as many as in the recorded run", 1, 1024},
    {"training_threads", "cores of an update, as many as in the recorded run", 1, 1024},
    {"sampling_stages", "parts of the environments, as many as in the recorded run", 1, 16},
});

}  // namespace dvla

template <std::same_as<dvla::SynchronousKnobs> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::deadline_s, &K::sampling_threads, &K::training_threads, &K::sampling_stages> {};
template <std::same_as<dvla::SwimlaneKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::more_members<dvla::SynchronousKnobs, &K::staleness> {};
template <std::same_as<dvla::ReplayKnobs> K>
struct boost::hana::accessors_impl<K> : dvla::members<&K::recording, &K::deadline_s, &K::sampling_threads,
                                                      &K::training_threads, &K::sampling_stages> {};
