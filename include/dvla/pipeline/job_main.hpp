// main() of a program that runs as one process or as a job of many, started by torchrun, mpirun, srun or a
// user's own shells (placement/launch.hpp). Dear to compile, as placement/c10d.hpp is. CMake: dvla::dvla.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <random>
#include <sstream>
#include <string>

#include "dvla/core/passive_waits.hpp"
#include "dvla/core/text.hpp"
#include "dvla/pipeline/experiment.hpp"
#include "dvla/placement/c10d.hpp"
#include "dvla/placement/launch.hpp"

namespace dvla {

namespace detail {
/// What all attempts of one torchrun share and no other torchrun has: a number that the first one left in the
/// store of torchrun's agent, which outlives the attempts. Empty without such a store.
inline std::string job_mark(const Launch& launch, std::chrono::nanoseconds limit) {
  if (launch.launcher != "torchrun" || !launch.store_is_hosted || launch.joins) return {};
  std::random_device random;
  std::string own;
  for (int i = 0; i < 4; ++i) own += printed("%08x", random());
  const char* address = std::getenv("MASTER_ADDR");
  const char* port = std::getenv("MASTER_PORT");  // a job of one process has not read them
  if (!address || !port) return {};
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(std::atoi(port));
  options.waitWorkers = false;
  options.timeout = torch_limit(limit);
  const std::string host = Launch::without_brackets(address), where = std::string(address) + ":" + port;
  try {
    return bounded(
        limit,
        [options, host, mark = own] {
          const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::TCPStore>(host, options);
          return store->compareSet("dvla/job", "", mark);
        },
        [&] {
          return DeadlineError("waited " + seconds_text(limit) + " for the store that torchrun hosts at " +
                               where);
        });
  } catch (const PeerError& error) {
    throw PeerError("cannot ask the store that torchrun hosts at " + where + ": " + error.what());
  }
}

/// Whether the run's folder was begun by an earlier attempt of the job with this mark.
template <class P>
bool has_begun(const Config<P>& config, const std::string& mark) {
  std::ifstream file(std::filesystem::path(config.run.folder) / config.run.name / io::RunFolder::job_name);
  std::string line;
  return !mark.empty() && std::getline(file, line) && line == mark;
}

/// What a job that torchrun started again goes on from: its own newest complete checkpoint, or the beginning.
template <class P>
void go_on(Config<P>& config) {
  const std::filesystem::path folder = std::filesystem::path(config.run.folder) / config.run.name;
  if (io::CheckpointFolder(folder / "checkpoint").latest().checkpoint)
    config.run.resume = folder.string();
  else
    config.run.overwrite = true;
}

/// Where ranks join a job that another launcher started, the job's rank 0 alone knows what it goes on from.
template <class P>
void agree_on_beginning(Config<P>& config, Cluster& cluster, std::chrono::nanoseconds limit) {
  if (cluster.topology().joined.empty()) return;
  const std::string resume = "run/resume", overwrite = "run/overwrite";
  if (cluster.rank() == 0) {
    cluster.put(resume, config.run.resume);
    cluster.put(overwrite, config.run.overwrite ? "yes" : "no");
  } else if (cluster.topology().has_joined(cluster.rank())) {
    config.run.resume = cluster.get(resume, limit);
    config.run.overwrite = cluster.get(overwrite, limit) == "yes";
  }
}

/// `code`; ends the process itself where a thread was left behind in torch, whose static objects go when main()
/// returns.
inline int end_program(int code) {
  if (left_behind == 0) return code;
  std::cout << std::flush;
  std::_Exit(code);
}

/// False: this rank had joined a job that has been started again since.
template <class P>
bool take_part(const Launch& launch, Config<P> config) {
  const auto limit = nanoseconds(config.schedule.deadline_s);
  LoneCluster alone;
  std::optional<C10dCluster> joined;
  try {
    if (launch.world > 1) joined.emplace(launch, limit);
    Cluster& cluster = joined ? static_cast<Cluster&>(*joined) : alone;
    const std::string mark = job_mark(launch, limit);
    if (launch.restarts > 0 && !launch.joins && has_begun(config, mark)) go_on(config);
    agree_on_beginning(config, cluster, limit);
    run_experiment<P>(config, cluster, mark);
    return true;
  } catch (const StartedAgain&) {
    return false;
  } catch (const Error& error) {
    if (!launch.joins || !joined) throw;
    if (joined->superseded()) return false;
    if (!dynamic_cast<const TooLate*>(&error)) throw;
    std::cout << error.what() << std::endl;  // so that its launcher does not start it again
    return true;
  }
}
}  // namespace detail

/// As experiment_main, with its second start, on every rank of the job that the environment tells of. The exit code is 1 on every
/// rank where one refuses or fails. `--help` answers on rank 0 only. Where torchrun starts the job again
/// after a failure (--max-restarts), it goes on from its own newest complete checkpoint, whatever `resume`
/// says; a job that had not opened the run's folder before begins as it did, so what was refused stays
/// refused.
///
/// Rollouts may be started by launchers of their own (see Launch): they take `resume` and `overwrite` from
/// rank 0, whatever is said to them, and where they find the job they joined started again, they join again.
/// One that comes when training has ended says so, with exit code 0.
template <class P>
int job_main(int argc, const char* const* argv, const Config<P>& defaults = {}) {
  const io::SafeStreams streams;
  wait_passively(argv);
  std::string who;
  try {
    const Launch launch = Launch::from_environment();
    if (launch.world > 1) who = "rank " + std::to_string(launch.rank) + ": ";
    std::ostringstream nowhere;
    auto config = parse_command_line<P>(argc, argv, defaults, launch.rank == 0 ? std::cout : nowhere);
    if (!config) return 0;
    if constexpr (buildable<P>()) {
      if (launch.rank == 0 && launch.started < launch.world && !config->run.quiet)
        std::cout << "waiting for ranks " + std::to_string(launch.started) + " to " +
                         std::to_string(launch.world - 1) + " to join: DVLA_STORE=" + launch.store()
                  << std::endl;
      while (!detail::take_part(launch, *config))
        std::cerr << (who + "the job has been started again; this rank joins again\n") << std::flush;
    }
    return detail::end_program(0);
  } catch (const std::exception& error) {
    std::cerr << ("error: " + who + error.what() + "\n") << std::flush;
    return detail::end_program(1);
  }
}

}  // namespace dvla
