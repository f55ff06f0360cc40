// A run's state as a checkpoint, and back: weights, AdamW's moments, counters and versions. Every random draw
// is seeded by (run seed, stream, indices), so the random state is the seed and the next batch's number.
// Under the Synchronous schedule a resumed run equals an uninterrupted one bit for bit. Call between updates
// (Run::train's `after_update`) or while no lane runs.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/pipeline/command_line.hpp"
#include "dvla/pipeline/run.hpp"
#include "dvla/sharding/checkpoint.hpp"

namespace dvla {

namespace detail {
inline constexpr const char* first_moment_name = "optimizer.exp_avg";
inline constexpr const char* second_moment_name = "optimizer.exp_avg_sq";
inline constexpr const char* curve_name = "run.curve";
inline constexpr const char* counters_name = "run.counters";  // next batch, optimiser steps, seed

inline constexpr std::int64_t curve_columns = 3;  // success, env_steps, chunk_steps

/// The tensor of that name, of exactly `count` elements.
template <class Value>
std::span<const Value> find_tensor(const io::SafetensorsFile& file, const std::string& name,
                                   std::size_t count) {
  const std::span<const Value> found = file.span<Value>(name);
  if (found.size() != count)
    throw ConfigError("'" + file.path().string() + "': tensor " + name + " has " +
                      std::to_string(found.size()) + " elements, this pipeline needs " +
                      std::to_string(count) + ": use the settings the checkpoint was made with");
  return found;
}

/// Throws FormatError unless every element is finite and at least `least`.
template <class Value>
void check_numbers(const io::SafetensorsFile& file, const std::string& name, std::span<const Value> numbers,
                   Value least = std::numeric_limits<Value>::lowest()) {
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (!(std::isfinite(numbers[i]) && numbers[i] >= least))
      throw FormatError("'" + file.path().string() + "': tensor " + name + " has " +
                        std::to_string(numbers[i]) + " at element " + std::to_string(i) + ": it must be " +
                        (least < 0 ? "finite" : "finite and not negative"));
}
}  // namespace detail

namespace detail {
/// Parts of checkpoints before `step` that are no longer there.
inline void prune_shards(const std::filesystem::path& folder, std::int64_t step) {
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(folder, code)) {
    const std::string name = entry.path().filename().string();
    long long of = -1;
    int actor = 0, actors = 0, end = 0;
    if (std::sscanf(name.c_str(), "step-%lld.actor-%d-of-%d.safetensors%n", &of, &actor, &actors, &end) ==
            3 &&
        static_cast<std::size_t>(end) == name.size() && of < step &&
        !std::filesystem::exists(folder / ("step-" + std::to_string(of) + ".safetensors")))
      std::filesystem::remove(entry.path(), code);
  }
}
}  // namespace detail

