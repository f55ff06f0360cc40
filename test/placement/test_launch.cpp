// Who a process is, from every launcher's environment, and the sentence for each that cannot be.
#include <doctest/doctest.h>

#include <map>

#include "dvla/placement/launch.hpp"

using dvla::ConfigError;
using dvla::Launch;

namespace {

using Variables = std::map<std::string, std::string>;

Launch launch(const Variables& variables) {
  return Launch::from_environment([&](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

const Variables shell{
    {"RANK", "2"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "1234"}};
const Variables ompi{{"OMPI_COMM_WORLD_RANK", "1"},
                     {"OMPI_COMM_WORLD_SIZE", "3"},
                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "3"}};
const Variables slurm{{"SLURM_PROCID", "5"},  {"SLURM_NTASKS", "8"},
                      {"SLURM_LOCALID", "1"}, {"SLURM_NODELIST", "node[003-010,012],login"},
                      {"SLURM_STEP_ID", "0"}, {"SLURM_JOB_ID", "4711"}};

}  // namespace

TEST_CASE("nothing set is one process") {
  const Launch one = launch({});
  CHECK(one.rank == 0);
  CHECK(one.world == 1);
  CHECK(one.launcher == "none");
  CHECK_FALSE(one.host.empty());
  CHECK_NOTHROW(Launch::from_environment());
}

TEST_CASE("env:// variables") {
  const Launch two = launch(shell);
  CHECK(two.rank == 2);
  CHECK(two.world == 4);
  CHECK(two.address == "10.0.0.1");
  CHECK(two.port == 1234);
  CHECK_FALSE(two.local_rank);
  CHECK_FALSE(two.store_is_hosted);
  CHECK(two.launcher == "env://");
  CHECK(launch({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).world == 1);
  CHECK(launch(with(shell, {{"DVLA_HOST_ID", "left"}})).host == "left");
}

TEST_CASE("torchrun's agent hosts the store, and each restart is an attempt of its own") {
  const Launch rank = launch(with(shell, {{"LOCAL_RANK", "0"},
                                          {"TORCHELASTIC_RUN_ID", "job"},
                                          {"TORCHELASTIC_RESTART_COUNT", "3"},
                                          {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                          {"OMPI_COMM_WORLD_RANK", "0"}}));  // one agent a machine, by mpirun
  CHECK(rank.launcher == "torchrun");
  CHECK(rank.store_is_hosted);
  CHECK(rank.attempt == "job.3");
  CHECK(rank.local_rank == 0);
}

TEST_CASE("Open MPI and MPICH") {
  const Launch local = launch(ompi);
  CHECK(local.rank == 1);
  CHECK(local.world == 3);
  CHECK(local.local_rank == 1);
  CHECK(local.address == "127.0.0.1");
  const Launch far = launch(with(ompi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"MASTER_ADDR", "head"}}));
  CHECK(far.address == "head");
  CHECK_THROWS_WITH_AS(
      launch(with(ompi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}})),
      "MASTER_ADDR is not set, and the 3 ranks of this mpirun (Open MPI) job are not known to share one "
      "machine; set it to the address of rank 0's machine (mpirun -x MASTER_ADDR=...)",
      ConfigError);
  const Launch mpich = launch({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALNRANKS", "2"}});
  CHECK(mpich.rank == 1);
  CHECK(mpich.address == "127.0.0.1");
  CHECK_THROWS_AS(launch({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}), ConfigError);
}

TEST_CASE("Slurm: the first machine, and a port of the job's") {
  const Launch task = launch(slurm);
  CHECK(task.rank == 5);
  CHECK(task.world == 8);
  CHECK(task.local_rank == 1);
  CHECK(task.address == "node003");
  CHECK(task.port > 1024);
  CHECK(task.port < 32768);
  CHECK(task.port == launch(with(slurm, {{"SLURM_PROCID", "0"}})).port);
  CHECK(task.port != launch(with(slurm, {{"SLURM_JOB_ID", "4712"}})).port);
  CHECK(task.port != launch(with(slurm, {{"SLURM_STEP_ID", "1"}})).port);
  const Launch step = launch(with(slurm, {{"SLURM_STEP_NUM_TASKS", "6"}, {"SLURM_STEP_NODELIST", "b7,b8"}}));
  CHECK(step.world == 6);
  CHECK(step.address == "b7");
  CHECK(launch(with(slurm, {{"MASTER_ADDR", "x"}, {"MASTER_PORT", "99"}})).port == 99);
  CHECK(Launch::first_node("a") == "a");
  CHECK(Launch::first_node("rack[1-2]n[3,4],b") == "rack1n3");
  CHECK(Launch::first_node("n[07-09]-ib") == "n07-ib");
  CHECK(Launch::first_node("n[07") == "");
  CHECK(Launch::first_node("n[]") == "");
}

TEST_CASE("Slurm without srun: one process, or a sentence that names srun") {
  const Variables batch{{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_JOB_ID", "4711"}};
  // Interactive steps of salloc, the batch script's own step: numbers that Slurm keeps.
  for (const Variables& more : {Variables{},
                                {{"SLURM_NTASKS", "1"}},
                                {{"SLURM_STEP_ID", "4294967290"}, {"SLURM_STEP_NUM_TASKS", "1"}},
                                {{"SLURM_STEP_ID", "4294967291"}}}) {
    const Launch one = launch(with(batch, more));
    CHECK(one.rank == 0);
    CHECK(one.world == 1);
    CHECK(one.launcher == "none");
    const std::string sentence =
        "SLURM_NTASKS is 4, but srun has not started this process; start it with srun, or by 'srun --ntasks "
        "1' for one process";
    CHECK_THROWS_WITH_AS(launch(with(with(batch, more), {{"SLURM_NTASKS", "4"}})), sentence.c_str(),
                         ConfigError);
  }
  // Other launchers within an allocation are what they are.
  CHECK(launch(with(with(batch, {{"SLURM_NTASKS", "4"}}), shell)).rank == 2);
  CHECK(launch(with(with(batch, {{"SLURM_NTASKS", "4"}}), ompi)).launcher == "mpirun (Open MPI)");
}

TEST_CASE("srun --mpi=pmi2 sets MPICH's variables too, and MPICH's mpirun runs within srun's") {
  const Variables pmi2 = with(slurm, {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}});
  const Launch task = launch(pmi2);
  CHECK(task.launcher == "srun");
  CHECK(task.rank == 5);
  CHECK(task.world == 8);
  CHECK(task.local_rank == 1);
  CHECK(task.address == "node003");
  CHECK_THROWS_WITH_AS(launch(with(pmi2, {{"PMI_RANK", "4"}})),
                       "SLURM_PROCID is 5 and PMI_RANK is 4; they must be the same, or one of them unset",
                       ConfigError);
  const Launch mpich = launch(with(pmi2, {{"PMI_RANK", "1"},
                                          {"PMI_SIZE", "16"},
                                          {"MPI_LOCALNRANKS", "2"},
                                          {"MPI_LOCALRANKID", "1"},
                                          {"MASTER_ADDR", "a"}}));
  CHECK(mpich.launcher == "mpirun (MPICH)");
  CHECK(mpich.rank == 1);
  CHECK(mpich.world == 16);
}

TEST_CASE("Slurm's own lists of machines, and job ids of 32 bits") {
  for (const char* name : {"SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"}) {
    Variables variables = slurm;
    variables.erase("SLURM_NODELIST");
    variables[name] = "node[01-03,07]";
    CHECK(launch(variables).address == "node01");
    CHECK(launch(with(variables, {{"MASTER_ADDR", "head"}})).address == "head");
  }
  const auto port = [](const char* id) { return launch(with(slurm, {{"SLURM_JOB_ID", id}})).port; };
  CHECK(port("2147483648") == 16384);
  CHECK(port("4294967295") == 16384 + 1023 * 16);
  CHECK_THROWS_WITH_AS(port("4294967296"),
                       "SLURM_JOB_ID is '4294967296'; it must be a whole number from 0 to 4294967295",
                       ConfigError);
}

TEST_CASE("an IPv6 address comes with brackets or without") {
  const Launch bare = launch(with(shell, {{"MASTER_ADDR", "::1"}})),
               held = launch(with(shell, {{"MASTER_ADDR", "[::1]"}}));
  CHECK(bare.address == "::1");
  CHECK(held.address == "::1");
  CHECK(held.store() == "[::1]:1234");
  CHECK(launch(shell).store() == "10.0.0.1:1234");
  CHECK(launch(with(ompi, {{"MASTER_ADDR", "[fe80::1]"}})).address == "fe80::1");
  CHECK(launch(with(slurm, {{"MASTER_ADDR", "[fe80::1]"}})).address == "fe80::1");
}

TEST_CASE("ranks of one job from several launchers") {
  const Variables rest{{"DVLA_WORLD_SIZE", "6"}, {"DVLA_STORE", "10.0.0.1:1234"}};
  const Launch main = launch(with(shell, {{"DVLA_WORLD_SIZE", "6"}}));
  CHECK(main.rank == 2);
  CHECK(main.world == 6);
  CHECK(main.started == 4);
  CHECK(main.address == "10.0.0.1");
  CHECK_FALSE(main.joins);
  // Its own MASTER_ADDR is its launcher's business.
  const Launch shells =
      launch(with(with(shell, rest), {{"WORLD_SIZE", "3"}, {"DVLA_FIRST_RANK", "3"}, {"MASTER_ADDR", "b"}}));
  CHECK(shells.joins);
  CHECK(shells.rank == 5);
  CHECK(shells.world == 6);
  CHECK(shells.started == 3);
  CHECK(shells.address == "10.0.0.1");
  CHECK(shells.port == 1234);
  const Launch mpirun =
      launch(with(with(ompi, rest), {{"DVLA_FIRST_RANK", "3"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}}));
  CHECK(mpirun.rank == 4);
  CHECK(mpirun.local_rank == 1);
  const Launch slurm_step =
      launch(with(with(slurm, rest), {{"DVLA_FIRST_RANK", "4"}, {"DVLA_WORLD_SIZE", "12"}}));
  CHECK(slurm_step.rank == 9);
  const Launch lone = launch(with(rest, {{"DVLA_FIRST_RANK", "5"}, {"DVLA_STORE", "[fe80::1]:99"}}));
  CHECK(lone.rank == 5);
  CHECK(lone.started == 1);
  CHECK(lone.address == "fe80::1");
  CHECK(lone.port == 99);
  const Launch lone_main = launch({{"DVLA_WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "7"}});
  CHECK(lone_main.rank == 0);
  CHECK(lone_main.world == 2);
  CHECK(lone_main.port == 7);
}

TEST_CASE("what cannot be is one sentence with variable, value and range") {
  const auto refused = [](const Variables& variables, const char* sentence) {
    CHECK_THROWS_WITH_AS(launch(variables), sentence, ConfigError);
  };
  refused(with(shell, {{"RANK", "7"}}), "RANK is 7 and WORLD_SIZE is 4; the rank must be from 0 to 3");
  refused(with(shell, {{"RANK", "abc"}}), "RANK is 'abc'; it must be a whole number from 0 to 65535");
  refused(with(shell, {{"RANK", "1 "}}), "RANK is '1 '; it must be a whole number from 0 to 65535");
  refused(with(shell, {{"RANK", "-1"}}), "RANK is '-1'; it must be a whole number from 0 to 65535");
  refused(with(shell, {{"RANK", ""}}),
          "RANK is empty, and WORLD_SIZE is set; a job of several processes needs it");
  refused(with(shell, {{"WORLD_SIZE", "0"}}), "WORLD_SIZE is '0'; it must be a whole number from 1 to 65536");
  refused(with(shell, {{"WORLD_SIZE", "99999999999999999999"}}),
          "WORLD_SIZE is '99999999999999999999'; it must be a whole number from 1 to 65536");
  refused(with(shell, {{"MASTER_PORT", "99999"}}),
          "MASTER_PORT is '99999'; it must be a whole number from 1 to 65535");
  refused(with(shell, {{"LOCAL_RANK", "4"}}), "LOCAL_RANK is '4'; it must be a whole number from 0 to 3");
  refused({{"RANK", "1"}}, "WORLD_SIZE is not set, and RANK is set; a job of several processes needs it");
  refused({{"WORLD_SIZE", "2"}},
          "RANK is not set, and WORLD_SIZE is set; a job of several processes needs it");
  refused({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "1"}},
          "MASTER_ADDR is not set, and RANK is set; a job of several processes needs it");
  refused({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}},
          "MASTER_PORT is not set, and RANK is set; a job of several processes needs it");
  refused(with(shell, {{"OMPI_COMM_WORLD_RANK", "1"}}),
          "RANK is 2 and OMPI_COMM_WORLD_RANK is 1; they must be the same, or one of them unset");
  refused({{"OMPI_COMM_WORLD_RANK", "1"}},
          "OMPI_COMM_WORLD_SIZE is not set, and OMPI_COMM_WORLD_RANK is set; a job of several processes "
          "needs it");
  refused({{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}},
          "SLURM_NODELIST is not set, and srun started 2 tasks; a job of several processes needs it");
  refused({{"SLURM_PROCID", "0"},
           {"SLURM_STEP_NUM_TASKS", "2"},
           {"SLURM_NODELIST", "n[1"},
           {"SLURM_JOB_ID", "1"}},
          "SLURM_NODELIST is 'n[1'; it must be a list of machines such as node[01-04], or set MASTER_ADDR");
  const Variables joins =
      with(shell, {{"DVLA_WORLD_SIZE", "6"}, {"DVLA_FIRST_RANK", "2"}, {"DVLA_STORE", "a:1"}});
  refused(with(joins, {{"DVLA_STORE", "a"}}), "DVLA_STORE is 'a'; it must be <host>:<port>");
  refused(with(joins, {{"DVLA_STORE", ":1"}}), "DVLA_STORE is ':1'; it must be <host>:<port>");
  refused(with(joins, {{"DVLA_STORE", "a:"}}),
          "the port of DVLA_STORE is empty, and DVLA_STORE is set; a job of several processes needs it");
  refused(with(joins, {{"DVLA_STORE", "a:0"}}),
          "the port of DVLA_STORE is '0'; it must be a whole number from 1 to 65535");
  refused(with(joins, {{"DVLA_WORLD_SIZE", "4"}}),
          "DVLA_WORLD_SIZE is '4'; it must be a whole number from 5 to 65536");
  refused(with(joins, {{"DVLA_FIRST_RANK", "3"}}),
          "DVLA_FIRST_RANK is '3'; it must be a whole number from 1 to 2");
  refused(with(joins, {{"DVLA_FIRST_RANK", "0"}}),
          "DVLA_FIRST_RANK is '0'; it must be a whole number from 1 to 2");
  refused(with(shell, {{"DVLA_STORE", "a:1"}}),
          "DVLA_WORLD_SIZE is not set, and DVLA_STORE is set; a job of several processes needs it");
  refused(with(shell, {{"DVLA_WORLD_SIZE", "6"}, {"DVLA_FIRST_RANK", "2"}}),
          "DVLA_FIRST_RANK is 2 and DVLA_STORE is not set; ranks that join a job need its store's address, "
          "<host>:<port>");
  refused({{"DVLA_WORLD_SIZE", "2"}},
          "MASTER_ADDR is not set, and DVLA_WORLD_SIZE is set; a job of several processes needs it");
}
