#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "dvla/io/run_folder.hpp"
#include "temporary_folder.hpp"

using dvla::io::RunFolder;
using dvla::io::RunFolderMode;
using namespace dvla_test;

TEST_CASE("a fresh run has its folder and its fixed file names") {
  TemporaryFolder root;
  const RunFolder run = RunFolder::open(root / "runs", "push-1.a_B", RunFolderMode::fresh);
  CHECK(run.folder == root / "runs/push-1.a_B");
  CHECK(run.trace == run.folder / "trace.json");
  CHECK(run.success_svg == run.folder / "success.svg");
  CHECK(run.before_gif == run.folder / "before.gif");
  CHECK(run.after_gif == run.folder / "after.gif");
  CHECK(run.config == run.folder / "config.json");
  CHECK(run.report == run.folder / "report.json");
  CHECK(std::filesystem::is_directory(run.checkpoint));
  CHECK(run.events.filename().string().starts_with("events.out.tfevents."));
  CHECK(files_in(run.folder) == 2);  // checkpoint/ and the lock
}

TEST_CASE("names that could leave the folder or hide are refused") {
  TemporaryFolder root;
  for (const std::string& name :
       {std::string(), std::string("a/b"), std::string(".."), std::string(".hidden"), std::string("-flag"),
        std::string("a b"), std::string("a\nb"), std::string("a\0b", 3), std::string("\xc3\xa4"),
        std::string("\xff"), std::string(101, 'a')}) {
    CAPTURE(name);
    const std::string why =
        message_of<dvla::ConfigError>([&] { RunFolder::open(root.path(), name, RunFolderMode::fresh); });
    CHECK(why.starts_with("run.name is '"));
    CHECK(contains(why, "; it must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter"));
    CHECK(std::none_of(why.begin(), why.end(), [](char c) { return (c >= 0 && c < ' ') || c == '\xff'; }));
  }
  CHECK(files_in(root.path()) == 0);
  CHECK_NOTHROW(RunFolder::open(root.path(), std::string(100, 'a'), RunFolderMode::fresh));
}

TEST_CASE(
    "a folder in use is refused unless the mode allows it; resume keeps, overwrite clears only its own "
    "files") {
  TemporaryFolder root;
  RunFolder first = RunFolder::open(root.path(), "r", RunFolderMode::fresh);
  first.lock.release();
  write_text(first.events, "e");
  write_text(first.report, "r");
  write_text(first.folder / "notes.txt", "mine");
  write_text(first.folder / "success.csv", "c");
  write_text(first.checkpoint / "step-3.safetensors", "s");
  CHECK(contains(
      message_of<dvla::ConfigError>([&] { RunFolder::open(root.path(), "r", RunFolderMode::fresh); }),
      "is not empty; choose another name, or ask to resume or to overwrite it"));

  RunFolder resumed = RunFolder::open(root.path(), "r", RunFolderMode::resume);
  resumed.lock.release();
  CHECK(resumed.events != first.events);
  CHECK(resumed.events.filename() > first.events.filename());
  CHECK(std::filesystem::exists(first.checkpoint / "step-3.safetensors"));

  RunFolder::open(root.path(), "r", RunFolderMode::overwrite);
  CHECK(read_text(first.folder / "notes.txt") == "mine");
  CHECK(files_in(first.folder) == 2);  // notes.txt and checkpoint/
  CHECK(files_in(first.checkpoint) == 0);
}

TEST_CASE("there must be something to resume, and the name must not be a file") {
  TemporaryFolder root;
  CHECK(contains(
      message_of<dvla::ConfigError>([&] { RunFolder::open(root.path(), "r", RunFolderMode::resume); }),
      "nothing to resume"));
  write_text(root / "file", "x");
  CHECK(contains(
      message_of<dvla::ConfigError>([&] { RunFolder::open(root.path(), "file", RunFolderMode::overwrite); }),
      "is not a folder"));
  CHECK(contains(message_of<dvla::Error>([&] { RunFolder::open(root / "file", "r", RunFolderMode::fresh); }),
                 "Not a directory"));
  CHECK_NOTHROW(RunFolder::open(root.path(), "new", RunFolderMode::overwrite));
}

TEST_CASE("while a run is at work in a folder no other one is let in, however it is asked for") {
  TemporaryFolder root;
  for (const RunFolderMode mode : {RunFolderMode::overwrite, RunFolderMode::resume}) {
    RunFolder live = RunFolder::open(root.path(), "r", RunFolderMode::overwrite);
    write_text(live.report, "r");
    const auto refused = [&] {
      return message_of<dvla::ConfigError>([&] { RunFolder::open(root.path(), "r", mode); });
    };
    CHECK(refused() == "run name 'r': another run is at work in '" + live.folder.string() +
                           "'; wait until it ends, stop it, or choose another name");
    CHECK(read_text(live.report) == "r");
    CHECK(refused() != "");  // who was refused has not let go of another's lock
    const RunFolder moved = std::move(live);
    CHECK(refused() != "");
  }
  CHECK(files_in(root / "r") == 2);  // report.json and checkpoint/
  CHECK_NOTHROW(RunFolder::open(root.path(), "r", RunFolderMode::resume));
}

TEST_CASE("a process that is killed lets go of its folder") {
  TemporaryFolder root;
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunFolder mine = RunFolder::open(root.path(), "r", RunFolderMode::fresh);
    if (::write(ready[1], "x", 1) == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  CHECK_THROWS_AS(RunFolder::open(root.path(), "r", RunFolderMode::overwrite), dvla::ConfigError);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(std::filesystem::exists(root / "r" / dvla::io::FolderLock::file_name));  // nobody has tidied up
  CHECK_NOTHROW(RunFolder::open(root.path(), "r", RunFolderMode::overwrite));
  ::close(ready[0]);
  ::close(ready[1]);
}
