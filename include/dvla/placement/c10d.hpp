// A job of processes on LibTorch's c10d: TCPStore for the rendezvous, Gloo for channels and groups. Design:
// "Roles, processes, engines"; "Gloo is the one inside LibTorch".
// Dear to compile (10 s): included by programs alone. CMake: dvla::c10d.
#pragma once

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <csignal>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "dvla/placement/c10d_group.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/placement/launch.hpp"

namespace dvla {

/// What was joined is not the job any more: it has been started again.
class StartedAgain : public PeerError {
 public:
  using PeerError::PeerError;
};

/// Rank 0 hosts the store, unless torchrun's agent does: it leaves last, after a barrier of all who still use
/// the store. Has to outlive its channels and groups. Quiets c10d's own log unless TORCH_CPP_LOG_LEVEL is
/// set, and SIGPIPE unless the program handles it: both are errors here.
class C10dCluster final : public Cluster {
 public:
  /// Returns when every rank has joined. Throws ConfigError, PeerError, or DeadlineError that names the
  /// missing rank. `limit` is also that of put, has and count.
  C10dCluster(const Launch& launch, std::chrono::nanoseconds limit)
      : rank_(launch.rank),
        limit_(limit),
        where_(launch.store()),
        whose_(launch.joins             ? ", which this rank joins"
               : launch.store_is_hosted ? ", which torchrun hosts"
                                        : ", which rank 0 hosts") {
    if (launch.world < 1 || rank_ < 0 || rank_ >= launch.world)
      throw ConfigError("rank is ", rank_, " of ", launch.world, "; it must be from 0 to world - 1");
    settle_process();
    const auto until = detail::deadline_after(limit);
    const Route route = detail::bounded(
        limit, [launch, limit] { return route_to_store(launch, limit); },
        [&] { return detail::waited(rank_, limit, "for '", launch.address, "' to resolve"); });
    connect(launch, limit);
    try {
      join(launch, route, until);
    } catch (...) {
      let_others_know(launch);
      throw;
    }
    // Who joined may come again on another machine.
    const bool alone =
        topology_.joined.empty() && topology_.node == std::vector<int>(topology_.node.size(), 0);
    const std::string address = alone ? "127.0.0.1" : route.own;
    listens_on_ = address;
    try {
      const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
      device_ = interface && *interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                        : c10d::ProcessGroupGloo::createDeviceForHostname(address);
    } catch (const std::exception& error) {
      throw ConfigError("rank ", rank_, " cannot listen for the others on ", address, ": ",
                        detail::torch_words(error),
                        "; set GLOO_SOCKET_IFNAME to the network interface to use");
    }
  }

  int rank() const override { return rank_; }
  const Topology& topology() const override { return topology_; }
  /// For groups that torch connects. To be cloned by who uses it: a client answers one call at a time.
  c10::intrusive_ptr<c10d::Store> store() const { return store_; }

  /// Whether the job has been started again beside the store of torchrun's agent, so that this is one that
  /// has ended. No: also where the store has gone.
  bool superseded() noexcept try {
    constexpr std::chrono::seconds limit{1};
    const std::string now = detail::bounded(
        limit, [root = root_] { return current_attempt(*root->clone()); },
        [] { return DeadlineError("the job's store does not answer"); });
    return now != attempt_;
  } catch (...) {
    return false;
  }

  std::unique_ptr<Channel> channel(const std::string& name, int peer,
                                   std::chrono::nanoseconds limit) override {
    check_peer(name, peer);
    return std::make_unique<detail::C10dChannel>(
        meet("channel '" + name + "'", {std::min(rank_, peer), std::max(rank_, peer)}, limit), name, rank_,
        peer);
  }
  std::unique_ptr<Group> group(const std::string& name, const std::vector<int>& members,
                               std::chrono::nanoseconds limit) override {
    check_members(name, members);
    if (members.size() == 1) return std::make_unique<LoneGroup>(name);
    return std::make_unique<detail::C10dGroup>(meet("group '" + name + "'", members, limit), name, members,
                                               limit);
  }

