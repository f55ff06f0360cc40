// dvla-bench: smoke=5,2,100
// Synchronous against Swimlane with simulated stages: `wait` (a stage waits on the clock, as for a GPU or a
// network) and `busy` (a stage burns its core). Rollout to actor time of 1:1, 1:2, 3:1, and 1:1 jittered by
// +-50 %. Printed: speed-up over Synchronous in the same round, and the achieved share of the ideal (R + A +
// W) / max(R, A, W), from the trace's own spans. Aims for `wait`: share >= 0.97, 1:1 >= 1.9 x. `busy` cannot
// reach that where fewer cores are free than lanes are busy.
//   bench_swimlane [rounds = 5] [batches = 100] [unit in microseconds = 4000]
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../interleaved.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/trace/recorder.hpp"
#include "dvla/trace/report.hpp"

using namespace std::chrono_literals;
using dvla::Token;

namespace {

struct workload {
  std::string name;
  double rollout, actor;  // in units
  double jitter;          // +- share of the stage's time
};

class simulated_stages {
 public:
  simulated_stages(const workload& load, std::chrono::nanoseconds unit, bool busy, std::int64_t batches)
      : busy_(busy), sync_(std::chrono::duration_cast<std::chrono::nanoseconds>(unit * 0.01)) {
    std::mt19937 random(7);  // the same times for every variant and round
    std::uniform_real_distribution<double> spread(1 - load.jitter, 1 + load.jitter);
    for (std::int64_t i = 0; i < batches; ++i) {
      rollout_.push_back(
          std::chrono::duration_cast<std::chrono::nanoseconds>(unit * load.rollout * spread(random)));
      actor_.push_back(
          std::chrono::duration_cast<std::chrono::nanoseconds>(unit * load.actor * spread(random)));
    }
  }
  void sample(Token& token) { spend(rollout_[static_cast<std::size_t>(token.batch)]); }
  void train(Token& token) { spend(actor_[static_cast<std::size_t>(token.batch)]); }
  void distribute(Token&) { spend(sync_); }
  void receive(Token&) { spend(sync_); }

 private:
  void spend(std::chrono::nanoseconds time) const {
    if (!busy_) return std::this_thread::sleep_for(time);
    // CPU time, not wall time: a lane that shares its core gets its work done later
    const auto cpu_now = [] {
      timespec now{};
      ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
      return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
    };
    for (const auto until = cpu_now() + time; cpu_now() < until;) {
    }
  }

  const bool busy_;
  const std::chrono::nanoseconds sync_;
  std::vector<std::chrono::nanoseconds> rollout_, actor_;
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(5, std::atoi(argv[1])) : 5;
  const std::int64_t batches = argc > 2 ? std::max(2, std::atoi(argv[2])) : 100;
  const std::chrono::microseconds unit(argc > 3 ? std::max(1, std::atoi(argv[3])) : 4000);
  bench::print_header(argc, argv);
  std::printf(
      "# stages: rollout and actor as named, in units of %lld us; distribution and reception 1 %% of a unit "
      "each; %lld batches; median [quartiles] of %d interleaved rounds\n",
      static_cast<long long>(unit.count()), static_cast<long long>(batches), rounds);
  std::printf("%-5s %-14s %-12s %28s %10s %28s %9s %8s\n", "kind", "R:A", "schedule",
              "speed-up over Synchronous", "ideal", "share of ideal", "overlap%", "bubble%");
  for (const bool busy : {false, true})
    for (const workload& load :
         {workload{"1:1", 1, 1, 0}, {"1:2", 1, 2, 0}, {"3:1", 3, 1, 0}, {"1:1 jittered", 1, 1, 0.5}}) {
      std::vector<std::vector<dvla::trace::report>> reports(5);
      std::vector<bench::variant> variants;
      for (int which = 0; which < 5; ++which)  // 0: Synchronous; else Swimlane with K = which - 1
        variants.push_back({"", [&, which] {
                              dvla::trace::Recorder recorder(1 << 14);
                              simulated_stages stages(load, unit, busy, batches);
                              dvla::run_options options;
                              options.batches = batches;
                              if (which == 0) {
                                dvla::SynchronousRunner::run(stages, options, recorder);
                              } else {
                                options.staleness = which - 1;
                                dvla::SwimlaneRunner<3>::run(stages, options, recorder);
                              }
                              auto& into = reports[static_cast<std::size_t>(which)];
                              into.push_back(dvla::trace::make_report(recorder.spans(), recorder.dropped()));
                              return into.back().wall_s;
                            }});
      const auto walls = bench::interleave(variants, rounds);
      for (std::size_t which = 0; which < 5; ++which) {
        std::vector<double> speed_up, ideal, share, overlap, bubble;
        for (std::size_t round = 0; round < walls[which].size(); ++round) {
          const auto& r = reports[which][round + 1];  // the first one was the warm-up
          speed_up.push_back(walls[0][round] / walls[which][round]);
          ideal.push_back(r.ideal_gain);
          share.push_back(r.achieved_gain / r.ideal_gain);
          overlap.push_back(r.overlap);
          bubble.push_back(r.bubble);
        }
        const std::string name = which == 0 ? "Synchronous" : "Swimlane K=" + std::to_string(which - 1);
        std::printf("%-5s %-14s %-12s %12.3f [%.3f, %.3f] %10.3f %12.3f [%.3f, %.3f] %9.1f %8.1f\n",
                    busy ? "busy" : "wait", load.name.c_str(), name.c_str(), bench::median(speed_up),
                    bench::quantile(speed_up, 0.25), bench::quantile(speed_up, 0.75), bench::median(ideal),
                    bench::median(share), bench::quantile(share, 0.25), bench::quantile(share, 0.75),
                    bench::median(overlap), bench::median(bubble));
        std::fflush(stdout);
      }
    }
}
