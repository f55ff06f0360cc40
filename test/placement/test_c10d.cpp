// C10dCluster with real processes over loopback: the conformance suite, ranks that die, stop, come again or
// never come. The same program is the test and, with --role, one rank of a job that it starts;
// `--launcher mpirun` and `--launcher torchrun` run the suite under those (77: there is none).
#define DOCTEST_CONFIG_IMPLEMENT
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <pthread.h>

#include <iostream>

#include "dvla/io/child_process.hpp"
#include "dvla/placement/c10d.hpp"
#include "dvla/testing/cluster.hpp"

using namespace std::chrono_literals;
using dvla::C10dCluster;
using dvla::Cluster;
using dvla::Launch;
using dvla::testing::detail::outcome;

namespace {
/// The n-th thread that is started by another thread than the first cannot be; 0: all can.
std::atomic<int> refused_thread{0};
const pthread_t first_thread = ::pthread_self();
}  // namespace

/// What std::thread calls, wherever it is compiled.
extern "C" [[gnu::visibility("default")]] int pthread_create(pthread_t* thread,
                                                             const pthread_attr_t* attributes,
                                                             void* (*start)(void*), void* argument) noexcept {
  static const auto next = reinterpret_cast<decltype(&pthread_create)>(::dlsym(RTLD_NEXT, "pthread_create"));
  if (refused_thread > 0 && !::pthread_equal(::pthread_self(), first_thread) && --refused_thread == 0)
    return EAGAIN;
  return next(thread, attributes, start, argument);
}

