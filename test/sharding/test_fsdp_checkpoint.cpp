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
using dvla::testing::LinearKnobs;
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

/// Masters and both moments, each whole, and what the model computes with.
struct State {
  std::array<std::vector<float>, 3> values;
  std::vector<std::byte> model;
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
State run(const Batch& batch, const LinearKnobs& knobs, int actors, const fs::path& to, Work work) {
  State state;
  std::mutex mutex;
  fs::create_directories(to);
  run_actors(actors, [&](int actor, const dvla::GroupSource& groups) {
    const auto model = batch.model(knobs);
    Weights weights(*model, heap, {}, groups);
    work(weights, *model);
    weights.gather_all();
    const std::int64_t count = dvla::trainable_count(model->units());
    const dvla::ShardToWrite shard(weights, count, dvla::computes_in_16_bits(*model), weights.actor(),
                                   weights.actors());
    dvla::io::Checkpoint checkpoint;
    shard.add_to(checkpoint);
    dvla::io::write_safetensors(file_of(to, actor), checkpoint.tensors, checkpoint.metadata);
    const std::scoped_lock lock(mutex);
    for (const dvla::io::TensorToWrite& each :
         checkpoint.tensors)  // no copy is made of what the optimiser has
      if (each.name == dvla::detail::shard_values[0])
        for (std::size_t i = 0; i < each.rest.size(); ++i)
          CHECK(each.rest[i].data() == std::as_bytes(weights.pieces()[i].first_moment).data());
    for (auto& values : state.values) values.resize(static_cast<std::size_t>(count));
    for (const dvla::ShardPiece& piece : weights.pieces()) state.put(piece);
    state.step = weights.steps();
    if (state.model.empty()) state.model = bytes_of_model(*model);
    CHECK(state.model == bytes_of_model(*model));
  });
  return state;
}

template <class Weights>
void steps(Weights& weights, LinearModel& model) {
  for (int step = 0; step < 3; ++step) {
    weights.zero_gradients();
    std::size_t i = 0;
    for (const dvla::WeightUnit& unit : model.units())
      for (float& gradient : unit.gradients)
        gradient = std::sin(static_cast<float>(i++) + static_cast<float>(step));
    weights.step({.learning_rate = 0.1, .weight_decay = 0.1, .max_grad_norm = 0});
  }
}

}  // namespace

TEST_CASE("Written by 2 actors, read by 3, 1, 4 and a whole model, and back: the state bit for bit") {
  Batch batch;
  for (const bool bf16 : {false, true}) {
    CAPTURE(bf16);
    const dvla_test::TemporaryFolder folder;
    const fs::path& root = folder.path();
    const LinearKnobs knobs{.bins = 5,
                            .chunk = 2,
                            .frozen_units = bf16 ? 1 : 0,
                            .dtype = bf16 ? dvla::Dtype::bf16 : dvla::Dtype::f32};
    const State two =
        run<Sharded>(batch, knobs, 2, root / "2", [](auto& weights, auto& model) { steps(weights, model); });
    CHECK(two.step == 3);
    // A model's own values, which are the masters in float32, come from the model's own file.
    const auto load = [&](const char* from, int actors) {
      return [&two, &root, bf16, from, actors](auto& weights, auto& model) {
        dvla::load_shards(weights, dvla::trainable_count(model.units()), open_all(root / from, actors), [&] {
          if (!bf16) dvla::write_weights(model.units(), 0, two.model);
        });
      };
    };
    CHECK(run<Sharded>(batch, knobs, 3, root / "3", load("2", 2)) == two);
    CHECK(run<Sharded>(batch, knobs, 1, root / "1", load("3", 3)) == two);
    CHECK(run<Sharded>(batch, knobs, 4, root / "4", load("1", 1)) == two);
    CHECK(run<Whole>(batch, knobs, 2, root / "whole", load("4", 4)) == two);
    CHECK(run<Whole>(batch, knobs, 1, root / "alone", load("whole", 2)) == two);
    CHECK(run<Sharded>(batch, knobs, 2, root / "again", load("alone", 1)) == two);
    // The same file for the same actor; masters are written only where the model's values are not they.
    for (const int actor : {0, 1}) {
      CHECK(dvla_test::read_text(file_of(root / "2", actor)) ==
            dvla_test::read_text(file_of(root / "again", actor)));
      CHECK(dvla::io::SafetensorsFile(file_of(root / "2", actor)).contains("shard.weights") == bf16);
    }
  }
}

