// The swimlane schedule: four lanes at work on up to K + 1 batches at once (paper: "Swimlane", four threads).
//
//   sampling --> training --> distribution --> reception --> observer (if the stages observe)
//      ^---------------- one permit back ----------|
//
// A process that only rolls out runs the sampling and the reception lane of this ring, one that only trains
// the other two (run_options::share); where an edge crosses processes, a plane stands in it.
// A rollout takes a permit when it starts; the permit returns when reception has installed the weights made
// from it. So at most K + 1 batches are live (one trajectory buffer each: buffer = batch % (K + 1)), and no
// batch is trained more than K versions after the weights it was sampled with. K = 0 is synchronous, in the
// same code.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/handoff/credit.hpp"
#include "dvla/handoff/wiring.hpp"
#include "dvla/schedule/descriptors.hpp"
#include "dvla/schedule/runner.hpp"

namespace dvla {

/// Runs stages as a swimlane, for a run-time staleness K of 0 to `Max`. No state of its own: run() may be
/// called again (pass first_batch on), and from several threads for different stages.
template <int Max>
class SwimlaneRunner {
 public:
  /// Finished batches that may wait for a slow observe(); then reception waits for it.
  static constexpr int observer_backlog = 64;

  /// Blocks until all batches are through, or, after a stop request, all that have started. Starts a
  /// thread for each lane of its share (four, or two; one more if the stages observe what is trained) and
  /// joins them. Throws ConfigError (options), DeadlineError (one lane waited too long for another: says
  /// which, and who is still at work), LaneError with the original nested (a stage threw). By then all lanes
  /// are joined.
  template <LaneStages Stages, class Recorder = trace::Off>
  static run_result run(Stages& stages, const run_options& options, Recorder& recorder = trace::off) {
    detail::check_options(options, Max);
    return swim<Stages, Recorder>(stages, options, recorder).run();
  }

 private:
  template <class Stages, class Recorder>
  struct swim {
    swim(Stages& with, const run_options& how, Recorder& into)
        : stages(with), options(how), recorder(into), work(with, into, how), admission(how.staleness) {}

    /// One lane of this process: its stage, and what it waits for in its mailbox.
    struct place {
      lane_kind kind;
      const char* name;
      const char* waits_for;
      bool (detail::checked_stages<Stages, Recorder>::*stage)(Token&);
    };

    run_result run() {
      const auto live = static_cast<std::size_t>(options.staleness) + 1;
      const bool rolls_out = options.share != lane_share::actor,
                 trains = options.share != lane_share::rollout;
      using stage = detail::checked_stages<Stages, Recorder>;
      // In the order in which a batch passes them: the first takes a permit, the last of the ring gives it back.
      std::vector<place> places;
      if (rolls_out) places.push_back({lane_kind::sampling, "sampling", "", &stage::sample});
      if (trains) {
        places.push_back({lane_kind::training, "training", "a batch", &stage::train});
        places.push_back({lane_kind::distribution, "distribution", "trained weights", &stage::distribute});
      }
      if (rolls_out)
        places.push_back({lane_kind::reception, "reception", trains ? "published weights" : "a sampled batch",
                          &stage::receive});
      const std::size_t ring = places.size();
      if (ObservingStages<Stages> && trains)
        places.push_back({lane_kind::observer, "observer", "a finished batch", &stage::observe});

      std::vector<lane*> row;
      std::vector<wiring::node*> nodes;  // what enters a lane leaves the node of the lane before it
      for (std::size_t i = 0; i < places.size(); ++i) {
        const bool observes = i == ring;
        lane* const to =
            row.emplace_back(&lanes.add(places[i].name,
                                        i == 0     ? 0
                                        : observes ? observer_backlog
                                                   : live,
                                        observes ? lane::on_failure::finish : lane::on_failure::drop));
        if (i == 0)
          nodes.push_back(&wires.add([this](const Token&) { return admission.try_release(); }));
        else
          nodes.push_back(&wires.add([to](const Token& token) { return to->inbox().try_push(token); }));
        if (i > 0) wires.connect(*nodes[i - 1], *nodes[i]);
      }
      wires.connect(*nodes[ring - 1], *nodes[0]);
      lanes.on_failure([this] {
        admission.cancel(), room.cancel();
        if constexpr (requires { stages.cancel(); }) stages.cancel();
      });
      // Started in the order of the ring: lanes that share a core then take turns in the order of the tokens,
      // which costs a third of the context switches of the reverse order (measured with empty stages).
      for (std::size_t i = 0; i < places.size(); ++i) {
        lane* const next = i + 1 < row.size() ? row[i + 1] : nullptr;
        lanes.start(*row[i], [this, here = places[i], before = i == 0 ? nullptr : row[i - 1], next,
                              node = nodes[i], last = i + 1 == ring, observes = i == ring](lane& self) {
          serve(self, before, here, [&](Token& token) {
            if (!(work.*here.stage)(token)) {
              admission.cancel();  // no batch after this one: nobody will give permits back
              return false;
            }
            if (last) {
              if (next) make_room(self, *next, token.batch);
              installed.store(token.batch + 1, std::memory_order_release);
              ++finished;
            }
            observes ? room.release() : wires.send(*node, token);
            return true;
          });
          if (next) next->inbox().close();
        });
      }
      lanes.wait(options.grace, options.on_give_up);
      return work.result(finished, options);
    }