namespace {

const auto long_enough = 20s;  // no test waits for it where all is well
const auto job_limit = 60s;

int free_port() {
  const int probe = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ::bind(probe, reinterpret_cast<sockaddr*>(&address), size);
  ::getsockname(probe, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(probe);
  return ntohs(address.sin_port);
}

// ---- One rank: prints what is wrong; nothing is right.

bool wrong = false;
void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::cout << what << std::endl;
  wrong = true;
}
/// `how` begins with `kind` and says `names`.
void expect_how(const std::string& how, const std::string& kind, const std::string& names) {
  expect(how.starts_with(kind) && how.find(names) != std::string::npos,
         "expected " + kind + " that says '" + names + "', not: " + how);
}

void conform(Cluster& cluster) {
  for (const auto& line : dvla::testing::check_cluster(cluster, long_enough)) expect(false, line);
}

void bits(Cluster& cluster) {
  const auto group = cluster.group("bits", {0, 1, 2}, long_enough);
  const auto value = [](int rank, std::size_t i) {
    return 1.0f / static_cast<float>(3 * i + 7) * static_cast<float>(rank + 1);
  };
  for (const std::size_t size : {100u, 100000u}) {  // sent whole, and in shares
    std::vector<float> sum(size), plain(size);
    for (std::size_t i = 0; i < size; ++i) {
      sum[i] = value(cluster.rank(), i);
      plain[i] = value(0, i) + value(1, i) + value(2, i);
    }
    group->sum(std::span(sum));
    expect(sum == plain, "a sum must add in the order of ranks, to the bit");
  }
}

void nodes(Cluster& cluster) {
  expect(cluster.topology().node == std::vector<int>{0, 1, 0}, "nodes are numbered by DVLA_HOST_ID");
  cluster.group("all", {0, 1, 2}, long_enough)->barrier();
}

/// Rank 0 cannot start a thread while it connects; then it can, and all is well.
void no_thread(Cluster& cluster) {
  std::vector<std::unique_ptr<dvla::Group>> groups;  // kept: who is through must not hang up on the others
  for (const int which : {1, 2, 0}) {                // of those that watch the peers
    if (cluster.rank() == 0) refused_thread = which;
    const std::string how = outcome([&] {
      groups.push_back(cluster.group("without thread " + std::to_string(which), {0, 1, 2}, long_enough));
    });
    if (cluster.rank() > 0) continue;  // it may come into being there, and then break
    if (which > 0) expect_how(how, "PeerError", "Resource temporarily unavailable");
    if (which == 0) expect(how == "done", how);
    expect(refused_thread == 0, "the thread was not asked for");
  }
  cluster.group("after it", {0, 1, 2}, long_enough)->barrier();
}
void two_machines(Cluster& cluster) {
  expect(cluster.topology().node == std::vector<int>{0, 1, 1}, "machines of one host name are two");
  cluster.group("all", {0, 1, 2}, long_enough)->barrier();
}
void meet(Cluster& cluster) { cluster.group("all", {0, 1}, 3s); }

/// Rank 2 is killed while the others wait for it.
void killed_idle(Cluster& cluster) {
  std::byte byte{};
  const auto channel =
      cluster.rank() == 1 ? nullptr : cluster.channel("data", 2 - cluster.rank(), long_enough);
  const auto group = cluster.group("all", {0, 1, 2}, long_enough);
  group->barrier();
  if (cluster.rank() == 2) std::raise(SIGKILL);
  if (channel)
    expect_how(outcome([&] { channel->receive(std::span(&byte, 1), long_enough); }), "PeerError",
               "rank 0 lost rank 2");
  expect_how(outcome([&] { group->barrier(); }), "PeerError", "in barrier of group 'all'");
  if (channel)
    expect_how(outcome([&] { channel->send(std::span(&byte, 1), long_enough); }), "PeerError", "rank 2");
}

void die_after(std::chrono::milliseconds delay) {
  std::thread([delay] {
    std::this_thread::sleep_for(delay);
    std::raise(SIGKILL);
  }).detach();
}

/// Rank 1 is killed in the middle of a message's bytes, both ways.
void killed_sending(Cluster& cluster) {
  const auto channel = cluster.channel("data", 1 - cluster.rank(), long_enough);
  std::vector<std::byte> bytes(std::size_t{64} << 20);
  if (cluster.rank() == 1) die_after(200ms);
  expect_how(outcome([&] {
               for (;;)
                 cluster.rank() == 1 ? channel->send(bytes, long_enough)
                                     : channel->receive(bytes, long_enough);
             }),
             "PeerError", "rank 0 lost rank 1");
}
void killed_receiving(Cluster& cluster) {
  const auto channel = cluster.channel("data", 1 - cluster.rank(), long_enough);
  std::vector<std::byte> bytes(std::size_t{64} << 20);
  if (cluster.rank() == 1) die_after(200ms);
  expect_how(outcome([&] {
               for (;;)
                 cluster.rank() == 0 ? channel->send(bytes, long_enough)
                                     : channel->receive(bytes, long_enough);
             }),
             "PeerError", "rank 0 lost rank 1");
}
void killed_together(Cluster& cluster) {
  const auto group = cluster.group("all", {0, 1, 2}, long_enough);
  std::vector<std::byte> part(std::size_t{16} << 20), all(3 * part.size());
  if (cluster.rank() == 2) die_after(200ms);
  expect_how(outcome([&] {
               for (;;) group->all_gather(part, all);
             }),
             "PeerError", "in all_gather of group 'all'");
}

/// A channel closed by one end in the middle of a message.
void closed_midway(Cluster& cluster) {
  const auto channel = cluster.channel("data", 1 - cluster.rank(), long_enough);
  std::vector<std::byte> bytes(std::size_t{64} << 20);
  std::thread closer([&] {
    if (cluster.rank() == 1) std::this_thread::sleep_for(150ms);
    if (cluster.rank() == 1) channel->close();
  });
  expect_how(outcome([&] {
               for (;;)
                 cluster.rank() == 0 ? channel->send(bytes, long_enough)
                                     : channel->receive(bytes, long_enough);
             }),
             "PeerError", "lost rank");
  closer.join();
}

/// What was sent before a channel is destroyed arrives, however late it is asked for.
void last_words(Cluster& cluster) {
  for (int round = 0; round < 20; ++round) {
    const std::string name = "data/" + std::to_string(round);
    auto channel = cluster.channel(name, 1 - cluster.rank(), long_enough);
    std::byte text[4] = {};
    if (cluster.rank() == 0) {
      channel->send(std::as_bytes(std::span("bye")), long_enough);
    } else {
      expect_how(outcome([&] { channel->receive(text, long_enough); }), "done", "");
      expect(std::memcmp(text, "bye", 4) == 0, "last words");
    }
  }
}

/// A rank stops itself, once the other one knows how to let it go.
void stop_here(Cluster& cluster) {
  cluster.put("pid", std::to_string(::getpid()));
  cluster.get("pid is known", long_enough);
  std::raise(SIGSTOP);
}
int pid_of_other(Cluster& cluster) {
  const int pid = std::stoi(cluster.get("pid", long_enough));
  cluster.put("pid is known", "");
  return pid;
}
void stopped(Cluster& cluster) {
  std::byte byte{};
  const auto channel = cluster.channel("data", 1 - cluster.rank(), long_enough);
  const auto group = cluster.group("all", {0, 1}, 600ms);
  if (cluster.rank() == 1) return stop_here(cluster);
  const int pid = pid_of_other(cluster);
  expect_how(outcome([&] { channel->receive(std::span(&byte, 1), 300ms); }), "DeadlineError",
             "rank 0 waited 0.3 s for rank 1 to send 1 bytes (channel 'data')");
  expect_how(outcome([&] { group->barrier(); }), "DeadlineError",
             "rank 0 waited 0.6 s for rank 1 in barrier of group 'all'");
  ::kill(pid, SIGKILL);
}
/// The rank that hosts the store stops.
void stopped_store(Cluster& cluster) {
  if (cluster.rank() == 0) return stop_here(cluster);
  const int pid = pid_of_other(cluster);
  std::this_thread::sleep_for(100ms);
  expect_how(outcome([&] { cluster.get("never", 300ms); }), "DeadlineError", "rank 1 waited 0.3 s");
  ::kill(pid, SIGKILL);
}
void killed_store(Cluster& cluster) {
  if (cluster.rank() == 0) {
    cluster.get("rank 1 has joined", long_enough);
    std::raise(SIGKILL);
  }
  cluster.put("rank 1 has joined", "");
  for (int i = 0; i < 3; ++i)  // and is not connected to again, until the limit
    expect_how(outcome([&] { cluster.get("never", long_enough); }), "PeerError",
               "rank 1 lost the job's store at");
}

/// Rank 1 dies and comes again.
void restarted(Cluster& cluster) {
  std::byte byte{};
  if (cluster.rank() == 1) {
    const bool first_life = cluster.count("lives") == 1;
    const auto channel = cluster.channel(first_life ? "data/0" : "data/1", 0, long_enough);
    if (first_life) std::raise(SIGKILL);
    channel->send(std::as_bytes(std::span("x")).first(1), long_enough);
    cluster.get("done", long_enough);
    return;
  }
  const auto old = cluster.channel("data/0", 1, long_enough);
  expect_how(outcome([&] { old->receive(std::span(&byte, 1), long_enough); }), "PeerError", "rank 1");
  const auto fresh = cluster.channel("data/1", 1, long_enough);
  expect_how(outcome([&] { fresh->receive(std::span(&byte, 1), long_enough); }), "done", "");
  cluster.put("done", "yes");
}

const std::map<std::string, void (*)(Cluster&)> roles{{"conform", conform},
                                                      {"bits", bits},
                                                      {"nodes", nodes},
                                                      {"two_machines", two_machines},
                                                      {"meet", meet},
                                                      {"killed_idle", killed_idle},
                                                      {"killed_sending", killed_sending},
                                                      {"killed_receiving", killed_receiving},
                                                      {"killed_together", killed_together},
                                                      {"closed_midway", closed_midway},
                                                      {"last_words", last_words},
                                                      {"stopped", stopped},
                                                      {"stopped_store", stopped_store},
                                                      {"killed_store", killed_store},
                                                      {"restarted", restarted},
                                                      {"no_thread", no_thread}};

int run_rank(const std::string& role, std::chrono::milliseconds join_limit) {
  try {
    C10dCluster cluster(Launch::from_environment(), join_limit);
    roles.at(role)(cluster);
  } catch (const std::exception& error) {
    std::cout << error.what() << std::endl;
    return 2;
  }
  return wrong ? 1 : 0;
}

// ---- The test: jobs of such ranks.

struct Job {
  std::string role;
  int port = free_port();
  std::vector<std::string> variables{};  ///< NAME=value, for all
  std::chrono::milliseconds join_limit = 20s;
  std::vector<std::string> before{};  ///< a command that runs each

