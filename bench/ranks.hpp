// Ranks as processes, for benches of what crosses between processes: the program forks them before it touches
// any library, asks them to do something, all at the same time, and keeps the time until all have answered.
// Needs no torch; what a rank does with its Launch (a C10dCluster, say) is the bench's.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "dvla/placement/launch.hpp"

namespace bench {

[[noreturn]] inline void give_up(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::_Exit(1);
}

/// A stream socket, as plain as it gets. Whoever finds the other end gone ends its process.
struct Stream {
  int file = -1;
  void send(const void* bytes, std::size_t size) const {
    for (const char* at = static_cast<const char*>(bytes); size > 0;) {
      const ssize_t sent = ::send(file, at, size, MSG_NOSIGNAL);
      if (sent <= 0) give_up("a bench's process lost its peer");
      at += sent;
      size -= static_cast<std::size_t>(sent);
    }
  }
  void receive(void* bytes, std::size_t size) const {
    for (char* at = static_cast<char*>(bytes); size > 0;) {
      const ssize_t got = ::recv(file, at, size, MSG_WAITALL);
      if (got <= 0) give_up("a bench's process lost its peer");
      at += got;
      size -= static_cast<std::size_t>(got);
    }
  }
};

/// A socket that listens on a free port of loopback.
struct Listener {
  Listener() {
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(file, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(file, 16) != 0 ||
        ::getsockname(file, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      give_up("no port of loopback is free");
  }
  int port() const { return ntohs(address.sin_port); }
  Stream accept() const { return {::accept(file, nullptr, nullptr)}; }
  Stream connect() const {
    const int other = ::socket(AF_INET, SOCK_STREAM, 0);
    if (::connect(other, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      give_up("a port of loopback cannot be reached");
    return {other};
  }
  int file = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
};

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// `Command` and `Answer` are trivially copyable.
template <class Command, class Answer>
class Ranks {
 public:
  using Serve = std::function<Answer(const Command&)>;

  /// `start(launch)` makes a rank, in its own process; what it returns answers commands there.
  Ranks(int world, const std::function<Serve(const dvla::Launch&)>& start) {
    static_assert(std::is_trivially_copyable_v<Command> && std::is_trivially_copyable_v<Answer>);
    const Listener store;  // whose port is free
    ::close(store.file);
    std::fflush(nullptr);
    for (int rank = 0; rank < world; ++rank) {
      int pair[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) give_up("no socket pair");
      const pid_t child = ::fork();
      if (child < 0) give_up("no process");
      if (child == 0) {
        for (const Stream& other : lines_) ::close(other.file);
        ::close(pair[0]);
        dvla::Launch launch;
        launch.rank = rank;
        launch.world = world;
        launch.port = store.port();
        launch.host = "this machine";
        live({pair[1]}, launch, start);
      }
      ::close(pair[1]);
      lines_.push_back({pair[0]});
      children_.push_back(child);
    }
    for (const Stream& line : lines_) take<char>(line);
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;
  /// The last rank ends first: rank 0 hosts the store.
  ~Ranks() {
    for (std::size_t rank = lines_.size(); rank-- > 0;) {
      const char more = 0;
      lines_[rank].send(&more, 1);
      int status = 0;
      ::waitpid(children_[rank], &status, 0);
      if (status != 0) give_up("rank " + std::to_string(rank) + " of a bench ended badly");
      ::close(lines_[rank].file);
    }
  }

  /// Returns what each rank answered, and in `seconds` how long it took until all had.
  std::vector<Answer> ask(const Command& command, double* seconds = nullptr) {
    const double start = now();
    for (const Stream& line : lines_) {
      const char more = 1;
      line.send(&more, 1);
      line.send(&command, sizeof command);
    }
    std::vector<Answer> answers;
    for (const Stream& line : lines_) answers.push_back(take<Answer>(line));
    if (seconds) *seconds = now() - start;
    return answers;
  }
  double timed(const Command& command) {
    double seconds = 0;
    ask(command, &seconds);
    return seconds;
  }

 private:
  template <class Type>
  static Type take(const Stream& line) {
    Type value{};
    line.receive(&value, sizeof value);
    return value;
  }
  [[noreturn]] static void live(const Stream& line, const dvla::Launch& launch,
                                const std::function<Serve(const dvla::Launch&)>& start) {
    try {
      Serve serve = start(launch);
      const char ready = 1;
      line.send(&ready, 1);
      while (take<char>(line) == 1) {
        const Answer answer = serve(take<Command>(line));
        line.send(&answer, sizeof answer);
      }
      serve = nullptr;
    } catch (const std::exception& error) {
      give_up("rank " + std::to_string(launch.rank) + ": " + error.what());
    }
    std::fflush(nullptr);
    std::_Exit(0);
  }

  std::vector<Stream> lines_;
  std::vector<pid_t> children_;
};

}  // namespace bench
