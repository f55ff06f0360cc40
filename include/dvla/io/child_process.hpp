// Runs a program to its end with a deadline and collects what it prints. No shell is involved: the arguments
// are handed over as they are. Standard input is /dev/null. Does not stream and does not feed input.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

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
  for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGXFSZ, SIGCHLD}) sigaddset(&usual, signal);
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
/// cannot be started. Thread-safe.
inline ChildResult run_child(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
                             std::chrono::milliseconds deadline,
                             std::size_t max_output = std::size_t{64} << 20) {
  if (arguments.empty()) throw Error("cannot run a program: no name is given");
  const std::string& program = arguments[0];
  // It prints into files that have no name: nobody needs to read while it runs, and who it leaves behind may
  // go on printing.
  struct Output {
    detail::FileDescriptor file{::memfd_create("output of a program", MFD_CLOEXEC)};

    std::size_t size() const {
      struct stat status {};
      return ::fstat(file.get(), &status) == 0 ? static_cast<std::size_t>(status.st_size) : 0;
    }
    std::string text() const {
      std::string all(size(), '\0');
      const ssize_t count = ::pread(file.get(), all.data(), all.size(), 0);
      all.resize(static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
      return all;
    }
  } out, err;
  if (!out.file.is_open() || !err.file.is_open())
    detail::throw_errno("make room for what is printed by", program);

  const auto until = std::chrono::steady_clock::now() + deadline;
  struct Running {
    pid_t child = -1;
    int status = 0;

    void reap() {
      while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
      }
      child = -1;
    }
    ~Running() {  // Left early, by an exception: nothing of the program may stay.
      if (child < 0) return;
      ::kill(-child, SIGKILL);
      reap();
    }
  } process;
  const int code = detail::spawn(process.child, arguments, folder,
                                 {{STDOUT_FILENO, out.file.get()}, {STDERR_FILENO, err.file.get()}});
  if (code != 0) process.child = -1;
  if (code == ENOENT && std::filesystem::is_directory(folder.empty() ? "." : folder))
    return {127, "", program + ": not found on PATH"};
  if (code != 0) detail::throw_errno("run the program", program, code);

  // WNOWAIT leaves the child unreaped, so its id stays ours until waitpid: kill never hits another.
  for (bool running = true; running;) {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(process.child), &info, WEXITED | WNOHANG | WNOWAIT) != 0 &&
        errno != EINTR)
      detail::throw_errno("learn the exit code of", program);
    running = info.si_pid == 0;
    if (out.size() + err.size() > max_output)
      throw Error("the program '" + program + "' printed more than " + std::to_string(max_output) +
                  " bytes and was killed");
    if (running && std::chrono::steady_clock::now() >= until)
      throw DeadlineError("the program '" + program + "' did not end within " +
                          std::to_string(deadline.count()) + " ms and was killed");
    if (running) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  process.reap();
  return {WIFEXITED(process.status) ? WEXITSTATUS(process.status) : 128 + WTERMSIG(process.status),
          out.text(), err.text()};
}

}  // namespace dvla::io