  dvla::io::ChildResult rank(int rank, int world, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> command = before;
    for (const std::string& word :
         {std::string("env"), "RANK=" + std::to_string(rank), "WORLD_SIZE=" + std::to_string(world),
          std::string("MASTER_ADDR=127.0.0.1"), "MASTER_PORT=" + std::to_string(port)})
      command.push_back(word);
    command.insert(command.end(), variables.begin(), variables.end());
    command.insert(command.end(), more.begin(), more.end());
    for (const std::string& word : {std::filesystem::read_symlink("/proc/self/exe").string(),
                                    std::string("--role"), role, std::to_string(join_limit.count())})
      command.push_back(word);
    return dvla::io::run_child(command, {}, job_limit);
  }
  std::vector<dvla::io::ChildResult> run(int world) const {
    std::vector<dvla::io::ChildResult> results(static_cast<std::size_t>(world));
    std::vector<std::thread> threads;
    for (int i = 0; i < world; ++i)
      threads.emplace_back([&, i] {
        auto& result = results[static_cast<std::size_t>(i)];
        try {
          result = rank(i, world);
        } catch (const std::exception& error) {
          result = {-1, error.what(), ""};
        }
      });
    for (auto& thread : threads) thread.join();
    return results;
  }
};

/// Runs the job; `victim` must be killed, the others end well and say nothing.
void check_job(const std::string& role, int world, int victim = -1) {
  CAPTURE(role);
  const auto results = Job{role}.run(world);
  for (int rank = 0; rank < world; ++rank) {
    const auto& result = results[static_cast<std::size_t>(rank)];
    CAPTURE(rank);
    CHECK(result.out == "");
    CHECK(result.err == "");
    CHECK(result.exit_code == (rank == victim ? 128 + SIGKILL : 0));
  }
}

TEST_CASE("processes conform as a job of one to four ranks") {
  for (int world = 1; world <= 4; ++world) check_job("conform", world);
}

TEST_CASE("a thread that cannot start while ranks connect is an error, not the end of the process") {
  check_job("no_thread", 3);
}

TEST_CASE("sums have the bits of a plain sum in the order of ranks") { check_job("bits", 3); }

TEST_CASE("a killed rank is noticed at once: idle, in the middle of bytes, in a collective") {
  check_job("killed_idle", 3, 2);
  check_job("killed_sending", 2, 1);
  check_job("killed_receiving", 2, 1);
  check_job("killed_together", 3, 2);
}

TEST_CASE("closing cuts a message short at both ends; destroying lets the last words through") {
  check_job("closed_midway", 2);
  check_job("last_words", 2);
}

TEST_CASE("a stopped rank is waited for until the limit, and named") {
  check_job("stopped", 2, 1);
  check_job("stopped_store", 2, 0);
}

TEST_CASE("a store whose host is dead is an error at once") { check_job("killed_store", 2, 0); }

TEST_CASE("a restarted rank joins again; its old channels stay broken") {
  const Job job{"restarted"};
  dvla::io::ChildResult other;
  std::thread first([&] { other = job.rank(0, 2); });
  CHECK(job.rank(1, 2).exit_code == 128 + SIGKILL);
  const auto again = job.rank(1, 2);
  first.join();
  CHECK(again.out == "");
  CHECK(again.exit_code == 0);
  CHECK(other.out == "");
  CHECK(other.exit_code == 0);
}

TEST_CASE("nodes come from host names, or DVLA_HOST_ID") {
  const Job job{"nodes"};
  std::vector<std::thread> threads;
  std::vector<dvla::io::ChildResult> results(3);
  for (int rank = 0; rank < 3; ++rank)
    threads.emplace_back([&, rank] {
      results[static_cast<std::size_t>(rank)] =
          job.rank(rank, 3, {rank == 1 ? "DVLA_HOST_ID=right" : "DVLA_HOST_ID=left"});
    });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result.out == "");
  for (const auto& result : results) CHECK(result.exit_code == 0);
}

