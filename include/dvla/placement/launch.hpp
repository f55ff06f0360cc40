// Who this process is in its job, from the environment that torchrun, mpirun (Open MPI, MPICH), srun or a
// user's own shells set; nothing set means one process. Design: "Processes are started by what users have",
// the variables of `env://` rendezvous. Starts nothing and connects to nobody: that is C10dCluster's.
#pragma once

#include <unistd.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>

#include "dvla/core/error.hpp"

namespace dvla {

/// A plain value. Thread-safe as such; from_environment reads the environment, which nobody may change then.
struct Launch {
  int rank = 0, world = 1;
  std::optional<int> local_rank;      ///< among the ranks of this machine, where the launcher says it
  std::string address = "127.0.0.1";  ///< of the job's store
  int port = 29500;
  bool store_is_hosted = false;  ///< by torchrun's agent; otherwise rank 0 hosts it
  int restarts = 0;              ///< how often torchrun has started the job again after a failure
  std::string attempt;           ///< differs where a launcher starts the same job again beside an old store
  std::string host;              ///< names this machine: ranks with the same name share it
  bool host_is_given = false;    ///< by DVLA_HOST_ID: it is no mere host name, which two machines may share
  bool joins = false;            ///< a job that another launcher has started, as a rollout: see DVLA_STORE
  const char* world_variable = "WORLD_SIZE";  ///< what says how many ranks the job has
  int started = 1;  ///< ranks that this launcher starts; fewer than `world` where others join
  std::string launcher = "none";

  /// An environment variable's value, or nothing. For tests: any map.
  using Lookup = std::function<std::optional<std::string>(const char*)>;

  /// Ranks of one job may be started by several launchers: DVLA_WORLD_SIZE is then the number of them all,
  /// and whoever joins says by DVLA_STORE=<host>:<port> whom, and by DVLA_FIRST_RANK which of the job's ranks
  /// its first one is. Throws ConfigError, one sentence with variable, value and range, where variables are
  /// missing, malformed or contradict each other.
  static Launch from_environment(const Lookup& variable = process_environment) {
    Launch launch;
    launch.host_is_given = variable("DVLA_HOST_ID").has_value();
    launch.host = variable("DVLA_HOST_ID").value_or(host_name());
    const std::optional<std::string> run_id = variable("TORCHELASTIC_RUN_ID");
    if (variable("RANK") || variable("WORLD_SIZE")) {
      launch.launcher = run_id ? "torchrun" : "env://";
      launch.take(variable, "RANK", "WORLD_SIZE", "LOCAL_RANK");
      if (!run_id) refuse_contradiction(variable, launch, "RANK");
      launch.extend(variable);
      if (launch.world > 1 && !launch.joins) launch.read_master(variable, "RANK is set");
      const std::string hosted = variable("TORCHELASTIC_USE_AGENT_STORE").value_or("False");
      launch.store_is_hosted = hosted == "True" || hosted == "1";
      if (variable("TORCHELASTIC_RESTART_COUNT"))
        launch.restarts = number(variable, "TORCHELASTIC_RESTART_COUNT", 0, 1 << 30, "");
      if (run_id) launch.attempt = *run_id + "." + variable("TORCHELASTIC_RESTART_COUNT").value_or("0");
    } else if (variable("OMPI_COMM_WORLD_RANK") || variable("OMPI_COMM_WORLD_SIZE")) {
      launch.launcher = "mpirun (Open MPI)";
      launch.take(variable, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK");
      launch.extend(variable);
      launch.find_master(variable, "OMPI_COMM_WORLD_LOCAL_SIZE", "-x MASTER_ADDR=...");
    } else if ((variable("PMI_RANK") || variable("PMI_SIZE")) &&
               (variable("MPI_LOCALNRANKS") || !in_slurm_step(variable))) {  // srun --mpi=pmi2 sets them too
      launch.launcher = "mpirun (MPICH)";
      launch.take(variable, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID");
      launch.extend(variable);
      launch.find_master(variable, "MPI_LOCALNRANKS", "-genv MASTER_ADDR ...");
    } else if (in_slurm_step(variable)) {
      launch.launcher = "srun";
      // Inside a step, SLURM_NTASKS may still be the whole allocation's.
      const char* size = variable("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
      launch.take(variable, "SLURM_PROCID", size, "SLURM_LOCALID");
      refuse_contradiction(variable, launch, "SLURM_PROCID");
      launch.extend(variable);
      launch.find_slurm_master(variable);
    } else {
      refuse_tasks_without_srun(variable);
      launch.extend(variable);
      if (launch.world > 1 && !launch.joins) launch.read_master(variable, "DVLA_WORLD_SIZE is set");
    }
    launch.address = without_brackets(launch.address);
    return launch;
  }

  /// "<host>:<port>" of the job's store, an IPv6 address in brackets.
  std::string store() const {
    return (address.find(':') == address.npos ? address : "[" + address + "]") + ":" + std::to_string(port);
  }
  /// An IPv6 address, which may stand in brackets where a port follows or could.
  static std::string without_brackets(const std::string& address) {
    const bool has = address.size() > 2 && address.front() == '[' && address.back() == ']';
    return has ? address.substr(1, address.size() - 2) : address;
  }

  /// "node[003-010,012],login" -> "node003": the first machine of a Slurm node list.
  static std::string first_node(const std::string& list) {
    std::string first;
    for (std::size_t i = 0; i < list.size() && list[i] != ','; ++i) {
      if (list[i] != '[') {
        first += list[i];
        continue;
      }
      const std::size_t close = list.find(']', i), end = list.find_first_of(",-]", i + 1);
      if (close == list.npos || end == i + 1) return {};
      first += list.substr(i + 1, end - i - 1);
      i = close;
    }
    return first;
  }

 private:
  static std::optional<std::string> process_environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? std::optional<std::string>(value) : std::nullopt;
  }
  static std::string host_name() {
    char name[256] = {};
    if (::gethostname(name, sizeof name - 1) != 0) return "unknown";
    return name;
  }

  static std::string text(const Lookup& variable, const char* name, const std::string& why) {
    const std::optional<std::string> value = variable(name);
    if (!value || value->empty())
      throw ConfigError(name, " is ", value ? "empty" : "not set", ", and ", why,
                        "; a job of several processes needs it");
    return *value;
  }
  template <class Number = int>
  static Number number(const Lookup& variable, const char* name, Number least, Number most,
                       const std::string& why) {
    const std::string value = text(variable, name, why);
    Number parsed = 0;
    const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), parsed);
    if (code != std::errc() || end != value.data() + value.size() || parsed < least || parsed > most)
      throw ConfigError(name, " is '", value, "'; it must be a whole number from ", least, " to ", most);
    return parsed;
  }

