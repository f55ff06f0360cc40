// A run's state as a checkpoint, and back: weights, AdamW's moments, counters and versions. Every random draw
// is seeded by (run seed, stream, indices), so the random state is the seed and the next batch's number.
// Under the Synchronous schedule a resumed run equals an uninterrupted one bit for bit. Call between updates
// (Run::train's `after_update`) or while no lane runs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/pipeline/command_line.hpp"
#include "dvla/pipeline/run.hpp"

namespace dvla {

namespace detail {
inline constexpr const char* first_moment_name = "optimizer.exp_avg";
inline constexpr const char* second_moment_name = "optimizer.exp_avg_sq";
inline constexpr const char* curve_name = "run.curve";
inline constexpr const char* counters_name = "run.counters";  // next batch, optimiser steps, seed

template <class Value>
void read_tensor(const io::SafetensorsFile& file, const std::string& name, std::span<Value> into) {
  const std::span<const Value> from = file.span<Value>(name);
  if (from.size() != into.size())
    throw ConfigError("'" + file.path().string() + "': tensor " + name + " has " +
                      std::to_string(from.size()) + " elements, this pipeline needs " +
                      std::to_string(into.size()) + ": use the settings the checkpoint was made with");
  std::copy(from.begin(), from.end(), into.begin());
}
}  // namespace detail

/// Writes step-<next batch>.safetensors; weights under the model's tensor names.
template <class Run>
std::filesystem::path save_checkpoint(Run& run, const io::CheckpointFolder& folder) {
  const AdamWState& state = run.weights().state();
  const std::span<const float> parameters = run.model().parameters();
  const std::vector<std::int64_t> counters{run.next_batch(), state.step, run.config().run.seed};
  io::Checkpoint checkpoint;
  for (const NamedTensor& tensor : run.model().tensors()) {
    std::int64_t count = 1;
    for (const std::int64_t extent : tensor.shape) count *= extent;
    checkpoint.tensors.push_back(io::tensor_to_write<float>(
        "model." + tensor.name, tensor.shape,
        parameters.subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(count))));
  }
  const std::vector<std::int64_t> flat{static_cast<std::int64_t>(parameters.size())};
  checkpoint.tensors.push_back(io::tensor_to_write<float>(detail::first_moment_name, flat,
                                                          std::span<const float>(state.first_moment)));
  checkpoint.tensors.push_back(io::tensor_to_write<float>(detail::second_moment_name, flat,
                                                          std::span<const float>(state.second_moment)));
  checkpoint.tensors.push_back(
      io::tensor_to_write<std::int64_t>(detail::counters_name, {3}, std::span<const std::int64_t>(counters)));
  std::vector<double> curve;  // a row per batch: success, env_steps since the start
  for (std::int64_t batch = 0; batch < run.next_batch(); ++batch) {
    const Iteration& iteration = run.history()[static_cast<std::size_t>(batch)];
    curve.insert(curve.end(),
                 {iteration.update.success_rate, static_cast<double>(iteration.counts.env_steps)});
  }
  checkpoint.tensors.push_back(
      io::tensor_to_write<double>(detail::curve_name, {run.next_batch(), 2}, std::span<const double>(curve)));
  checkpoint.metadata["pipeline"] = Run::pipeline::describe();
  checkpoint.metadata["config"] = to_json(run.config()).dump();
  return folder.save(run.next_batch(), checkpoint);
}

/// The weights alone, by name: for evaluation. Throws FormatError or ConfigError, one sentence, and then
/// leaves the model's remaining tensors as they were.
template <class Model>
void load_weights(Model& model, const io::SafetensorsFile& file) {
  for (const NamedTensor& tensor : model.tensors()) {
    const std::string name = "model." + tensor.name;
    const io::TensorView view = file.tensor(name);
    if (!std::equal(view.shape.begin(), view.shape.end(), tensor.shape.begin(), tensor.shape.end()))
      throw ConfigError("'" + file.path().string() + "': tensor " + name +
                        " has another shape than this model: use the settings the checkpoint was made with");
    detail::read_tensor(file, name,
                        model.parameters().subspan(static_cast<std::size_t>(tensor.offset), view.elements()));
  }
}

/// Everything: the run continues with the batch after the checkpoint's last.
template <class Run>
void load_checkpoint(Run& run, const io::SafetensorsFile& file) {
  std::vector<std::int64_t> counters(3);
  detail::read_tensor<std::int64_t>(file, detail::counters_name, counters);
  if (counters[2] != run.config().run.seed)
    throw ConfigError("'" + file.path().string() + "' was made with seed " + std::to_string(counters[2]) +
                      ", this run has seed " + std::to_string(run.config().run.seed));
  load_weights(run.model(), file);
  AdamWState& state = run.weights().state();
  detail::read_tensor(file, detail::first_moment_name, state.first_moment);
  detail::read_tensor(file, detail::second_moment_name, state.second_moment);
  state.step = counters[1];
  const std::span<const double> curve = file.span<double>(detail::curve_name);
  if (counters[0] < 0 || curve.size() != 2 * static_cast<std::size_t>(counters[0]))
    throw FormatError("'" + file.path().string() + "': tensor run.curve does not have a row for each of " +
                      std::to_string(counters[0]) + " batches");
  std::vector<Iteration> history(static_cast<std::size_t>(counters[0]));
  for (std::size_t batch = 0; batch < history.size(); ++batch) {
    history[batch].batch = static_cast<std::int64_t>(batch);
    history[batch].update.success_rate = curve[2 * batch];
    history[batch].counts.env_steps = static_cast<std::int64_t>(curve[2 * batch + 1]);
  }
  run.continue_from(counters[0], std::move(history));
}

}  // namespace dvla