TEST_CASE("the store at an IPv6 address in brackets") {
  Job job{"conform"};
  job.variables = {"MASTER_ADDR=[::1]"};
  for (const auto& result : job.run(2)) {
    CHECK(result.out == "");
    CHECK(result.exit_code == 0);
  }
}

TEST_CASE("a store whose name does not resolve is an error at once that says so") {
  Job job{"conform"};
  job.variables = {"MASTER_ADDR=nowhere.invalid"};
  job.join_limit = 1h;
  for (int rank = 0; rank < 2; ++rank) {
    const auto result = job.rank(rank, 2);
    CHECK(result.exit_code == 2);
    CHECK(result.out.starts_with(
        "'nowhere.invalid', the address of the job's store, does not resolve on rank " +
        std::to_string(rank) + "'s machine: "));
    CHECK(result.out.find("; set MASTER_ADDR to a name or address of rank 0's machine") != std::string::npos);
  }
  job.variables = {"DVLA_WORLD_SIZE=3", "DVLA_FIRST_RANK=1", "DVLA_STORE=nowhere.invalid:1"};
  CHECK(job.rank(0, 1).out.find("; set DVLA_STORE to a name") != std::string::npos);
}

TEST_CASE("two machines of one host name are two, and each is reached at its own address") {
  // Two network namespaces of this machine, which share its host name. Needs root and iproute2.
  const std::string name = "dvla" + std::to_string(::getpid());
  const auto shell = [&](const std::string& script) {
    return dvla::io::run_child({"sh", "-ec", "a=" + name + "a b=" + name + "b\n" + script}, {}, job_limit);
  };
  const auto made = shell(
      "ip netns add $a; ip netns add $b\n"
      "ip link add $a netns $a type veth peer name $b netns $b\n"
      "ip -n $a addr add 10.77.0.1/24 dev $a; ip -n $b addr add 10.77.0.2/24 dev $b\n"
      "for n in $a $b; do ip -n $n link set lo up; ip -n $n link set $n up; done");
  if (made.exit_code == 0) {
    Job job{"two_machines"};
    std::vector<std::thread> threads;
    std::vector<dvla::io::ChildResult> results(3);
    for (int rank = 0; rank < 3; ++rank)
      threads.emplace_back([&, rank] {
        Job here = job;
        here.before = {"ip", "netns", "exec", name + (rank == 0 ? "a" : "b")};
        results[static_cast<std::size_t>(rank)] = here.rank(rank, 3, {"MASTER_ADDR=10.77.0.1"});
      });
    for (auto& thread : threads) thread.join();
    for (const auto& result : results) CHECK(result.out == "");
    for (const auto& result : results) CHECK(result.exit_code == 0);
    // Told that they are one, they cannot meet, and the sentence names what says so.
    job.role = "meet";
    job.variables = {"DVLA_HOST_ID=one", "MASTER_ADDR=10.77.0.1"};
    std::thread first([&] {
      Job here = job;
      here.before = {"ip", "netns", "exec", name + "a"};
      results[0] = here.rank(0, 2);
    });
    job.before = {"ip", "netns", "exec", name + "b"};
    results[1] = job.rank(1, 2);
    first.join();
    for (int rank = 0; rank < 2; ++rank)
      for (const char* part : {"it listens on 127.0.0.1", "GLOO_SOCKET_IFNAME", "DVLA_HOST_ID"}) {
        CAPTURE(results[static_cast<std::size_t>(rank)].out);
        CHECK(results[static_cast<std::size_t>(rank)].out.find(part) != std::string::npos);
      }
  } else {
    MESSAGE("left out: " << made.err);
  }
  shell("ip netns del $a; ip netns del $b");
}