  static constexpr int most_ranks = 65536;

  void take(const Lookup& variable, const char* rank_name, const char* world_name, const char* local_name) {
    world = number(variable, world_name, 1, most_ranks, std::string(rank_name) + " is set");
    rank = number(variable, rank_name, 0, most_ranks - 1, std::string(world_name) + " is set");
    if (rank >= world)
      throw ConfigError(rank_name, " is ", rank, " and ", world_name, " is ", world,
                        "; the rank must be from 0 to ", world - 1);
    if (variable(local_name)) local_rank = number(variable, local_name, 0, world - 1, "");
    started = world;
  }

  /// To the whole job, where this launcher starts only some of its ranks.
  void extend(const Lookup& variable) {
    const bool has_store = variable("DVLA_STORE").has_value();
    if (!has_store && !variable("DVLA_WORLD_SIZE") && !variable("DVLA_FIRST_RANK")) return;
    const std::string why = std::string(has_store ? "DVLA_STORE" : "DVLA_FIRST_RANK") + " is set";
    world_variable = "DVLA_WORLD_SIZE";
    world = number(variable, world_variable, has_store ? started + 1 : started, most_ranks, why);
    if (!has_store) {
      if (variable("DVLA_FIRST_RANK") && number(variable, "DVLA_FIRST_RANK", 0, world - 1, "") > 0)
        throw ConfigError("DVLA_FIRST_RANK is ", *variable("DVLA_FIRST_RANK"),
                          " and DVLA_STORE is not set; ranks that join a job need its store's address, "
                          "<host>:<port>");
      return;
    }
    joins = true;
    rank += number(variable, "DVLA_FIRST_RANK", 1, world - started, why);
    const std::string store = *variable("DVLA_STORE");
    const std::size_t colon = store.rfind(':');
    if (colon == store.npos || colon == 0 || store.find('/') != store.npos)
      throw ConfigError("DVLA_STORE is '", store, "'; it must be <host>:<port>");
    address = store.substr(0, colon);
    const auto after_colon = [&](const char*) { return std::optional(store.substr(colon + 1)); };
    port = number(after_colon, "the port of DVLA_STORE", 1, 65535, "DVLA_STORE is set");
  }