/// Writes step-<next batch>.safetensors; weights under the model's tensor names. In a job every actor calls
/// it, between the same two updates; the leader writes. Where the weights are sharded, each actor first
/// writes its part with the moments beside it, into the same folder (so the folder is one that all machines
/// see). Returns the leader's path.
template <class Run>
std::filesystem::path save_checkpoint(Run& run, const io::CheckpointFolder& folder) {
  auto& weights = run.weights();
  const std::filesystem::path path = folder.path_of(run.next_batch());
  const std::span<const float> parameters = run.model().parameters();
  const AdamWState& state = weights.state();
  const bool sharded = state.parameter.data() != parameters.data();  // masters of their own
  if constexpr (requires { weights.gather_all(); }) weights.gather_all();
  if constexpr (requires { weights.pieces(); }) {
    if (sharded) {
      const ShardToWrite shard(weights, std::ssize(parameters));
      io::Checkpoint part;
      shard.add_to(part);
      std::filesystem::create_directories(path.parent_path());
      io::write_safetensors(io::CheckpointFolder::part_path(path, weights.actor(), weights.actors()),
                            part.tensors,
                            {{std::string(io::CheckpointFolder::format_key),
                              std::string(io::CheckpointFolder::format_version)}});
      std::array<double, 1> written{};  // by all, before the file that counts on them
      weights.sum(written);
    }
  }
  if (!run.job().leads()) return path;
  const std::vector<std::int64_t> counters{run.next_batch(), state.step, run.config().run.seed};
  io::Checkpoint checkpoint;
  for (const NamedTensor& tensor : run.model().tensors()) {
    std::int64_t count = 1;
    for (const std::int64_t extent : tensor.shape) count *= extent;
    checkpoint.tensors.push_back(io::tensor_to_write<float>(
        "model." + tensor.name, tensor.shape,
        parameters.subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(count))));
  }
  if (sharded) {
    checkpoint.metadata[std::string(io::CheckpointFolder::parts_key)] = std::to_string(run.job().actors());
  } else {
    const std::vector<std::int64_t> flat{static_cast<std::int64_t>(parameters.size())};
    checkpoint.tensors.push_back(io::tensor_to_write<float>(detail::first_moment_name, flat,
                                                            std::span<const float>(state.first_moment)));
    checkpoint.tensors.push_back(io::tensor_to_write<float>(detail::second_moment_name, flat,
                                                            std::span<const float>(state.second_moment)));
  }
  checkpoint.tensors.push_back(
      io::tensor_to_write<std::int64_t>(detail::counters_name, {3}, std::span<const std::int64_t>(counters)));
  std::vector<double> curve;  // a row per batch
  for (std::int64_t batch = 0; batch < run.next_batch(); ++batch) {
    const Iteration& iteration = run.history()[static_cast<std::size_t>(batch)];
    curve.insert(curve.end(), {iteration.update.success_rate, static_cast<double>(iteration.counts.env_steps),
                               static_cast<double>(iteration.counts.chunk_steps)});
  }
  checkpoint.tensors.push_back(io::tensor_to_write<double>(
      detail::curve_name, {run.next_batch(), detail::curve_columns}, std::span<const double>(curve)));
  checkpoint.metadata["pipeline"] = Run::pipeline::describe();
  checkpoint.metadata["config"] = to_json(run.config()).dump();
  folder.save(run.next_batch(), checkpoint);
  detail::prune_shards(path.parent_path(), run.next_batch());
  return path;
}

/// The weights alone, by name: for evaluation. Throws FormatError or ConfigError, one sentence, and then
/// leaves the model as it was.
template <class Model>
void load_weights(Model& model, const io::SafetensorsFile& file) {
  for (const bool copies : {false, true}) {  // everything is checked before anything changes
    for (const NamedTensor& tensor : model.tensors()) {
      const std::string name = "model." + tensor.name;
      const io::TensorView view = file.tensor(name);
      if (!std::equal(view.shape.begin(), view.shape.end(), tensor.shape.begin(), tensor.shape.end()))
        throw ConfigError(
            "'" + file.path().string() + "': tensor " + name +
            " has another shape than this model: use the settings the checkpoint was made with");
      const std::span<const float> from = file.span<float>(name);
      if (!copies) detail::check_numbers(file, name, from);
      if (copies) std::copy(from.begin(), from.end(), model.parameters().begin() + tensor.offset);
    }
  }
}

namespace detail {
/// What a checkpoint holds is the state of environment, model and algorithm: how they are placed, scheduled,
/// sharded and connected may have changed since. Throws ConfigError where one of the three has another name.
template <class Pipeline>
void check_same_learner(const io::SafetensorsFile& file, const std::string& config) {
  const nlohmann::json root = nlohmann::json::parse(config, nullptr, false);
  if (!root.is_object())
    throw FormatError("'" + file.path().string() + "': the config in its metadata is not valid JSON");
  const auto pipeline = root.find("pipeline");
  if (pipeline == root.end() || !pipeline->is_object()) return;
  const auto compare = [&](const char* slot, std::string_view here) {
    const auto there = pipeline->find(slot);
    if (there == pipeline->end() || (there->is_string() && there->get<std::string>() == here)) return;
    throw ConfigError("'" + file.path().string() + "' was written by another pipeline: its " + slot + " is " +
                      one_line(there->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)) +
                      ", here it is \"" + std::string(here) + "\"");
  };
  compare("environment", policy_name<typename Pipeline::environment>());
  compare("model", policy_name<typename Pipeline::model>());
  compare("algorithm", policy_name<typename Pipeline::algorithm>());
}

