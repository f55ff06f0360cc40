// dvla-test: tsan
#include <doctest/doctest.h>

#include "dvla/io/child_process.hpp"
#include "temporary_folder.hpp"

using dvla::io::run_child;
using namespace dvla_test;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST_CASE("output, errors and exit code come back") {
  const auto result = run_child({"sh", "-c", "echo out; echo err >&2; exit 3"}, ".", seconds(30));
  CHECK(result.out == "out\n");
  CHECK(result.err == "err\n");
  CHECK(result.exit_code == 3);
  CHECK(run_child({"sh", "-c", "kill -TERM $$"}, ".", seconds(30)).exit_code == 128 + SIGTERM);
}

TEST_CASE("arguments reach the program as they are, and it runs in its folder") {
  TemporaryFolder folder;
  CHECK(run_child({"printf", "%s|", "a b", "$HOME", "`id`;"}, "", seconds(30)).out == "a b|$HOME|`id`;|");
  write_text(folder / "here", "");
  CHECK(run_child({"ls"}, folder.path(), seconds(30)).out == "here\n");
}

TEST_CASE("a program that is missing is exit code 127") {
  CHECK(run_child({"dvla-no-such-program"}, ".", seconds(30)).exit_code == 127);
}

TEST_CASE("a program that takes too long is killed with its children") {
  const std::string why = message_of<dvla::DeadlineError>([] {
    run_child({"sh", "-c", "sleep 1000 & sleep 1000"}, ".", milliseconds(100));
  });
  CHECK(contains(why, "'sh' did not end within 100 ms"));
}

TEST_CASE("a program that closes its output and stays is killed too") {
  CHECK_THROWS_AS(run_child({"sh", "-c", "exec >&- 2>&-; exec sleep 1000"}, ".", milliseconds(100)),
                  dvla::DeadlineError);
}

TEST_CASE("output is bounded") {
  CHECK(contains(message_of<dvla::Error>([] { run_child({"yes"}, ".", seconds(30), 100'000); }),
                 "more than 100000"));
  CHECK(run_child({"head", "-c", "300000", "/dev/zero"}, ".", seconds(30)).out.size() == 300'000);
}

TEST_CASE("a grandchild that keeps the pipes open does not hold up the caller") {
  CHECK(run_child({"sh", "-c", "sleep 5 & echo done"}, ".", seconds(3)).out == "done\n");
}

TEST_CASE("several programs at once do not disturb each other") {
  std::array<int, 4> codes{};
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < codes.size(); ++i)
      threads.emplace_back([&codes, i] {
        for (int repeat = 0; repeat < 20; ++repeat)
          codes[i] = run_child({"sh", "-c", "exit " + std::to_string(i)}, ".", seconds(30)).exit_code;
      });
  }
  CHECK(codes == std::array<int, 4>{0, 1, 2, 3});
}