  void read_master(const Lookup& variable, const std::string& why) {
    address = text(variable, "MASTER_ADDR", why);
    port = number(variable, "MASTER_PORT", 1, 65535, why);
  }

  /// RANK exported by hand under mpirun, or mpirun under srun: either may be meant.
  static void refuse_contradiction(const Lookup& variable, const Launch& launch, const char* taken) {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK"}) {
      if (variable(name) && number(variable, name, 0, 65535, "") != launch.rank)
        throw ConfigError(taken, " is ", launch.rank, " and ", name, " is ", *variable(name),
                          "; they must be the same, or one of them unset");
    }
  }

  void find_master(const Lookup& variable, const char* local_size, const char* setting) {
    if (world == 1 || joins) return;
    if (variable("MASTER_PORT")) port = number(variable, "MASTER_PORT", 1, 65535, "");
    if (variable("MASTER_ADDR")) {
      address = text(variable, "MASTER_ADDR", "");
    } else if (!variable(local_size) || number(variable, local_size, 1, world, "") != world) {
      throw ConfigError(
          "MASTER_ADDR is not set, and the ", world, " ranks of this ", launcher,
          " job are not known to share one machine; set it to the address of rank 0's machine (mpirun ",
          setting, ")");
    }
  }

  /// Whether srun has started this process. A batch script and a shell of salloc have SLURM_PROCID as well;
  /// where salloc makes a step of that shell, it has a number that Slurm keeps for such.
  static bool in_slurm_step(const Lookup& variable) {
    if (!variable("SLURM_PROCID")) return false;
    const char* step = variable("SLURM_STEP_ID") ? "SLURM_STEP_ID" : "SLURM_STEPID";
    if (!variable(step)) return variable("SLURM_STEP_NUM_TASKS").has_value();
    return number<std::int64_t>(variable, step, 0, most_slurm_id, "") < first_reserved_step;
  }
  static constexpr std::int64_t most_slurm_id = 0xffffffff, first_reserved_step = 0xfffffff0;

  /// One process may be meant, or srun was forgotten.
  static void refuse_tasks_without_srun(const Lookup& variable) {
    if (!variable("SLURM_PROCID") || !variable("SLURM_NTASKS") || variable("DVLA_WORLD_SIZE")) return;
    if (const int tasks = number(variable, "SLURM_NTASKS", 1, most_ranks, ""); tasks > 1)
      throw ConfigError("SLURM_NTASKS is ", tasks,
                        ", but srun has not started this process; start it with srun, or by "
                        "'srun --ntasks 1' for one process");
  }

  void find_slurm_master(const Lookup& variable) {
    if (world == 1 || joins) return;
    const std::string why = launcher + " started " + std::to_string(started) + " tasks";
    if (variable("MASTER_ADDR")) {
      address = text(variable, "MASTER_ADDR", "");
    } else {
      const char* list = "SLURM_NODELIST";
      for (const char* name : {"SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_STEP_NODELIST"})
        if (variable(name)) list = name;
      const std::string nodes = text(variable, list, why);
      address = first_node(nodes);
      if (address.empty())
        throw ConfigError(list, " is '", nodes, "'; it must be a list of machines such as ",
                          "node[01-04], or set MASTER_ADDR");
    }
    if (variable("MASTER_PORT")) {
      port = number(variable, "MASTER_PORT", 1, 65535, "");
    } else {  // below the ports that the kernel gives out itself; two steps of a job get two ports
      const auto id = [&](const char* name) {
        return number<std::int64_t>(variable, name, 0, most_slurm_id, why + " without MASTER_PORT");
      };
      const std::int64_t job = id("SLURM_JOB_ID"), step = variable("SLURM_STEP_ID") ? id("SLURM_STEP_ID") : 0;
      port = static_cast<int>(16384 + (job % 1024 * 16 + step % 16));
    }
  }
};

}  // namespace dvla