  void put(const std::string& key, const std::string& value) override {
    ask(limit_, [=](c10d::Store& store) {
      store.set("text/" + key, bytes(value));
      return true;
    });
  }
  std::string get(const std::string& key, std::chrono::nanoseconds limit) override {
    return ask(
        limit,
        [=](c10d::Store& store) {
          store.wait({"text/" + key}, detail::torch_limit(limit));
          const std::vector<std::uint8_t> value = store.get("text/" + key);
          return std::string(value.begin(), value.end());
        },
        [&] { return detail::store_deadline(key, rank_, limit); });
  }
  bool has_within(const std::string& key, std::chrono::nanoseconds limit) override {
    return ask(std::min(limit, limit_), [=](c10d::Store& store) { return store.check({"text/" + key}); });
  }
  std::string put_once(const std::string& key, const std::string& value,
                       std::chrono::nanoseconds limit) override {
    return ask(limit, [=](c10d::Store& store) {
      const std::vector<std::uint8_t> there = store.compareSet("text/" + key, {}, bytes(value));
      return std::string(there.begin(), there.end());
    });
  }
  std::int64_t count(const std::string& key) override {
    return ask(limit_, [=](c10d::Store& store) { return store.add("count/" + key, 1); });
  }

 private:
  using Store = c10::intrusive_ptr<c10d::Store>;

  static void settle_process() {
    if (std::getenv("TORCH_CPP_LOG_LEVEL")) {
      c10::initLogging();
    } else {
      FLAGS_caffe2_log_level = c10::GLOG_FATAL;  // what it would say is in our exceptions
    }
    struct sigaction old {};
    if (::sigaction(SIGPIPE, nullptr, &old) == 0 && old.sa_handler == SIG_DFL) std::signal(SIGPIPE, SIG_IGN);
  }

  /// The way from this machine to the store's.
  struct Route {
    std::string own = "127.0.0.1";  ///< the address by which the others reach this machine
    bool local = true;  ///< the store is on this machine: from one to itself source is destination
  };

  void connect(const Launch& launch, std::chrono::nanoseconds limit) {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(launch.port);
    options.waitWorkers = false;
    options.timeout = detail::torch_limit(limit);
    options.isServer = rank_ == 0 && !launch.store_is_hosted;
    const auto open = [address = launch.address, options]() -> Store {
      return c10::make_intrusive<c10d::TCPStore>(address, options);
    };
    try {
      store_ = detail::bounded(limit, open, [&] {  // c10d itself may take twice its limit
        const char* hint = options.isServer ? "; MASTER_ADDR must be rank 0's machine" : "";
        return detail::waited(rank_, limit, "for the job's store at ", where_, whose_, hint);
      });
    } catch (const PeerError& error) {
      if (!options.isServer) throw lost_store(error);
      throw ConfigError("rank 0 cannot host the job's store at ", where_, ": ", error.what(),
                        "; set MASTER_PORT to a free port, from 1 to 65535, the same on every rank");
    }
    try {
      enter_attempt(launch, limit);
    } catch (const PeerError& error) {
      throw lost_store(error);
    }
  }

  /// Below the store's root each attempt at the job has a place of its own. Rank 0 says which is the newest,
  /// and in the last one's place that it has ended: who joined that one might wait there.
  void enter_attempt(const Launch& launch, std::chrono::nanoseconds limit) {
    attempt_ = launch.attempt;
    root_ = store_;
    const auto place = [root = root_](const std::string& attempt) {
      return c10::make_intrusive<c10d::PrefixStore>("dvla/" + attempt, root);
    };
    if (rank_ == 0) {
      detail::bounded(
          limit,
          [root = root_, attempt = attempt_, place] {
            const bool again = root->check({attempt_key});
            if (again && current_attempt(*root) != attempt)
              place(current_attempt(*root))->set(std::string("text/") + end_of_job, bytes(""));
            root->set(attempt_key, bytes("=" + attempt));
            return true;
          },
          [&] { return no_answer(limit); });
    } else if (launch.joins) {
      attempt_ = detail::bounded(
          limit,
          [root = root_, limit] {
            root->wait({attempt_key}, detail::torch_limit(limit));
            return current_attempt(*root);
          },
          [&] {
            return detail::waited(rank_, limit, "for rank 0 to open the job at ", where_, " that it joins");
          });
    }
    store_ = place(attempt_);
  }
  static constexpr const char* attempt_key = "dvla-attempt";
  static std::vector<std::uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }
  static std::string current_attempt(c10d::Store& root) {
    const std::vector<std::uint8_t> value = root.get(attempt_key);
    return value.empty() ? std::string() : std::string(value.begin() + 1, value.end());
  }