    bool stop_requested() const { return options.stop && options.stop->stop_requested(); }

    /// A batch's token, once it may start. None: no further batch starts.
    std::optional<Token> admit(lane& self, std::int64_t batch) {
      if (batch == options.first_batch + options.batches || stop_requested()) return {};
      if (!admission.try_acquire()) {
        auto span = recorder.span("wait for weights", batch, "wait");
        if (!lanes.naming_the_busy([&] {
              return admission.acquire(options.deadline,
                                       {self.name(), "installed weights", "reception", batch});
            }))
          return {};
      }
      if (stop_requested()) return {};
      return Token{batch, installed.load(std::memory_order_acquire),
                   static_cast<std::int32_t>(batch % admission.permits())};
    }
    /// The same from the lane before this one.
    std::optional<Token> await(lane& self, lane& from, const char* what, std::int64_t batch) {
      if (auto token = self.inbox().try_pop()) return token;
      auto span = recorder.span("wait", batch, "wait");
      return lanes.naming_the_busy([&] {
        return self.inbox().pop(options.deadline, {self.name(), what, from.name(), batch});
      });
    }

    void make_room(lane& self, lane& observer, std::int64_t batch) {
      if (room.try_acquire()) return;
      auto span = recorder.span("wait for observer", batch, "wait");
      lanes.naming_the_busy([&] {
        return room.acquire(options.deadline, {self.name(), "room", observer.name(), batch});
      });
    }

    template <class Each>
    void serve(lane& self, lane* before, const place& here, Each each) {
      auto row = recorder.enter(self.name().c_str());
      detail::enter_lane(stages, here.kind);
      bool goes_on = true;
      for (std::int64_t batch = options.first_batch; goes_on; ++batch) {
        std::optional<Token> token =
            before ? await(self, *before, here.waits_for, batch) : admit(self, batch);
        if (!token) return;
        self.busy_with(batch);
        goes_on = each(*token);
        self.idle();
      }
    }

    Stages& stages;
    const run_options& options;
    Recorder& recorder;
    detail::checked_stages<Stages, Recorder> work;
    credit<Max> admission;
    credit<observer_backlog - 1> room{observer_backlog - 1};
    std::atomic<std::int64_t> installed{options.first_batch};
    std::int64_t finished = 0;  // reception's
    wiring wires;
    lane_group lanes;  // last: its threads use all of the above
  };
};

template <int Max, class Pipeline>
struct machinery<Swimlane<Max>, Pipeline> {
  using type = SwimlaneRunner<Max>;
};

}  // namespace dvla
