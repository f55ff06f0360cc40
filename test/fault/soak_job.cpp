// The job that check_soak.py plagues: the Toy environment and LinearModel, rollouts and actors apart. Its
// environment takes a millisecond a step. It gives NaN in a row, takes a second and a half for a step, throws, or
// does not come back, each once for a file that it finds in DVLA_SOAK_FOLDER, "nan-<rank>", "slow-<rank>",
// "throw-<rank>", "hang-<rank>", and removes. As long as there is "full-0", rank 0 can write nothing below
// DVLA_SOAK_FOLDER/runs. "shared-<rank>" is memory that it shares with check_soak.py: see Shared.
#include <fcntl.h>
#include <pthread.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "../io/full_disk.hpp"
#include "dvla/algorithm/grpo.hpp"
#include "dvla/control_plane/broadcast.hpp"
#include "dvla/data_plane/routed.hpp"
#include "dvla/dvla.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/memory/dual_pool.hpp"
#include "dvla/pipeline/job_main.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/testing/linear_model.hpp"

namespace {
std::string variable(const char* name) {
  const char* const text = std::getenv(name);
  return text ? text : "";
}
std::string file_of(const std::string& what) {
  static const std::string folder = variable("DVLA_SOAK_FOLDER") + "/", rank = "-" + variable("RANK");
  return folder + what + rank;
}
/// Whether somebody has asked for it; then it is done.
bool asked_for(const std::string& what) { return ::unlink(file_of(what).c_str()) == 0; }

/// Three numbers of all lives of a rank.
struct Shared {
  std::atomic<std::int64_t> ahead_s;  ///< by which this process's wall clock is ahead; set from outside
  std::atomic<std::int64_t>
      asked;  ///< how often it was asked for the time of day, while it was ahead or behind
  std::atomic<std::int64_t> begun;  ///< batches that it has begun to sample
};
Shared* shared = nullptr;
void share() {
  const int file = ::open(file_of("shared").c_str(), O_RDWR);
  void* const there = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file < 0 || there == MAP_FAILED) throw dvla::Error("cannot map '" + file_of("shared") + "'");
  ::close(file);
  shared = static_cast<Shared*>(there);
}
std::int64_t ahead() {
  const std::int64_t seconds = shared ? shared->ahead_s.load() : 0;
  if (seconds != 0) ++shared->asked;
  return seconds;
}

struct Plagued {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "Plagued";
};
struct PlaguedEnvironment : dvla::ToyEnvironment {
  using ToyEnvironment::ToyEnvironment;
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    ++shared->begun;
    (void)std::chrono::system_clock::now();  // as a simulator may that logs
    ToyEnvironment::reset(rows, starts, next);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    std::this_thread::sleep_for(std::chrono::milliseconds(asked_for("slow") ? 1500 : 1));
    // Of all rows: what throws costs the rows that it was asked for, and ends the rank only if these are too many.
    if (std::ssize(rows.indices()) == size() && asked_for("throw"))
      throw std::runtime_error("the simulator is gone");
    while (asked_for("hang")) std::this_thread::sleep_for(std::chrono::hours(1));
    const std::int64_t made = ToyEnvironment::step(rows, action, outcome);
    if (!rows.indices().empty() && asked_for("nan"))
      outcome.reward.at(rows.indices()[0])[0] = std::numeric_limits<float>::quiet_NaN();
    return made;
  }
};
}  // namespace

// The clock of this process alone, before the C library's, as a step of it by hand or by NTP would show it. What
// counts time without a date is left. Waits until a date, which LibTorch's Gloo has inside, begin by this clock; one
// that is under way at a step does not see it, as it would if the machine's clock stepped.
extern "C" {
int clock_gettime(clockid_t clock, timespec* now) noexcept {
  const int result = static_cast<int>(::syscall(SYS_clock_gettime, clock, now));
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
  return result;
}
int gettimeofday(timeval* __restrict now, void* __restrict) noexcept {
  timespec fine;
  ::clock_gettime(CLOCK_REALTIME, &fine);
  *now = {fine.tv_sec, fine.tv_nsec / 1000};
  return 0;
}
time_t time(time_t* now) noexcept {
  timespec fine;
  ::clock_gettime(CLOCK_REALTIME, &fine);
  if (now) *now = fine.tv_sec;
  return fine.tv_sec;
}
int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* until) {
  const bool is_date = until->tv_sec > 1000000000;  // else since the machine started
  const timespec real{until->tv_sec - (is_date ? ahead() : 0), until->tv_nsec};
  return ::pthread_cond_clockwait(condition, mutex, is_date ? CLOCK_REALTIME : CLOCK_MONOTONIC, &real);
}
}

template <class Around>
struct dvla::machinery<Plagued, Around> {
  using type = PlaguedEnvironment;
};

int main(int argc, char** argv) {
  using Soak = dvla::Pipeline<dvla::Sampler<Plagued, dvla::testing::LinearModel>,
                              dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>,
                              dvla::Placement<dvla::Separated<>>, dvla::Schedule<dvla::Swimlane<1>>>;
  share();
  if (variable("RANK") == "0")
    dvla_test::is_full = [](const std::string& path) {
      static const std::string runs = variable("DVLA_SOAK_FOLDER") + "/runs/";
      return path.starts_with(runs) && ::access(file_of("full").c_str(), F_OK) == 0;
    };
  dvla::Config<Soak> config;
  config.environment.environments = 48;
  config.environment.horizon = 4;
  config.algorithm.group = 8;
  config.algorithm.learning_rate = 1e-4;
  config.placement.rollouts = 3;
  config.placement.actors = 1;
  config.schedule.deadline_s = 240;
  config.run.iterations = 100000000;
  config.run.checkpoint_every = 50;
  config.run.demonstrations = 0;
  config.run.evaluation_episodes = 0;
  config.run.animation = false;
  config.run.heartbeat_s = 3;
  config.run.step_deadline_s = 5;
  return dvla::job_main<Soak>(argc, argv, config);
}
