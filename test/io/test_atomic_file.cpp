#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>

#include "dvla/io/atomic_file.hpp"
#include "temporary_folder.hpp"

using dvla::io::AtomicFile;
using namespace dvla_test;

TEST_CASE("a committed file holds what was written and leaves no temporary behind") {
  TemporaryFolder folder;
  dvla::io::write_file(folder / "a", "first");
  dvla::io::write_file(folder / "a", "second");
  CHECK(read_text(folder / "a") == "second");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("without commit the old file stays and the temporary goes") {
  TemporaryFolder folder;
  write_text(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new");
    CHECK(files_in(folder.path()) == 2);
    CHECK(read_text(folder / "a") == "old");
  }
  CHECK(read_text(folder / "a") == "old");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a write that fails half-way leaves the old file, removes the temporary, and says why") {
  TemporaryFolder folder;
  write_text(folder / "a", "old");
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{4096, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string why =
      message_of<dvla::Error>([&] { dvla::io::write_file(folder / "a", std::string(10000, 'x')); });
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK(contains(why, (folder / "a").string()));
  CHECK(contains(why, "File too large"));
  CHECK(read_text(folder / "a") == "old");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a rename that fails removes the temporary and names the path") {
  TemporaryFolder folder;
  std::filesystem::create_directory(folder / "taken");
  const std::string why = message_of<dvla::Error>([&] { dvla::io::write_file(folder / "taken", "x"); });
  CHECK(contains(why, (folder / "taken").string()));
  CHECK(contains(why, "Is a directory"));
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a folder that is missing is reported at once") {
  TemporaryFolder folder;
  const std::string why = message_of<dvla::Error>([&] { AtomicFile file(folder / "no/such/file"); });
  CHECK(contains(why, "No such file or directory"));
  CHECK(contains(message_of<dvla::Error>([&] { AtomicFile file(folder / "name/"); }), "give a file name"));
}

TEST_CASE("a file that was committed takes nothing more") {
  TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.commit();
  CHECK_THROWS_AS(file.write("x"), dvla::Error);
  CHECK_THROWS_AS(file.commit(), dvla::Error);
  CHECK(read_text(folder / "a").empty());
}

TEST_CASE("two writers of one path do not disturb each other; the last commit wins") {
  TemporaryFolder folder;
  AtomicFile one(folder / "a"), two(folder / "a");
  one.write("one");
  two.write("two");
  two.commit();
  one.commit();
  CHECK(read_text(folder / "a") == "one");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a bare file name is written to the current folder") {
  TemporaryFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  dvla::io::write_file("bare", "x");
  std::filesystem::current_path(before);
  CHECK(read_text(folder / "bare") == "x");
}
