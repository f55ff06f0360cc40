// A run's state as a checkpoint, and back: the trainable weights, the optimiser's state, counters and
// versions. Every random draw is seeded by (run seed, stream, indices), so the random state is the seed and
// the next batch's number. What is frozen is stored where run.checkpoint_weights is whole; else the
// configuration in the metadata makes it again. Under the Synchronous schedule a resumed run equals an
// uninterrupted one bit for bit. Call between updates (Run::train's `after_update`) or while no lane runs.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/model/weight_files.hpp"
#include "dvla/pipeline/command_line.hpp"
#include "dvla/pipeline/run.hpp"
#include "dvla/sharding/checkpoint.hpp"

namespace dvla {

namespace detail {
inline constexpr const char* curve_name = "run.curve";
inline constexpr const char* counters_name = "run.counters";   // next batch, seed
inline constexpr const char* weights_key = "weights";          // of the metadata: a CheckpointWeights
inline constexpr const char* environment_key = "environment";  // of the metadata: an EnvironmentSpec
inline constexpr const char* packed_name =
    "shard.packed";  // of a part: its weights, as they are computed with

inline constexpr std::int64_t curve_columns = 3;  // success, env_steps, chunk_steps

/// Which part of the optimiser's state is this actor's, and of how many: of one where every actor has it all.
template <class Run>
std::pair<int, int> part_of(Run& run) {
  std::int64_t mine = 0;
  for (const ShardPiece& piece : run.weights().pieces()) mine += piece.range.count;
  if (mine == trainable_count(run.model().units())) return {0, 1};
  return {run.job().actor(), run.job().actors()};
}
/// With `packed` also its part of the weights, as the model computes with it.
template <class Run>
void save_part(Run& run, const io::CheckpointFolder& folder, std::pair<int, int> place, bool packed) {
  const auto [part, parts] = place;
  const ShardToWrite shard(run.weights(), trainable_count(run.model().units()),
                           computes_in_16_bits(run.model()), part, parts);
  io::Checkpoint file;
  shard.add_to(file);
  std::vector<std::byte> values(packed ? run.weights().packed_bytes() : 0);
  if (packed) {
    run.weights().pack(values);
    file.tensors.push_back({packed_name, io::Dtype::U8, {std::ssize(values)}, values});
  }
  folder.save_part(run.next_batch(), part, parts, file.tensors);
}

/// The file that counts on the optimiser's parts; the leader's.
template <class Run>
std::filesystem::path save_whole(Run& run, const io::CheckpointFolder& folder, int parts) {
  const std::vector<std::int64_t> counters{run.next_batch(), run.config().run.seed};
  io::Checkpoint checkpoint;
  const CheckpointWeights kind = run.config().run.checkpoint_weights;
  checkpoint.tensors =
      weights_to_write(run.model(), kind == CheckpointWeights::whole ? WeightSet::all : WeightSet::trainable,
                       checkpoint_prefix);
  checkpoint.metadata[weights_key] = enum_name(kind);
  checkpoint.metadata[std::string(io::CheckpointFolder::parts_key)] = std::to_string(parts);
  checkpoint.tensors.push_back(
      io::tensor_to_write<std::int64_t>(counters_name, {2}, std::span<const std::int64_t>(counters)));
  std::vector<double> curve;  // a row per batch
  for (std::int64_t batch = 0; batch < run.next_batch(); ++batch) {
    const Iteration& iteration = run.history()[static_cast<std::size_t>(batch)];
    curve.insert(curve.end(), {iteration.update.success_rate, static_cast<double>(iteration.counts.env_steps),
                               static_cast<double>(iteration.counts.chunk_steps)});
  }
  checkpoint.tensors.push_back(io::tensor_to_write<double>(curve_name, {run.next_batch(), curve_columns},
                                                           std::span<const double>(curve)));
  checkpoint.metadata["pipeline"] = Run::pipeline::describe();
  checkpoint.metadata["config"] = to_json(kept(run.config())).dump();
  checkpoint.metadata[environment_key] = json_text(run.spec());
  return folder.save(run.next_batch(), checkpoint);
}
}  // namespace detail

/// A checkpoint could not be written, by one actor at least: of the whole job there is none, and training may go
/// on.
class NotSaved : public Error {
 public:
  using Error::Error;
};

/// Writes step-<next batch>.safetensors, the weights under the model's parameter names, and beside it the
/// optimiser's state: a part of each actor, or of the leader alone where every actor has the whole. In a job
/// every actor calls it, between the same two updates, into the same folder (so the folder is one that all
/// machines see); parts are written before the file that counts on them. Returns the leader's path. Throws
/// NotSaved, on all actors alike.
template <class Run>
std::filesystem::path save_checkpoint(Run& run, const io::CheckpointFolder& folder) {
  auto& weights = run.weights();
  if constexpr (requires { weights.gather_all(); }) weights.gather_all();
  const auto place = detail::part_of(run);
  const int parts = place.second;
  // Nobody goes on before all have written, or know that one could not.
  const auto together = [&](bool writes, auto write) {
    std::string failed;
    try {
      if (writes) write();
    } catch (const std::exception& why) {
      failed = why.what();
    }
    std::array<double, 1> failures{failed.empty() ? 0.0 : 1.0};
    if (run.job().actors() > 1) weights.sum(failures);
    if (failures[0] > 0) throw NotSaved(failed.empty() ? "another actor could not write" : failed);
  };
  together(parts > 1 || run.job().leads(), [&] { detail::save_part(run, folder, place, false); });
  std::filesystem::path path = folder.path_of(run.next_batch());
  together(run.job().leads(), [&] { path = detail::save_whole(run, folder, parts); });
  return path;
}

/// The same where an error has ended train(), and nobody answers in collectives any more: each actor calls it
/// from while_still(), writes its part by itself and says so in the job's store; the leader, once it has all of
/// the same batch, writes the file that counts on them, with the weights that lie in them. Where the leader
/// holds all, it is enough. Throws Error, which names the actor whose part is missing: there is no checkpoint then.
template <class Run>
std::filesystem::path save_checkpoint(Run& run, const io::CheckpointFolder& folder,
                                      const StillWeights& still) {
  const Job& job = run.job();
  std::filesystem::path path = folder.path_of(run.next_batch());
  run.end_collectives();
  const auto place = detail::part_of(run);
  const int parts = place.second;
  if (parts == 1 && !job.leads()) return path;
  for (const int actor : job.roles().actors)  // the job's store does not answer either where it is the leader
    if (parts > 1 && actor != job.rank() && run.lost(actor)) throw Error(job.name(actor) + ": it is gone");
  const std::string good = "it has trained " + std::to_string(run.next_batch()) + " batches";
  std::string word = good;
  try {
    if (parts > 1 && still.torn) throw Error("it is in the midst of an update");
    if (parts > 1 && std::filesystem::exists(io::detail::weights_at(path)))
      throw Error("'" + path.string() + "' is there already, of an earlier run");
    for (const ShardPiece& piece : run.weights().pieces())
      for (const std::span<const float> values : piece.values())
        if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); }))
          throw Error("the weights are not finite");
    detail::save_part(run, folder, place, parts > 1);
  } catch (const std::exception& why) {
    word = why.what();
  }
  const auto said = [&, limit = detail::nanoseconds(run.config().schedule.deadline_s)](
                        const std::string& topic, int rank) {
    const std::string key = Job::key(topic, rank);
    wait_for_text(job.cluster(), key, detail::deadline_after(limit),
                  job.name(rank) + " has not written its part within " + detail::seconds_text(limit),
                  [&] { return run.lost(rank); });
    return job.cluster().has_within(key, std::chrono::seconds(1)) ? job.cluster().get(key, limit)
                                                                  : "it is gone";
  };
  job.tell("part", word);
  if (!job.leads()) {
    said("whole", job.roles().leader());  // launchers end who is left when one has ended
    return path;
  }
  for (int part = 0; part < parts; ++part) {
    const int rank = job.roles().actors[static_cast<std::size_t>(part)];
    if (const std::string text = said("part", rank); text != good)
      throw Error((job.alone() ? "" : job.name(rank) + ": ") + text);
  }
  if constexpr (requires { run.weights().parts(); })
    for (int part = 0; parts > 1 && part < parts; ++part) {
      const io::SafetensorsFile file = io::CheckpointFolder::open(folder.part_path(path, part, parts));
      std::span<const std::byte> values = file.tensor(detail::packed_name).bytes;
      for (const ByteRange& range : run.weights().parts()[static_cast<std::size_t>(part)]) {
        write_weights(run.model().units(), range.offset, values.first(range.bytes));
        values = values.subspan(range.bytes);
      }
      weights_written(run.model());
    }
  path = detail::save_whole(run, folder, parts);
  job.tell("whole", "");
  return path;
}