TEST_CASE("who joined a job knows when it has been started again beside the same store") {
  c10d::TCPStoreOptions options;  // as torchrun's agent hosts it
  options.port = static_cast<std::uint16_t>(free_port());
  options.isServer = true;
  options.waitWorkers = false;
  const c10d::TCPStore agent("127.0.0.1", options);
  Launch main, rollout;
  main.world = rollout.world = 2;
  main.port = rollout.port = options.port;
  main.store_is_hosted = true;
  rollout.started = 1;
  rollout.rank = 1;
  rollout.joins = true;
  const auto start = [&](const std::string& attempt) {
    main.attempt = attempt;
    auto joined =
        std::async(std::launch::async, [&] { return std::make_unique<C10dCluster>(rollout, long_enough); });
    auto first = std::make_unique<C10dCluster>(main, long_enough);
    return std::pair(std::move(first), joined.get());
  };
  const auto [first, joined] = start("job.0");
  CHECK(first->topology().joined == std::vector<int>{1});
  CHECK(joined->topology().joined == std::vector<int>{1});
  joined->put("life", "one");
  CHECK_FALSE(joined->superseded());
  CHECK_FALSE(joined->has(dvla::end_of_job));

  main.attempt = "job.1";
  auto again =
      std::async(std::launch::async, [&] { return std::make_unique<C10dCluster>(main, long_enough); });
  CHECK_NOTHROW(joined->get(dvla::end_of_job, long_enough));  // where it would wait for the others
  CHECK(joined->superseded());
  const auto rejoined = std::make_unique<C10dCluster>(rollout, long_enough);
  CHECK_FALSE(rejoined->superseded());
  CHECK_FALSE(rejoined->has("life"));
  CHECK_FALSE(rejoined->has(dvla::end_of_job));
  again.get()->put("life", "two");
  CHECK(rejoined->get("life", long_enough) == "two");
}

