// dvla-test: torch long
// Frozen weights that are views of a mapped checkpoint are in memory once, however many processes compute with them: two open the
// same file of 1 GB as the base of their adapters and read all of it, and the kernel says how much each has of it (smaps: Pss is a
// page's size divided by the processes that have it). Writes 1.01 GB; skipped where less than 3 GB are free.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/testing/model.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;

namespace {

using Base = TinyVlaModel<TokenHead>;

ModelInputs some_inputs() {
  ModelInputs inputs;
  inputs.observation.proprioception = 7;
  inputs.observation.instructions = {"push the cube to the left goal"};
  inputs.action.dimensions = 2;
  inputs.chunk = 4;
  return inputs;
}
/// 12 blocks of 10 * 2048^2 bfloat16 weights, about.
LoraKnobs<TokenHeadKnobs> large() {
  LoraKnobs<TokenHeadKnobs> knobs;
  knobs.width = 2048;
  knobs.blocks = 12;
  knobs.attention_heads = 16;
  knobs.dtype = Dtype::bf16;
  knobs.lora_rank = 4;
  return knobs;
}

/// Bytes of a process: of the file's mapping what is there and this process's share of it; of all memory the
/// share, and what is no file's.
struct Figures {
  std::size_t resident = 0, share = 0, all_share = 0, anonymous = 0;
};

/// Adds up a field of /proc/self/`table`, over the mappings of `path`, or all of them where it is empty.
std::size_t bytes_of(const char* table, const std::string& field, const std::string& path) {
  std::ifstream lines(std::string("/proc/self/") + table);
  std::size_t sum = 0;
  bool counts = path.empty();
  for (std::string line; std::getline(lines, line);) {
    const std::string name = line.substr(0, line.find(' '));
    if (name.find('-') != name.npos && !name.ends_with(':')) counts = path.empty() || line.ends_with(path);
    if (counts && name == field + ":") sum += std::stoull(line.substr(name.size())) * 1024;
  }
  return sum;
}

/// A process of its own that does `work(in, out)`, with a pipe each way.
struct Child {
  template <class Work>
  explicit Child(Work work) {
    int up[2], down[2];
    if (::pipe(up) != 0 || ::pipe(down) != 0) throw Error("pipe failed");
    pid = ::fork();
    if (pid == 0) {
      ::close(up[0]);
      ::close(down[1]);
      int code = 1;
      try {
        work(down[0], up[1]);
        code = 0;
      } catch (const std::exception& error) {
        std::cerr << "child: " << error.what() << std::endl;
      }
      ::_exit(code);
    }
    ::close(up[1]);
    ::close(down[0]);
    from = up[0], to = down[1];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid > 0 && !ended) ::kill(pid, SIGKILL), ::waitpid(pid, nullptr, 0);
    ::close(from);
    ::close(to);
  }
  /// False: it ended, or said nothing for five minutes.
  template <class Value>
  bool read(Value& value) const {
    pollfd ready{from, POLLIN, 0};
    return ::poll(&ready, 1, 300'000) == 1 && ::read(from, &value, sizeof value) == sizeof value;
  }
  void tell() const { CHECK(::write(to, "", 1) == 1); }
  /// Having been told all: whether it did its work.
  bool succeeds() {
    char end = 0;
    if (read(end)) return false;
    int status = 1;
    ended = ::waitpid(pid, &status, WNOHANG) == pid;
    for (int i = 0; !ended && i < 600; ++i) {
      ::usleep(100'000);
      ended = ::waitpid(pid, &status, WNOHANG) == pid;
    }
    return ended && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  pid_t pid = -1;
  int from = -1, to = -1;
  bool ended = false;
};
void wait_for_word(int in) {
  char word = 0;
  if (::read(in, &word, 1) != 1) throw Error("the parent has gone");
}
template <class Value>
void say(int out, const Value& value) {
  if (::write(out, &value, sizeof value) != sizeof value) throw Error("the parent does not read");
}

}  // namespace

TEST_CASE("two processes that compute with the same mapped checkpoint of 1 GB have it in memory once") {
  const dvla_test::TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.safetensors";
  {
    Child writer([&](int, int) {
      const Base base(large(), some_inputs(), 3);
      io::write_safetensors(path, weights_to_write(base, WeightSet::all));
    });
    REQUIRE(writer.succeeds());
  }
  const std::size_t size = std::filesystem::file_size(path);
  REQUIRE(size > 1'000'000'000);
  REQUIRE(size < 2'000'000'000);

  const auto opens = [&](int in, int out) {
    auto knobs = large();
    knobs.base_checkpoint = path.string();
    const ModelInputs inputs = some_inputs();
    LoraModel<Base> model(knobs, inputs, 4);
    for (const Parameter& each : model.parameters())
      if (each.mapped == each.trainable) throw Error(each.name + " is not where it should be");
    testing::detail::ModelBatch<LoraModel<Base>> batch(model, inputs, 2);
    batch.act(model, Decoding::mode, 1);
    model.hold_gradients(true);
    batch.accumulate(model, batch.order);
    say(out, 'r');
    wait_for_word(in);  // the other has come as far
    const std::string name = path.string();
    say(out, Figures{bytes_of("smaps", "Rss", name), bytes_of("smaps", "Pss", name),
                     bytes_of("smaps_rollup", "Pss", ""), bytes_of("smaps_rollup", "Anonymous", "")});
    wait_for_word(in);  // so has the other
  };
  Child one(opens), two(opens);
  char ready = 0;
  for (const Child* each : {&one, &two}) REQUIRE(each->read(ready));
  Figures first, second;
  for (const Child* each : {&one, &two}) each->tell();
  REQUIRE(one.read(first));
  REQUIRE(two.read(second));
  for (const Child* each : {&one, &two}) each->tell();
  CHECK(one.succeeds());
  CHECK(two.succeeds());

  const auto gb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1e9; };
  std::printf(
      "file %.3f GB; of its mapping resident %.3f and %.3f GB, shares %.3f and %.3f GB; all shares %.3f "
      "and %.3f GB, of which no file's %.3f and %.3f GB\n",
      gb(size), gb(first.resident), gb(second.resident), gb(first.share), gb(second.share),
      gb(first.all_share), gb(second.all_share), gb(first.anonymous), gb(second.anonymous));
  for (const Figures& each : {first, second}) {
    CHECK(gb(each.resident) > 0.95 * gb(size));   // it reads all of it
    CHECK(gb(each.anonymous) < 0.35 * gb(size));  // and copies none of it
  }
  CHECK(gb(first.share + second.share) > 0.95 * gb(size));
  CHECK(gb(first.share + second.share) < 1.05 * gb(size));
  CHECK(gb(first.all_share + second.all_share) < 1.7 * gb(size));
}

int main(int argc, char** argv) {
  std::error_code unknown;
  const auto where = std::filesystem::temp_directory_path();
  const auto space = std::filesystem::space(where, unknown);
  if (unknown || space.available < 3'000'000'000) {
    std::cout << "skipped: " << where << " has " << space.available / 1'000'000
              << " MB left, and a checkpoint of 1 GB is not written where there are less than 3000\n";
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