/// Whether it has the frozen weights too.
inline bool is_whole(const io::SafetensorsFile& checkpoint) {
  const auto said = checkpoint.metadata().find(detail::weights_key);
  return said != checkpoint.metadata().end() && said->second == "whole";
}

/// A checkpoint's weights into a model, by name: for evaluation, with a run or without one. Throws as
/// load_weights does.
template <class Model>
void load_checkpoint_weights(Model& model, const io::SafetensorsFile& file) {
  load_weights(model, file, is_whole(file) ? WeightSet::all : WeightSet::trainable, checkpoint_prefix);
  weights_written(model);
}

namespace detail {
/// In a checkpoint's metadata, as JSON text.
inline const std::string& config_text(const io::SafetensorsFile& file) {
  const auto config = file.metadata().find("config");
  if (config == file.metadata().end())
    throw FormatError("'" + file.path().string() +
                      "' says nothing about its pipeline: metadata lacks config");
  return config->second;
}
}  // namespace detail

/// The configuration that a checkpoint was made with, for playing its weights: of environment, model, and what
/// is common to this pipeline and the checkpoint's of algorithm, memory and run; how it was sharded, connected,
/// placed and scheduled may be otherwise here, and stays at its defaults. Throws FormatError, and ConfigError
/// where it is of another environment or model.
template <class Pipeline>
Config<Pipeline> load_config(const io::SafetensorsFile& file) {
  const std::string source = "'" + file.path().string() + "': ";
  nlohmann::ordered_json root = detail::parse_config(detail::config_text(file), source);
  detail::check_policies<Pipeline>(root, source, detail::list<environment_slot, model_slot>{});
  Config<Pipeline> config;
  const nlohmann::ordered_json here = to_json(config);
  for (const auto slot : {sharding_slot::name, data_plane_slot::name, control_plane_slot::name,
                          placement_slot::name, schedule_slot::name})
    root.erase(std::string(slot));
  for (const std::string& slot : {std::string(algorithm_slot::name), std::string(memory_slot::name)})
    if (const auto section = root.find(slot); section != root.end() && section->is_object())
      for (auto knob = section->begin(); knob != section->end();)
        knob =
            here.contains(slot) && here[slot].contains(knob.key()) ? std::next(knob) : section->erase(knob);
  if (const auto model = root.find(std::string(model_slot::name)); model != root.end() && model->is_object())
    model->erase("adapters");  // the checkpoint has them
  detail::read_json(list_knobs(config), root, source);
  validate(config);
  return config;
}

