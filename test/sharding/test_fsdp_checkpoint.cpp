// dvla-test: tsan
// Sharded checkpoints: written by some number of actors, read by another.
#include <doctest/doctest.h>

#include <mutex>

#include "../io/temporary_folder.hpp"
#include "actors.hpp"
#include "dvla/sharding/checkpoint.hpp"
#include "dvla/sharding/fsdp.hpp"
#include "dvla/sharding/unsharded.hpp"

namespace {

using namespace actors_test;
namespace fs = std::filesystem;
using Sharded = dvla::ShardedWeights<LinearModel>;
using Whole = dvla::UnshardedWeights<LinearModel>;
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

/// Weights and both moments, each whole.
struct State {
  std::array<std::vector<float>, 3> values;
  std::int64_t step = 0;
  bool operator==(const State&) const = default;
  void put(const dvla::ShardPiece& piece) {
    const std::array from{piece.weight, piece.first_moment, piece.second_moment};
    for (std::size_t i = 0; i < 3; ++i) std::ranges::copy(from[i], values[i].begin() + piece.range.offset);
  }
};

fs::path file_of(const fs::path& folder, int actor) {
  return folder / ("actor-" + std::to_string(actor) + ".safetensors");
}
std::vector<dvla::io::SafetensorsFile> open_all(const fs::path& folder, int actors) {
  std::vector<dvla::io::SafetensorsFile> files;
  for (int actor = actors; actor-- > 0;) files.emplace_back(file_of(folder, actor));
  return files;
}

/// What `actors` actors have after `work(weights, model)`, and the files that they write into `to`.
template <class Weights, class Work>
State run(const Batch& batch, int actors, const fs::path& to, Work work) {
  State state;
  std::mutex mutex;
  fs::create_directories(to);
  run_actors(actors, [&](int actor, const dvla::GroupSource& groups) {
    const auto model = batch.model();
    Weights weights(*model, heap, {}, groups);
    work(weights, *model);
    weights.gather_all();
    const auto floats = std::ssize(model->parameters());
    const dvla::ShardToWrite shard(weights, floats);
    dvla::io::Checkpoint checkpoint;
    shard.add_to(checkpoint);
    dvla::io::write_safetensors(file_of(to, actor), checkpoint.tensors, checkpoint.metadata);
    const std::scoped_lock lock(mutex);
    for (auto& values : state.values) values.resize(static_cast<std::size_t>(floats));
    for (const dvla::ShardPiece& piece : weights.pieces()) state.put(piece);
    state.step = weights.state().step;
    for (const dvla::ShardPiece& piece : weights.pieces())
      CHECK(std::ranges::equal(piece.weight,
                               model->parameters().subspan(static_cast<std::size_t>(piece.range.offset),
                                                           static_cast<std::size_t>(piece.range.count))));
  });
  return state;
}

template <class Weights>
void steps(Weights& weights, LinearModel& model) {
  for (int step = 0; step < 3; ++step) {
    weights.zero_gradients();
    for (std::size_t i = 0; i < model.gradients().size(); ++i)
      model.gradients()[i] = std::sin(static_cast<float>(i) + static_cast<float>(step));
    weights.step({.learning_rate = 0.1, .weight_decay = 0.1, .max_grad_norm = 0});
  }
}

}  // namespace

TEST_CASE(
    "Written by 2 actors, read by 3, 1, 4 and a whole model, and back: weights and moments bit for bit") {
  const dvla_test::TemporaryFolder folder;
  const fs::path& root = folder.path();
  Batch batch;
  const State two =
      run<Sharded>(batch, 2, root / "2", [](auto& weights, auto& model) { steps(weights, model); });
  CHECK(two.step == 3);
  const auto load = [&](const char* from, int actors) {
    return [&root, from, actors](auto& weights, auto& model) {
      dvla::load_shards(weights, std::ssize(model.parameters()), open_all(root / from, actors));
    };
  };
  CHECK(run<Sharded>(batch, 3, root / "3", load("2", 2)) == two);
  CHECK(run<Sharded>(batch, 1, root / "1", load("3", 3)) == two);
  CHECK(run<Sharded>(batch, 4, root / "4", load("1", 1)) == two);
  CHECK(run<Whole>(batch, 2, root / "whole", load("4", 4)) == two);
  CHECK(run<Sharded>(batch, 2, root / "again", load("whole", 2)) == two);
  // The same file for the same actor.
  for (const int actor : {0, 1}) {
    CHECK(dvla_test::read_text(file_of(root / "2", actor)) ==
          dvla_test::read_text(file_of(root / "again", actor)));
  }
}

TEST_CASE("Files that are not one whole state are refused in a sentence, and nothing changes") {
  const dvla_test::TemporaryFolder folder;
  const fs::path& root = folder.path();
  Batch batch;
  const auto work = [](auto& weights, auto& model) { steps(weights, model); };
  run<Sharded>(batch, 2, root / "2", work);
  run<Sharded>(batch, 2, root / "later", [&](auto& weights, auto& model) {
    work(weights, model);
    work(weights, model);
  });
  const auto model = batch.model();
  const auto floats = std::ssize(model->parameters());
  Sharded weights(*model, heap);
  const std::vector<float> start(model->parameters().begin(), model->parameters().end());
  const auto complaint = [&](std::vector<fs::path> paths, std::int64_t size) {
    std::vector<dvla::io::SafetensorsFile> files;
    for (const fs::path& path : paths) files.emplace_back(path);
    try {
      dvla::load_shards(weights, size, files);
    } catch (const dvla::Error& error) {
      CHECK(std::ranges::equal(start, model->parameters()));
      CHECK(weights.state().step == 0);
      return std::string(error.what());
    }
    return std::string();
  };
  const fs::path zero = file_of(root / "2", 0), one = file_of(root / "2", 1);
  CHECK(complaint({}, floats).find("no files") != std::string::npos);
  CHECK(complaint({zero}, floats).find("2 actors") != std::string::npos);
  CHECK(complaint({zero, zero}, floats).find("twice") != std::string::npos);
  CHECK(complaint({one, file_of(root / "later", 0)}, floats).find("step 6") != std::string::npos);
  CHECK(complaint({zero, one}, floats + 1).find("this one has") != std::string::npos);
  CHECK(complaint({zero, one}, floats).empty());
}
