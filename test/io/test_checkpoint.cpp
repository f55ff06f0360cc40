// dvla-test: asan
#include <doctest/doctest.h>

#include "dvla/io/checkpoint.hpp"
#include "temporary_folder.hpp"

using namespace dvla::io;
using namespace dvla_test;

namespace {

struct State {
  std::vector<float> weight{1.0F, 2.0F, 3.0F};
  std::uint64_t rng = 42;
  Checkpoint checkpoint() const {
    return {{tensor_to_write<float>("model.w", {3}, weight),
             tensor_to_write<std::uint64_t>("rng", {}, std::span(&rng, 1))},
            {{"config", "{}"}}};
  }
};

using Steps = std::vector<std::int64_t>;

void cut(const std::filesystem::path& path) {
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
}

}  // namespace

TEST_CASE("a saved checkpoint is found and loads with tensors and texts") {
  TemporaryFolder folder;
  State state;
  const CheckpointFolder checkpoints(folder / "checkpoint");
  CHECK_FALSE(checkpoints.latest().checkpoint.has_value());
  CHECK(checkpoints.save(7, state.checkpoint()) == folder / "checkpoint/step-7.safetensors");
  const LatestCheckpoint latest = checkpoints.latest();
  REQUIRE(latest.checkpoint.has_value());
  CHECK(latest.warnings.empty());
  CHECK(latest.checkpoint->step == 7);
  CHECK(latest.checkpoint->file.span<float>("model.w")[2] == 3.0F);
  CHECK(latest.checkpoint->file.span<std::uint64_t>("rng")[0] == 42);
  CHECK(latest.checkpoint->file.metadata().at("config") == "{}");
}

TEST_CASE("the newest is the highest number, not the last in the alphabet; foreign names are not ours") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path(), 10);
  for (const int step : {9, 10, 0}) checkpoints.save(step, state.checkpoint());
  for (const char* name :
       {"step-11.safetensors.part", "step-.safetensors", "step-012.safetensors", "step--5.safetensors",
        "step-.", "step-1e3.safetensors", "step-99999999999999999999.safetensors"})
    write_text(folder / name, "x");
  CHECK(checkpoints.steps() == Steps{10, 9, 0});
  CHECK(checkpoints.latest().checkpoint->step == 10);
}

TEST_CASE("a damaged newest one is passed over with a warning, never loaded") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path());
  for (const int step : {1, 2, 3}) checkpoints.save(step, state.checkpoint());
  cut(checkpoints.path_of(3));
  write_text(checkpoints.path_of(4), "");
  std::filesystem::create_directory(checkpoints.path_of(5));
  write_safetensors(checkpoints.path_of(6), state.checkpoint().tensors);
  write_safetensors(checkpoints.path_of(7), state.checkpoint().tensors, {{"dvla.checkpoint_format", "3"}});
  write_safetensors(checkpoints.path_of(8), state.checkpoint().tensors, {{"dvla.checkpoint_format", "1"}});
  const LatestCheckpoint latest = checkpoints.latest();
  REQUIRE(latest.checkpoint.has_value());
  CHECK(latest.checkpoint->step == 2);
  REQUIRE(latest.warnings.size() == 6);
  CHECK(contains(latest.warnings[0], "is a checkpoint of dvla 0.1"));
  CHECK(contains(latest.warnings[1], "format '3', this program reads format '2'"));
  CHECK(contains(latest.warnings[2], "lacks dvla.checkpoint_format"));
  CHECK(contains(latest.warnings[3], "it is a folder"));
  CHECK(contains(latest.warnings[5], "truncated?"));
  CHECK_THROWS_AS(checkpoints.load(3), dvla::FormatError);
}

TEST_CASE("a checkpoint whose parts are missing or cut is passed over, and is none of the last N") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path(), 3);
  const auto save = [&](int step, const std::string& parts) {
    auto checkpoint = state.checkpoint();
    checkpoint.metadata["shards"] = parts;
    for (int part = 0; part < 2; ++part)
      write_safetensors(CheckpointFolder::part_path(checkpoints.path_of(step), part, 2), checkpoint.tensors,
                        {{"dvla.checkpoint_format", "2"}});
    checkpoints.save(step, checkpoint);
  };
  for (const int step : {1, 2, 3, 4}) save(step, "2");
  CHECK(checkpoints.steps() == Steps{4, 3, 2});
  CHECK(checkpoints.latest().checkpoint->step == 4);
  CHECK(CheckpointFolder::open_parts(checkpoints.load(4).file).size() == 2);
  std::filesystem::remove(folder / "step-3.actor-1-of-2.safetensors");
  cut(folder / "step-4.actor-0-of-2.safetensors");
  const LatestCheckpoint latest = checkpoints.latest();
  REQUIRE(latest.checkpoint.has_value());
  CHECK(latest.checkpoint->step == 2);
  REQUIRE(latest.warnings.size() == 2);
  CHECK(contains(latest.warnings[0], "step-4.actor-0-of-2.safetensors"));
  CHECK(contains(latest.warnings[1], "step-3.safetensors' lacks its part 'step-3.actor-1-of-2.safetensors'"));
  save(5, "2");
  CHECK(checkpoints.steps() == Steps{5, 2});
  for (const char* parts : {"0", "-1", "two", "2x", "100000", ""}) {
    CAPTURE(parts);
    save(6, parts);
    CHECK(contains(message_of<dvla::FormatError>([&] { checkpoints.load(6); }), "says it has"));
  }
}