/// What makes the model of a checkpoint again, whatever it was trained in and by.
template <class Model>
struct ModelOfCheckpoint {
  typename Model::knobs knobs;
  ModelInputs inputs;      ///< of the environment; in host memory, wherever it was trained
  std::uint64_t seed = 0;  ///< of its first weights
};

/// Needs neither the environment nor its simulator. Throws FormatError, and ConfigError where it is of another model.
template <class Model>
ModelOfCheckpoint<Model> load_model_settings(const io::SafetensorsFile& file) {
  const std::string source = "'" + file.path().string() + "': ";
  const nlohmann::ordered_json root = detail::parse_config(detail::config_text(file), source);
  const nlohmann::ordered_json policies = root.value("pipeline", nlohmann::ordered_json::object());
  detail::check_policy(model_slot::name, detail::policy_name<Model>(),
                       detail::given(policies.value(std::string(model_slot::name), nlohmann::ordered_json())),
                       source);
  nlohmann::ordered_json own = root.value(std::string(model_slot::name), nlohmann::ordered_json::object());
  own.erase("adapters");  // the checkpoint has them
  ModelOfCheckpoint<Model> made;
  std::vector<KnobRef> knobs;
  list_section(knobs, model_slot::name, made.knobs);
  detail::read_json(knobs, {{model_slot::name, own}}, source);
  if constexpr (requires { check(made.knobs); }) check(made.knobs);

  const auto environment = file.metadata().find(detail::environment_key);
  if (environment == file.metadata().end())
    throw FormatError(source +
                      "metadata lacks environment: it was written before checkpoints said what their "
                      "environment shows and takes; save one with this version");
  const auto spec = parse_json<EnvironmentSpec>(environment->second, source + "environment");
  check_spec(spec, "of the checkpoint");
  made.inputs = {spec.observation, spec.action, made.knobs.chunk};
  const std::span<const std::int64_t> counters = file.span<std::int64_t>(detail::counters_name);
  if (counters.size() != 2)
    throw FormatError(source + "tensor " + detail::counters_name + " has " + std::to_string(counters.size()) +
                      " numbers, and must have 2");
  made.seed = stream_seed(static_cast<std::uint64_t>(counters[1]), Stream::weights);
  return made;
}