  void join(const Launch& launch, const Route& route, detail::Clock::time_point until) {
    const std::string world = std::to_string(launch.world), own = "host/" + std::to_string(rank_);
    const auto check_world = [&](const std::string& text, const std::string& rank) {
      const std::string theirs = text.substr(0, text.find('\n'));
      if (theirs != world)
        throw ConfigError(launch.world_variable, " is ", world, " on rank ", rank_, " and ", theirs,
                          " on rank ", rank, "; it must be the same on every rank");
    };
    if (has(own)) check_world(get(own, limit_), std::to_string(rank_) + ", which is there already");
    const std::string machine = launch.host + (launch.host_is_given || route.local ? "" : " at " + route.own);
    put(own, world + "\n" + (launch.joins ? "+" : "=") + machine);
    std::vector<std::string> hosts;
    topology_.node.clear();
    for (int rank = 0; rank < launch.world; ++rank) {
      const std::string name = std::to_string(rank);
      const auto over = [&] {
        if (launch.joins && has(end_of_job))
          throw StartedAgain("rank ", rank_, " waits in vain for rank ", name, ": the job was started again");
        return false;
      };
      const std::string text = *wait_for_text(
          *this, "host/" + name, until,
          detail::waited(rank_, limit_, "for rank ", name, " of ", world, " to join the job at ", where_)
              .what(),
          over);
      check_world(text, name);
      const std::size_t line = text.find('\n');
      if (text[line + 1] == '+') topology_.joined.push_back(rank);
      const std::string host = text.substr(line + 2);
      const auto found = std::find(hosts.begin(), hosts.end(), host);
      topology_.node.push_back(static_cast<int>(found - hosts.begin()));
      if (found == hosts.end()) hosts.push_back(host);
    }
  }

  /// The job cannot start. The others read why before the store goes with rank 0.
  void let_others_know(const Launch& launch) noexcept try {
    const auto told = [](int rank) { return "told/" + std::to_string(rank); };
    put(told(rank_), "");
    if (rank_ > 0 || launch.store_is_hosted) return;
    const auto until = detail::deadline_after(std::chrono::seconds(1));
    for (int rank = 1; rank < launch.world; ++rank)
      if (has("host/" + std::to_string(rank))) get(told(rank), detail::left(until));
  } catch (...) {  // then they see that the store is gone
  }

