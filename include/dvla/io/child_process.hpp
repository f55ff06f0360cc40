// Runs a program to its end with a deadline and collects what it prints. No shell is involved: the arguments
// are handed over as they are. Standard input is /dev/null. Does not stream and does not feed input.
#pragma once

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <initializer_list>
#include <thread>
#include <vector>

#include "dvla/io/file_descriptor.hpp"

namespace dvla::io {

namespace detail {

/// A descriptor that a program is given, and the number by which it knows it.
struct Given {
  int number, descriptor;
};

/// Starts arguments[0] (found on PATH) in `folder`, as the leader of a process group, with /dev/null as standard
/// input and signals as a fresh program expects them. 0, or the errno that says why not.
inline int spawn(pid_t& child, const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                 std::initializer_list<Given> descriptors) {
  struct SpawnSettings {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    SpawnSettings() {
      posix_spawn_file_actions_init(&actions);
      posix_spawnattr_init(&attributes);
    }
    ~SpawnSettings() {
      posix_spawn_file_actions_destroy(&actions);
      posix_spawnattr_destroy(&attributes);
    }
  } settings;
  posix_spawn_file_actions_addopen(&settings.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  for (const Given& each : descriptors)
    posix_spawn_file_actions_adddup2(&settings.actions, each.descriptor, each.number);
  posix_spawn_file_actions_addchdir_np(&settings.actions, folder.empty() ? "." : folder.c_str());
  sigset_t none, usual;
  sigemptyset(&none);
  sigemptyset(&usual);
  for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGCHLD}) sigaddset(&usual, signal);
  posix_spawnattr_setsigmask(&settings.attributes, &none);
  posix_spawnattr_setsigdefault(&settings.attributes, &usual);
  posix_spawnattr_setpgroup(&settings.attributes, 0);  // its children die with it
  posix_spawnattr_setflags(&settings.attributes,
                           POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  return ::posix_spawnp(&child, argv[0], &settings.actions, &settings.attributes, argv.data(), environ);
}

}  // namespace detail

struct ChildResult {
  int exit_code = 0;  ///< 128 + signal number when a signal ended it; 127 when there is no such program
  std::string out;
  std::string err;
};

/// Runs arguments[0] (found on PATH) in `folder`. Throws DeadlineError after killing the program and its
/// process group when it takes longer than `deadline`, Error when it prints more than `max_output` bytes or
/// cannot be started. Thread-safe; one helper thread lives as long as the call.
inline ChildResult run_child(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                             std::chrono::milliseconds deadline,
                             std::size_t max_output = std::size_t{64} << 20) {
  if (arguments.empty()) throw Error("cannot run a program: no name is given");
  const std::string& program = arguments[0];
  struct Pipe {
    detail::FileDescriptor read, write;
    explicit Pipe(const std::string& name) {
      std::array<int, 2> ends{};
      if (::pipe2(ends.data(), O_CLOEXEC) != 0) detail::throw_errno("make a pipe to run", name);
      read = detail::FileDescriptor(ends[0]);
      write = detail::FileDescriptor(ends[1]);
    }
  };
  Pipe out(program), err(program), ended(program);

  const auto until = std::chrono::steady_clock::now() + deadline;
  pid_t child = -1;
  const int code = detail::spawn(child, arguments, folder,
                                 {{STDOUT_FILENO, out.write.get()}, {STDERR_FILENO, err.write.get()}});
  out.write.close();
  err.write.close();
  if (code == ENOENT && std::filesystem::is_directory(folder.empty() ? "." : folder))
    return {127, "", program + ": not found on PATH"};
  if (code != 0) detail::throw_errno("run the program", program, code);

  // The waiter leaves the child unreaped (WNOWAIT), so its id stays ours until waitpid: kill never hits
  // another.
  struct Running {
    pid_t child;
    std::jthread waiter{};
    int status = 0;

    bool reap() {
      if (waiter.joinable()) waiter.join();
      pid_t reaped = -1;
      do reaped = ::waitpid(child, &status, 0);
      while (reaped < 0 && errno == EINTR);
      return std::exchange(child, -1) == reaped;
    }
    ~Running() {  // Left early, by an exception: nothing of the program may stay.
      if (child < 0) return;
      ::kill(-child, SIGKILL);
      reap();
    }
  } process{child};
  process.waiter = std::jthread([&ended, child] {
    siginfo_t info{};
    while (::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
    }
    ended.write.close();
  });

  ChildResult result;
  const auto drain = [&](detail::FileDescriptor& from, std::string& to) {
    std::array<char, 16384> buffer;
    const ssize_t count = ::read(from.get(), buffer.data(), buffer.size());
    if (count > 0) to.append(buffer.data(), static_cast<std::size_t>(count));
    if (count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN)) from.close();
    return count > 0;
  };
  const auto check_size = [&] {
    if (result.out.size() + result.err.size() > max_output)
      throw Error("the program '" + program + "' printed more than " + std::to_string(max_output) +
                  " bytes and was killed");
  };
  ::fcntl(out.read.get(), F_SETFL, O_NONBLOCK);
  ::fcntl(err.read.get(), F_SETFL, O_NONBLOCK);
  for (bool running = true; running;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    // poll ignores negative descriptors, so closed ends need no care.
    std::array<pollfd, 3> waits{
        {{ended.read.get(), POLLIN, 0}, {out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}}};
    if (left > 0) ::poll(waits.data(), waits.size(), static_cast<int>(std::min<std::int64_t>(left, 1 << 30)));
    if (waits[1].revents != 0) drain(out.read, result.out);
    if (waits[2].revents != 0) drain(err.read, result.err);
    running = waits[0].revents == 0;
    if (running && left <= 0) {
      throw DeadlineError("the program '" + program + "' did not end within " +
                          std::to_string(deadline.count()) + " ms and was killed");
    }
    check_size();
  }
  // Ended: take what is still in the pipes, but don't wait for grandchildren that hold them open.
  while (drain(out.read, result.out)) check_size();
  while (drain(err.read, result.err)) check_size();
  if (!process.reap()) detail::throw_errno("learn the exit code of", program);
  result.exit_code = WIFEXITED(process.status) ? WEXITSTATUS(process.status) : 128 + WTERMSIG(process.status);
  return result;
}

}  // namespace dvla::io