TEST_CASE("a job that cannot start says why, on every rank") {
  Job job{"conform"};
  job.join_limit = 1500ms;
  const std::string where = "127.0.0.1:" + std::to_string(job.port);
  auto alone = job.rank(0, 2);
  CHECK(alone.exit_code == 2);
  CHECK(alone.out == "rank 0 waited 1.5 s for rank 1 of 2 to join the job at " + where + "\n");
  CHECK(alone.err == "");
  alone = job.rank(1, 2);
  CHECK(alone.exit_code == 2);
  CHECK(alone.out == "rank 1 waited 1.5 s for the job's store at " + where + ", which rank 0 hosts\n");
  CHECK(alone.err == "");

  job.join_limit = 10s;
  std::thread smaller([&] {
    const auto result = job.rank(0, 2);
    CHECK(result.exit_code == 2);
    CHECK(result.out == "WORLD_SIZE is 2 on rank 0 and 3 on rank 1; it must be the same on every rank\n");
  });
  const auto larger = job.rank(1, 3);
  CHECK(larger.exit_code == 2);
  CHECK(larger.out == "WORLD_SIZE is 3 on rank 1 and 2 on rank 0; it must be the same on every rank\n");
  smaller.join();

  const int taken = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(taken, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_any;
  address.sin6_port = htons(static_cast<std::uint16_t>(job.port));
  REQUIRE(::bind(taken, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(taken, 1) == 0);
  const auto busy = job.rank(0, 2);
  ::close(taken);
  CHECK(busy.exit_code == 2);
  CHECK(busy.out.starts_with("rank 0 cannot host the job's store at " + where));
  CHECK(busy.out.find("set MASTER_PORT to a free port") != std::string::npos);

  CHECK(job.rank(0, 1, {"GLOO_SOCKET_IFNAME=nothere0"})
            .out.find("set GLOO_SOCKET_IFNAME to the network interface") != std::string::npos);
  CHECK(job.rank(0, 1, {"GLOO_SOCKET_IFNAME=lo"}).exit_code == 0);
}

/// The suite under a launcher; 77 where there is none.
int run_under(const std::string& launcher) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string port = std::to_string(free_port());
  std::vector<std::string> command;
  if (launcher == "mpirun") {
    command = {"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", "-x", "MASTER_PORT=" + port,
               program};
  } else if (launcher == "torchrun") {
    command = {DVLA_TEST_DIR "/../scripts/torchrun",
               "--no-python",
               "--nproc-per-node",
               "3",
               "--master-port",
               port,
               program};
  } else {
    std::cout << "--launcher is '" << launcher << "'; it must be mpirun or torchrun\n";
    return 2;
  }
  command.insert(command.end(), {"--role", "conform", "20000"});
  const auto result = dvla::io::run_child(command, {}, 100s);
  if (result.exit_code == 127) {
    std::cout << "SKIPPED: " << launcher << " does not run here (scripts/setup)\n" << result.err;
    return 77;
  }
  std::cout << result.out << result.err;
  return result.exit_code;
}

}  // namespace

int main(int count, char** words) {
  if (count == 4 && words[1] == std::string("--role"))
    return run_rank(words[2], std::chrono::milliseconds(std::stoi(words[3])));
  if (count == 3 && words[1] == std::string("--launcher")) return run_under(words[2]);
  return doctest::Context(count, words).run();
}