TEST_CASE("when all are damaged there is none, and every one is named") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path());
  for (const int step : {1, 2}) checkpoints.save(step, state.checkpoint());
  for (const int step : {1, 2}) cut(checkpoints.path_of(step));
  const LatestCheckpoint latest = checkpoints.latest();
  CHECK_FALSE(latest.checkpoint.has_value());
  CHECK(latest.warnings.size() == 2);
}

TEST_CASE("only the last N stay, and temporary files of killed processes go") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path(), 2);
  write_text(folder / ".dvla-tmp-1-0", "left over");
  for (int step = 0; step < 5; ++step) checkpoints.save(step * 10, state.checkpoint());
  CHECK(checkpoints.steps() == Steps{40, 30});
  CHECK(files_in(folder.path()) == 2);
}

TEST_CASE(
    "damaged checkpoints do not count among the last N; later ones of another branch stay until passed") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path(), 2);
  for (const int step : {10, 20}) checkpoints.save(step, state.checkpoint());
  write_text(checkpoints.path_of(15), "damaged");
  write_text(checkpoints.path_of(30), "damaged");
  checkpoints.save(25, state.checkpoint());
  CHECK(checkpoints.steps() == Steps{30, 25, 20});
  checkpoints.save(35, state.checkpoint());
  CHECK(checkpoints.steps() == Steps{35, 25});
  const CheckpointFolder one(folder.path(), 1);
  one.save(36, state.checkpoint());
  CHECK(one.steps() == Steps{36});
}

TEST_CASE("a save that fails deletes nothing") {
  TemporaryFolder folder;
  const State state;
  const CheckpointFolder checkpoints(folder.path(), 1);
  checkpoints.save(1, state.checkpoint());
  Checkpoint broken = state.checkpoint();
  broken.tensors[0].shape = {4};
  CHECK_THROWS_AS(checkpoints.save(2, broken), dvla::Error);
  CHECK_THROWS_AS(checkpoints.save(-1, state.checkpoint()), dvla::Error);
  CHECK(checkpoints.steps() == Steps{1});
  CHECK(checkpoints.latest().checkpoint->step == 1);
  CHECK_THROWS_AS(CheckpointFolder(folder.path(), 0), dvla::ConfigError);
}

TEST_CASE("saving a step again replaces it") {
  TemporaryFolder folder;
  State state;
  const CheckpointFolder checkpoints(folder.path(), 1);
  checkpoints.save(1, state.checkpoint());
  const LatestCheckpoint old = checkpoints.latest();
  state.weight[0] = 9.0F;
  checkpoints.save(1, state.checkpoint());
  CHECK(checkpoints.latest().checkpoint->file.span<float>("model.w")[0] == 9.0F);
  CHECK(old.checkpoint->file.span<float>("model.w")[0] == 1.0F);  // a mapped reader keeps what it had
}

TEST_CASE("a copy under a name of its own is nobody's part, and stays") {
  TemporaryFolder folder;
  State state;
  const CheckpointFolder checkpoints(folder / "checkpoint", 1);
  checkpoints.save(1, state.checkpoint());
  const std::vector<std::string> own{"step-1-best.safetensors", "step-1.actor-best.safetensors",
                                     "step-1-00001-of-00002-kept.safetensors", "step-1-of-2.safetensors"};
  const std::vector<std::string> parts{"step-1-00001-of-00002.safetensors", "step-1.actor-0-of-2.safetensors",
                                       "step-1.actor-1-of-2-00001-of-00003.safetensors",
                                       "step-1.actor-1-of-2.safetensors.index.json"};
  for (const auto* names : {&own, &parts})
    for (const std::string& name : *names)
      std::filesystem::copy_file(folder / "checkpoint/step-1.safetensors", folder / ("checkpoint/" + name));
  checkpoints.save(2, state.checkpoint());
  for (const std::string& name : own) CHECK(std::filesystem::exists(folder / ("checkpoint/" + name)));
  for (const std::string& name : parts) CHECK_FALSE(std::filesystem::exists(folder / ("checkpoint/" + name)));
  CHECK_FALSE(std::filesystem::exists(folder / "checkpoint/step-1.safetensors"));
}

TEST_CASE("an older one that cannot be read or deleted now stays, and is no more than a warning") {
  TemporaryFolder folder;
  const State state;
  std::vector<std::string> warnings;
  const CheckpointFolder checkpoints(folder.path(), 2, shard_bytes,
                                     [&](const std::string& warning) { warnings.push_back(warning); });
  checkpoints.save(1, state.checkpoint());
  std::filesystem::create_symlink(folder / "step-2.safetensors", folder / "step-2.safetensors");  // ELOOP
  checkpoints.save(3, state.checkpoint());
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "an older checkpoint stays: cannot open '"));
  CHECK(checkpoints.steps() == Steps{3, 2, 1});
  CHECK(checkpoints.latest().checkpoint->step == 3);

  std::filesystem::create_directory(folder / "step-0.safetensors");  // which unlink(2) refuses
  checkpoints.save(4, state.checkpoint());
  REQUIRE(warnings.size() == 2);
  CHECK(contains(warnings[1], "older checkpoints stay: cannot delete '"));
  CHECK(checkpoints.steps() == Steps{4, 3, 0});  // the others went
}
