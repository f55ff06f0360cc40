// The swimlane schedule: four lanes at work on up to K + 1 batches at once (paper: "Swimlane", four threads).
//
//   sampling --> training --> distribution --> reception --> observer (if the stages observe)
//      ^---------------- one permit back ----------|
//
// A rollout takes a permit when it starts; the permit returns when reception has installed the weights made
// from it. So at most K + 1 batches are live (one trajectory buffer each: buffer = batch % (K + 1)), and no
// batch is trained more than K versions after the weights it was sampled with. K = 0 is synchronous, in the
// same code.
#pragma once

#include <atomic>
#include <string>

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

  template <LaneStages Stages>
  static run_result run(Stages& stages, const run_options& options) {
    trace::Off off;
    return run(stages, options, off);
  }

  /// Blocks until all batches are through, or, after a stop request, all that have started. Starts four
  /// threads (five if the stages observe) and joins them. Throws ConfigError (options), DeadlineError (one
  /// lane waited too long for another: says which, and who is still at work), LaneError with the original
  /// nested (a stage threw). By then all lanes are joined.
  template <LaneStages Stages, class Recorder>
  static run_result run(Stages& stages, const run_options& options, Recorder& recorder) {
    detail::check_options(options, Max);
    return swim<Stages, Recorder>(stages, options, recorder).run();
  }

 private:
  template <class Stages, class Recorder>
  struct swim {
    swim(Stages& with, const run_options& how, Recorder& into)
        : stages(with), options(how), recorder(into), work(with, into, how), admission(how.staleness) {}

    run_result run() {
      const auto live = static_cast<std::size_t>(options.staleness) + 1;
      lane& sampling = lanes.add("sampling", 0);
      lane& training = lanes.add("training", live);
      lane& distribution = lanes.add("distribution", live);
      lane& reception = lanes.add("reception", live);
      lanes.on_failure([this] {
        admission.cancel(), room.cancel();
        if constexpr (requires { stages.cancel(); }) stages.cancel();
      });

      auto& sampled = wires.add([this](const Token&) { return admission.try_release(); });
      auto& trained = wires.add([&](const Token& token) { return training.inbox().try_push(token); });
      auto& distributed = wires.add([&](const Token& token) { return distribution.inbox().try_push(token); });
      auto& received = wires.add([&](const Token& token) { return reception.inbox().try_push(token); });
      wires.connect(sampled, trained);
      wires.connect(trained, distributed);
      wires.connect(distributed, received);
      wires.connect(received, sampled);

      lane* observer = nullptr;
      if constexpr (ObservingStages<Stages>) {
        observer = &lanes.add("observer", observer_backlog, lane::on_failure::finish);
        wires.connect(received,
                      wires.add([observer](const Token& t) { return observer->inbox().try_push(t); }));
      }
      // Started in the order of the ring: lanes that share a core then take turns in the order of the tokens,
      // which costs a third of the context switches of the reverse order (measured with empty stages).
      lanes.start(sampling, [&](lane& self) {
        produce(self, [&](Token& token) { wires.send(sampled, token); });
        training.inbox().close();
      });
      lanes.start(training, [&](lane& self) {
        consume(self, lane_kind::training, sampling, "a batch", [&](Token& token) {
          work.train(token);
          wires.send(trained, token);
        });
        distribution.inbox().close();
      });
      lanes.start(distribution, [&](lane& self) {
        consume(self, lane_kind::distribution, training, "trained weights", [&](Token& token) {
          work.distribute(token);
          wires.send(distributed, token);
        });
        reception.inbox().close();
      });
      lanes.start(reception, [&, observer](lane& self) {
        consume(self, lane_kind::reception, distribution, "published weights", [&](Token& token) {
          work.receive(token);
          if (observer) make_room(self, *observer, token.batch);
          installed.store(token.batch + 1, std::memory_order_release);
          ++finished;
          wires.send(received, token);
        });
        if (observer) observer->inbox().close();
      });
      if (observer)
        lanes.start(*observer, [&](lane& self) {
          consume(self, lane_kind::observer, reception, "a finished batch", [&](Token& token) {
            work.observe(token);
            room.release();
          });
        });
      lanes.wait(options.grace);
      return work.result(finished, options);
    }

    bool stop_requested() const { return options.stop && options.stop->stop_requested(); }

    bool admit(lane& self, std::int64_t batch) {
      if (admission.try_acquire()) return true;
      auto span = recorder.span("wait for weights", batch, "wait");
      return lanes.naming_the_busy([&] {
        return admission.acquire(options.deadline, {self.name(), "installed weights", "reception", batch});
      });
    }

    void make_room(lane& self, lane& observer, std::int64_t batch) {
      if (room.try_acquire()) return;
      auto span = recorder.span("wait for observer", batch, "wait");
      lanes.naming_the_busy([&] {
        return room.acquire(options.deadline, {self.name(), "room", observer.name(), batch});
      });
    }

    template <class Send>
    void produce(lane& self, Send send) {
      auto row = recorder.enter(self.name().c_str());
      detail::enter_lane(stages, lane_kind::sampling);
      for (std::int64_t batch = options.first_batch; batch < options.first_batch + options.batches; ++batch) {
        if (stop_requested() || !admit(self, batch) || stop_requested()) return;
        self.busy_with(batch);
        Token token{batch, installed.load(std::memory_order_acquire),
                    static_cast<std::int32_t>(batch % admission.permits()), 0};
        work.sample(token);
        self.idle();
        send(token);
      }
    }

    template <class Each>
    void consume(lane& self, lane_kind kind, lane& from, const char* what, Each each) {
      auto row = recorder.enter(self.name().c_str());
      detail::enter_lane(stages, kind);
      for (std::int64_t batch = options.first_batch;; ++batch) {
        auto token = self.inbox().try_pop();
        if (!token) {
          auto span = recorder.span("wait", batch, "wait");
          token = lanes.naming_the_busy([&] {
            return self.inbox().pop(options.deadline, {self.name(), what, from.name(), batch});
          });
        }
        if (!token) return;
        self.busy_with(batch);
        each(*token);
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