/// Weights, moments and step counter.
template <class Run>
void load_training_state(Run& run, const io::SafetensorsFile& file, std::int64_t steps) {
  auto& weights = run.weights();
  const auto all = run.model().parameters().size();
  if (file.metadata().contains(std::string(io::CheckpointFolder::parts_key))) {
    if constexpr (requires { weights.pieces(); }) {
      const std::vector<io::SafetensorsFile> parts = io::CheckpointFolder::open_parts(file);
      load_shards(weights, static_cast<std::int64_t>(all), parts);
      return;
    } else {
      throw ConfigError("'" + file.path().string() + "' was written by sharded weights; " +
                        std::string(Run::pipeline::sharding::name) + " cannot read its parts");
    }
  }
  const auto first = find_tensor<float>(file, first_moment_name, all);
  const auto second = find_tensor<float>(file, second_moment_name, all);
  check_numbers(file, first_moment_name, first);
  check_numbers(file, second_moment_name, second, 0.0F);
  load_weights(run.model(), file);
  if constexpr (requires { weights.pieces(); }) {
    weights.take_parameters();
    for (const ShardPiece& piece : weights.pieces()) {
      std::copy_n(first.begin() + piece.range.offset, piece.range.count, piece.first_moment.begin());
      std::copy_n(second.begin() + piece.range.offset, piece.range.count, piece.second_moment.begin());
    }
  } else {
    std::copy(first.begin(), first.end(), weights.state().first_moment.begin());
    std::copy(second.begin(), second.end(), weights.state().second_moment.begin());
  }
  weights.state().step = steps;
}
}  // namespace detail

/// Everything: the run continues with the batch after the checkpoint's last, with as many actors as it has
/// now. In a job every rank calls it. Throws as load_weights does, and then leaves the run as it was.
template <class Run>
void load_checkpoint(Run& run, const io::SafetensorsFile& file) {
  const auto counters = detail::find_tensor<std::int64_t>(file, detail::counters_name, 3);
  if (counters[2] != run.config().run.seed)
    throw ConfigError("'" + file.path().string() + "' was made with seed " + std::to_string(counters[2]) +
                      ", this run has seed " + std::to_string(run.config().run.seed));
  const auto config = file.metadata().find("config");
  if (config == file.metadata().end())
    throw FormatError("'" + file.path().string() +
                      "' says nothing about its pipeline: metadata lacks config");
  detail::check_same_learner<typename Run::pipeline>(file, config->second);
  if (counters[0] < 0 || counters[1] < 0)
    throw FormatError("'" + file.path().string() + "': tensor run.counters has a negative count");
  const std::span<const double> curve = file.span<double>(detail::curve_name);
  const auto columns = static_cast<std::size_t>(detail::curve_columns);
  if (curve.size() % columns != 0 || curve.size() / columns != static_cast<std::size_t>(counters[0]))
    throw FormatError("'" + file.path().string() + "': tensor run.curve does not have a row for each of " +
                      std::to_string(counters[0]) + " batches");
  detail::check_numbers(file, detail::curve_name, curve, 0.0);
  for (const double number : curve)
    if (number > 0x1p53)
      throw FormatError("'" + file.path().string() + "': tensor run.curve counts beyond 2^53");
  if (run.job().trains()) detail::load_training_state(run, file, counters[1]);
  std::vector<Iteration> history(static_cast<std::size_t>(counters[0]));
  for (std::size_t batch = 0; batch < history.size(); ++batch) {
    history[batch].batch = static_cast<std::int64_t>(batch);
    history[batch].update.success_rate = curve[columns * batch];
    history[batch].counts = {static_cast<std::int64_t>(curve[columns * batch + 1]),
                             static_cast<std::int64_t>(curve[columns * batch + 2])};
  }
  run.continue_from(counters[0], std::move(history));
}

}  // namespace dvla