  /// Throws ConfigError where the store's name does not resolve. A name server that does not answer is asked
  /// again for some seconds.
  static Route route_to_store(const Launch& launch, std::chrono::nanoseconds limit) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_DGRAM;
    const auto until =
        detail::deadline_after(std::min<std::chrono::nanoseconds>(limit, std::chrono::seconds(5)));
    int refused = EAI_AGAIN;
    while ((refused = ::getaddrinfo(launch.address.c_str(), std::to_string(launch.port).c_str(), &hints,
                                    &found)) == EAI_AGAIN &&
           detail::Clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    if (refused != 0)
      throw ConfigError("'", launch.address, "', the address of the job's store, does not resolve on rank ",
                        launch.rank, "'s machine: ", ::gai_strerror(refused), "; set ",
                        launch.joins ? "DVLA_STORE" : "MASTER_ADDR",
                        " to a name or address of rank 0's machine that is known there");
    Route route;
    const int probe = ::socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    const auto text = [](const sockaddr* address, socklen_t length) {
      char host[INET6_ADDRSTRLEN] = {};
      const int error = ::getnameinfo(address, length, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
      return std::string(error == 0 ? host : "");
    };
    if (probe >= 0 && ::connect(probe, found->ai_addr, found->ai_addrlen) == 0 &&
        ::getsockname(probe, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
      const std::string here = text(reinterpret_cast<sockaddr*>(&own), size),
                        there = text(found->ai_addr, found->ai_addrlen);
      if (!here.empty()) route = {here, here == there || there.starts_with("127.")};
    }
    if (probe >= 0) ::close(probe);
    ::freeaddrinfo(found);
    return route;
  }

  /// `work(client)` with a connection to the job's store that nobody else uses meanwhile: a client serialises
  /// its calls, and a waiting one would hold up the rest. Connections are kept: c10d looks up the name of
  /// whoever connects, on either side, which takes seconds where a name server does not answer.
  /// `known`: whether the client that was taken had been connected before.
  template <class Work, class Late>
  std::invoke_result_t<Work, const Store&> with_client(std::chrono::nanoseconds limit, Work work, Late late,
                                                       bool* known = nullptr) {
    Store client;
    {
      const std::scoped_lock lock(mutex_);
      if (!idle_.empty()) {
        client = idle_.back();
        idle_.pop_back();
      }
    }
    if (known != nullptr) *known = static_cast<bool>(client);
    auto shared = std::make_shared<Store>(std::move(client));
    auto answer = detail::bounded(
        limit,
        [shared, store = store_, work = std::move(work)] {
          if (!*shared) *shared = store->clone();
          return work(*shared);
        },
        late);
    const std::scoped_lock lock(mutex_);
    idle_.push_back(*shared);
    return answer;
  }

  /// One question to the job's store. A store that has gone does not come again, and is asked no more: torch would try to
  /// connect to it until the limit.
  template <class Call, class Late>
  std::invoke_result_t<Call, c10d::Store&> ask(std::chrono::nanoseconds limit, Call call, Late late) {
    {
      const std::scoped_lock lock(mutex_);
      if (!gone_.empty()) throw PeerError(gone_);
    }
    bool known = false;
    try {
      return with_client(
          limit, [call](const Store& client) { return call(*client); }, late, &known);
    } catch (const PeerError& error) {
      const PeerError lost = lost_store(error);
      const std::scoped_lock lock(mutex_);
      if (known) gone_ = lost.what();  // a new connection may fail for want of a descriptor or a name
      throw lost;
    }
  }
  template <class Call>
  std::invoke_result_t<Call, c10d::Store&> ask(std::chrono::nanoseconds limit, Call call) {
    return ask(limit, std::move(call), [&] { return no_answer(limit); });
  }
  PeerError lost_store(const PeerError& why) const {
    return PeerError("rank ", rank_, " lost the job's store at ", where_, whose_, ": ", why.what());
  }
  DeadlineError no_answer(std::chrono::nanoseconds limit) const {
    return detail::waited(rank_, limit, "for the job's store at ", where_, whose_, ", to answer");
  }

  /// Waits until every member has asked for the same thing, and connects them.
  std::unique_ptr<detail::Links> meet(const std::string& what, const std::vector<int>& members,
                                      std::chrono::nanoseconds limit) {
    const auto until = detail::deadline_after(limit);
    const std::string me = "rank " + std::to_string(rank_);
    std::string key = "meet/" + what;
    for (const int member : members) (key += ' ') += std::to_string(member);
    const auto here = [&](int member) { return key + "/" + std::to_string(member); };
    if (count(here(rank_)) != 1) throw Error(me, " has made ", what, " before; names must be new");
    put(here(rank_), "");
    for (const int member : members) {
      try {
        get(here(member), detail::left(until));
      } catch (const DeadlineError&) {
        throw detail::waited(rank_, limit, "for rank ", member, " to make ", what);
      }
    }
    try {
      return with_client(
          detail::left(until),
          [key, until, device = device_, size = static_cast<int>(members.size()),
           place = Roles::place(members, rank_)](const Store& client) {
            const Store own = c10::make_intrusive<c10d::PrefixStore>(key, client);  // asked while connecting
            return std::make_unique<detail::Links>(own, device, place, size, detail::left(until));
          },
          [&] { return detail::waited(rank_, limit, "to connect ", what, hint()); });
    } catch (const PeerError& error) {
      throw PeerError(me, " cannot connect ", what, ": ", error.what(), hint());
    }
  }

  /// What may be wrong where ranks know of each other and cannot connect.
  std::string hint() const {
    return "; it listens on " + listens_on_ +
           ": if the others do not reach it there, set GLOO_SOCKET_IFNAME to the interface between the "
           "machines, and DVLA_HOST_ID to another text on each machine where two have one host name";
  }

  const int rank_;
  const std::chrono::nanoseconds limit_;
  const std::string where_, whose_;
  std::string listens_on_;
  Topology topology_;
  std::string attempt_;
  Store root_, store_;  ///< root: of all attempts
  std::mutex mutex_;
  std::vector<Store> idle_;  ///< connections to the store; as many as ever asked at once
  std::string gone_;         ///< why the store answers no more; empty: it does
  std::shared_ptr<gloo::transport::Device> device_;
};

}  // namespace dvla