/// A knob whose value is not the checkpoint's.
struct ChangedKnob {
  std::string text;    ///< "model.width is 64, and was 96"
  bool means = false;  ///< it says what the data or the weights mean
};

/// By slot: all of environment and model say what data and weights mean, but for how many environments there
/// are, where adapters began, and where the frozen weights come from if the checkpoint has them; of the run, what turns actions, states
/// and rewards into what the model learns from. Of the others those are left out that say what one start of
/// the program is for.
template <class Pipeline>
std::vector<ChangedKnob> changed_knobs(const Config<Pipeline>& config, const io::SafetensorsFile& file) {
  using Names = std::initializer_list<std::string_view>;
  const auto among = [](std::string_view name, Names names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const std::string source = "'" + file.path().string() + "': ";
  const nlohmann::ordered_json there = detail::parse_config(detail::config_text(file), source),
                               here = to_json(config);
  std::vector<ChangedKnob> changed;
  for (const auto& [section, knobs] : here.items()) {
    if (section == "pipeline" || !there.contains(section)) continue;
    for (const auto& [name, value] : knobs.items()) {
      const auto was = there[section].find(name);
      if (was == there[section].end() || *was == value) continue;
      const bool run = section == "run", model = section == model_slot::name;
      if (run && among(name, {"name", "folder", "resume", "overwrite", "allow_changes", "quiet"})) continue;
      const bool means =
          run ? name == "reward_scale" || name == "state_statistics" || name.starts_with("action_")
              : (model && !among(name, {"adapters", "keep_prefix", "gradient_checkpointing"}) &&
                 !(name == "base_checkpoint" && is_whole(file))) ||
                    (section == environment_slot::name && name != "environments");
      changed.push_back(
          {section + "." + name + " is " + detail::shown(value) + ", and was " + detail::shown(*was), means});
    }
  }
  return changed;
}

namespace detail {
/// Throws ConfigError where a knob that says what data or weights mean is not the checkpoint's, and may not be.
template <class Pipeline>
void refuse_changes(const Config<Pipeline>& config, const io::SafetensorsFile& file) {
  if (config.run.allow_changes) return;
  std::string refused;
  for (const ChangedKnob& knob : changed_knobs(config, file))
    if (knob.means) refused += (refused.empty() ? "" : "; ") + knob.text;
  if (!refused.empty())
    throw ConfigError(refused + " in the checkpoint '" + file.path().string() +
                      "': its data and weights would mean something else; use its settings, or add "
                      "--allow-changes");
}
}  // namespace detail

namespace detail {
/// What of load_checkpoint needs no run, and is found wrong before one takes memory. `config`: as RunSettings
/// completes it. Returns how many batches the checkpoint has.
template <class Pipeline>
std::int64_t check_checkpoint(const Config<Pipeline>& config, const io::SafetensorsFile& file) {
  const auto refuse = [&](const std::string& why) {
    throw FormatError("'" + file.path().string() + "': tensor " + why);
  };
  const std::span<const std::int64_t> counters = file.span<std::int64_t>(counters_name);
  if (counters.size() != 2 || counters[0] < 0)
    refuse("run.counters must have a number of batches, which is not negative, and a seed");
  if (counters[1] != config.run.seed)
    throw ConfigError("'" + file.path().string() + "' was made with seed " + std::to_string(counters[1]) +
                      ", this run has seed " + std::to_string(config.run.seed));
  // What a checkpoint holds is the state of environment, model and algorithm: how they are placed, scheduled,
  // sharded and connected may have changed since.
  const std::string source = "'" + file.path().string() + "': ";
  check_policies<Pipeline>(parse_config(config_text(file), source), source,
                           list<environment_slot, model_slot, algorithm_slot>{});
  refuse_changes(config, file);
  const std::span<const double> curve = file.span<double>(curve_name);
  const auto columns = static_cast<std::size_t>(curve_columns);
  if (curve.size() % columns != 0 || curve.size() / columns != static_cast<std::size_t>(counters[0]))
    refuse("run.curve does not have a row for each of " + std::to_string(counters[0]) + " batches");
  for (std::size_t i = 0; i < curve.size(); ++i)
    if (!(curve[i] >= 0 && curve[i] <= 0x1p53))
      refuse("run.curve has " + number_text(curve[i]) + " at element " + std::to_string(i) +
             ": it must be finite, not negative and at most 2^53");
  return counters[0];
}
}  // namespace detail

/// Everything: the run continues with the batch after the checkpoint's last, with as many actors as it has
/// now. In a job every rank calls it. Throws FormatError or ConfigError, one sentence, and then leaves the run
/// as it was.
template <class Run>
void load_checkpoint(Run& run, const io::SafetensorsFile& file) {
  const std::int64_t batches = detail::check_checkpoint<typename Run::pipeline>(run.config(), file);
  // Frozen weights do not travel, and ranks that come later read no checkpoint.
  if (!run.job().alone() && is_whole(file) &&
      !has_weights(run.model(), file, WeightSet::frozen, checkpoint_prefix))
    throw ConfigError(
        "'" + file.path().string() +
        "' has other frozen weights than the settings make on every rank of this job; give it as "
        "model.base_checkpoint too");
  if (run.job().trains()) {
    const std::vector<io::SafetensorsFile> parts = io::CheckpointFolder::open_parts(file);
    load_shards(run.weights(), trainable_count(run.model().units()), parts,
                [&] { load_checkpoint_weights(run.model(), file); });
  }
  const std::span<const double> curve = file.span<double>(detail::curve_name);
  const auto columns = static_cast<std::size_t>(detail::curve_columns);
  std::vector<Iteration> history(static_cast<std::size_t>(batches));
  for (std::size_t batch = 0; batch < history.size(); ++batch) {
    history[batch].batch = static_cast<std::int64_t>(batch);
    history[batch].update.success_rate = curve[columns * batch];
    history[batch].counts = {static_cast<std::int64_t>(curve[columns * batch + 1]),
                             static_cast<std::int64_t>(curve[columns * batch + 2])};
  }
  run.continue_from(batches, std::move(history));
}

}  // namespace dvla