TEST_CASE("A model in bfloat16 takes up a checkpoint of one in float32: its values become the masters") {
  const dvla_test::TemporaryFolder folder;
  Batch batch;
  const State before = run<Whole>(batch, Batch::usual, 1, folder.path() / "f32",
                                  [](auto& weights, auto& model) { steps(weights, model); });
  LinearKnobs knobs = Batch::usual;
  knobs.dtype = dvla::Dtype::bf16;
  const State after = run<Sharded>(batch, knobs, 2, folder.path() / "bf16", [&](auto& weights, auto& model) {
    dvla::load_shards(weights, dvla::trainable_count(model.units()), open_all(folder.path() / "f32", 1), [&] {
      std::size_t at = 0;
      for (const dvla::WeightUnit& unit : model.units()) {
        const auto count = static_cast<std::size_t>(unit.count());
        dvla::from_floats(std::span(before.values[0]).subspan(at, count), unit.dtype, unit.values);
        at += count;
      }
    });
  });
  CHECK(after.step == 3);
  CHECK(after.values[1] == before.values[1]);
  for (std::size_t i = 0; i < before.values[0].size(); ++i)
    REQUIRE(after.values[0][i] == dvla::from_bf16(dvla::to_bf16(before.values[0][i])));
}

TEST_CASE("Files that are not one whole state are refused in a sentence, and nothing changes") {
  const dvla_test::TemporaryFolder folder;
  const fs::path& root = folder.path();
  Batch batch;
  const auto work = [](auto& weights, auto& model) { steps(weights, model); };
  run<Sharded>(batch, Batch::usual, 2, root / "2", work);
  run<Sharded>(batch, Batch::usual, 2, root / "later", [&](auto& weights, auto& model) {
    work(weights, model);
    work(weights, model);
  });
  LinearKnobs in_16_bits = Batch::usual;
  in_16_bits.dtype = dvla::Dtype::bf16;
  run<Sharded>(batch, in_16_bits, 2, root / "bf16", work);
  for (const auto& [name, kind, bad] : {std::tuple{"nan", 0, std::numeric_limits<float>::quiet_NaN()},
                                        {"infinite", 1, std::numeric_limits<float>::infinity()},
                                        {"negative", 1, -1.0F},
                                        {"masters", 2, -std::numeric_limits<float>::infinity()}})
    run<Sharded>(batch, kind == 2 ? in_16_bits : Batch::usual, 2, root / name,
                 [&work, kind = kind, bad = bad](auto& weights, auto& model) {
                   work(weights, model);
                   weights.gather_all();
                   const dvla::ShardPiece piece = weights.pieces()[0];
                   (kind == 0 ? piece.first_moment : kind == 1 ? piece.second_moment : piece.weight)[1] = bad;
                 });
  const auto model = batch.model();
  const std::int64_t count = dvla::trainable_count(model->units());
  Sharded weights(*model, heap);
  const std::vector<std::byte> start = bytes_of_model(*model);
  bool loaded = false;
  const auto complaint = [&](std::vector<fs::path> paths, std::int64_t size) {
    std::vector<dvla::io::SafetensorsFile> files;
    for (const fs::path& path : paths) files.emplace_back(path);
    try {
      dvla::load_shards(weights, size, files, [&] { loaded = true; });
    } catch (const dvla::Error& error) {
      CHECK(!loaded);
      CHECK(start == bytes_of_model(*model));
      CHECK(weights.steps() == 0);
      for (const dvla::ShardPiece& piece : weights.pieces())
        CHECK(std::ranges::all_of(piece.second_moment, [](float value) { return value == 0; }));
      return std::string(error.what());
    }
    return std::string();
  };
  const fs::path zero = file_of(root / "2", 0), one = file_of(root / "2", 1);
  CHECK(complaint({}, count).find("no files") != std::string::npos);
  CHECK(complaint({zero}, count).find("2 actors") != std::string::npos);
  CHECK(complaint({zero, zero}, count).find("twice") != std::string::npos);
  CHECK(complaint({one, file_of(root / "later", 0)}, count).find("step 6") != std::string::npos);
  CHECK(complaint({zero, one}, count + 1).find("this one has") != std::string::npos);
  CHECK(complaint({zero, file_of(root / "bf16", 1)}, count).find("has float32 masters, unlike the first") !=
        std::string::npos);
  for (const char* name : {"nan", "infinite", "negative", "masters"})
    CHECK(complaint({file_of(root / name, 1), file_of(root / name, 0)}, count).find("damaged") !=
          std::string::npos);
  CHECK(complaint({zero, one}, count).empty());
  CHECK(loaded);
  CHECK(weights.steps() == 3);
}
