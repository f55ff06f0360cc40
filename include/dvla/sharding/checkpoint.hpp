// The optimiser's state in checkpoints: each actor adds its own pieces to a file of its own; all files
// together are the state, whoever wrote how much of it, so they load at any number of actors and under any
// sharding. Where the model computes in float32 its own file has the weights, and these have moments and
// counter; where it computes in 16 bits they have the float32 masters too. Bytes only; what else stands in a
// checkpoint, and where the files lie, is the caller's.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/sharding/pieces.hpp"

namespace dvla {

namespace detail {
inline constexpr const char* shard_counters =
    "shard.counters";  // actor, actors, optimiser steps, trainable weights
inline constexpr const char* shard_ranges = "shard.ranges";  // [pieces, 2]: offset, count
inline constexpr std::array shard_values{"shard.exp_avg", "shard.exp_avg_sq", "shard.weights"};
}  // namespace detail

/// An actor's part of a checkpoint, as views of its masters and moments: written before the next step, it takes no memory.
class ShardToWrite {
 public:
  /// `whole`: the model's trainable_count. With `masters`, these too. Part `part` of `parts`, which
  /// are the actors' where each has its own. `weights` must outlive this.
  template <class Weights>
  ShardToWrite(Weights& weights, std::int64_t whole, bool masters, int part, int parts)
      : counters_{part, parts, weights.steps(), whole}, pieces_(weights.pieces()), kinds_(masters ? 3 : 2) {
    for (const ShardPiece& piece : pieces_) {
      ranges_.insert(ranges_.end(), {piece.range.offset, piece.range.count});
      count_ += piece.range.count;
    }
  }

  /// Adds views of this; it must live until `checkpoint` is written.
  void add_to(io::Checkpoint& checkpoint) const {
    const auto add = [&](const char* name, std::vector<std::int64_t> shape,
                         const std::vector<std::int64_t>& values) {
      checkpoint.tensors.push_back(
          io::tensor_to_write<std::int64_t>(name, std::move(shape), std::span<const std::int64_t>(values)));
    };
    add(detail::shard_counters, {std::ssize(counters_)}, counters_);
    add(detail::shard_ranges, {std::ssize(ranges_) / 2, 2}, ranges_);
    for (std::size_t i = 0; i < kinds_; ++i) {
      io::TensorToWrite& values =
          checkpoint.tensors.emplace_back(io::tensor_to_write<float>(detail::shard_values[i], {count_}, {}));
      for (const ShardPiece& piece : pieces_) values.rest.push_back(std::as_bytes(piece.values()[i]));
    }
  }

 private:
  std::vector<std::int64_t> counters_, ranges_;
  std::vector<ShardPiece> pieces_;
  std::size_t kinds_;
  std::int64_t count_ = 0;
};

/// Moments and step counter from the files of all actors that wrote them, in any order, and the masters where
/// they are there. `load_model()` loads the model's values once all files have been found good, and may throw
/// before it changes any; masters that are not there become these values. All actors call it. Throws FormatError
/// where the files are not all parts of one state or hold what is no number, ConfigError where that is another
/// model's, and then changes nothing.
template <class Weights, class LoadModel>
void load_shards(Weights& weights, std::int64_t whole, std::span<const io::SafetensorsFile> files,
                 LoadModel load_model) {
  if (files.empty()) throw ConfigError("a sharded checkpoint has no files; give those of all actors");
  struct Stored {
    WeightRange range;
    std::array<const float*, 3> values;
  };
  std::vector<Stored> stored;
  std::vector<std::int64_t> actors;
  std::int64_t steps = 0;
  std::size_t kinds = 0;
  for (const io::SafetensorsFile& file : files) {
    const std::string name = "'" + file.path().string() + "'";
    const auto counters = file.span<std::int64_t>(detail::shard_counters);
    const auto ranges = file.span<std::int64_t>(detail::shard_ranges);
    if (counters.size() != 4 || ranges.size() % 2 != 0 || counters[2] < 0)
      throw FormatError(name, " is no part of a sharded checkpoint: its counters or ranges are damaged");
    if (counters[3] != whole)
      throw ConfigError(name, " is of a model with ", counters[3], " trainable weights, this one has ", whole,
                        ": use the settings the checkpoint was made with");
    const std::size_t has = file.contains(detail::shard_values[2]) ? 3 : 2;
    if (actors.empty()) {
      steps = counters[2];
      kinds = has;
    }
    if (has != kinds)
      throw FormatError(name, has == 3 ? " has" : " lacks",
                        " float32 masters, unlike the first file: give all files of one checkpoint");
    if (counters[1] != std::ssize(files) || counters[2] != steps)
      throw FormatError(name, " is the part of one of ", counters[1], " actors after optimiser step ",
                        counters[2], ", but ", files.size(), " files were given and the first is of step ",
                        steps, ": give all files of one checkpoint");
    actors.push_back(counters[0]);
    std::array<std::span<const float>, 3> values;
    for (std::size_t i = 0; i < kinds; ++i) {
      values[i] = file.span<float>(detail::shard_values[i]);
      for (const float value : values[i])
        if (!std::isfinite(value) || (i == 1 && value < 0))
          throw FormatError(name, ": tensor ", detail::shard_values[i], " holds ", detail::number_text(value),
                            ", which no training leaves there; the file is damaged");
    }
    std::int64_t at = 0;
    for (std::size_t i = 0; i < ranges.size(); i += 2) {
      const WeightRange range{ranges[i], ranges[i + 1]};
      if (range.offset < 0 || range.count < 0 || range.offset > whole - std::min(range.count, whole) ||
          range.count > std::ssize(values[0]) - at)
        throw FormatError(name, ": tensor shard.ranges reaches beyond the weights");
      Stored here{range, {}};
      for (std::size_t k = 0; k < kinds; ++k) here.values[k] = values[k].data() + at;
      stored.push_back(here);
      at += range.count;
    }
    for (std::size_t i = 0; i < kinds; ++i)
      if (std::ssize(values[i]) != at)
        throw FormatError(name, ": masters or moments do not have the ", at, " floats of its ranges");
  }
  std::sort(stored.begin(), stored.end(),
            [](const Stored& a, const Stored& b) { return a.range.offset < b.range.offset; });
  const std::string first = "the checkpoint with '" + files[0].path().string() + "'";
  // Replicas write the same ranges: of equal ones the first is taken.
  std::int64_t next = 0;
  for (const Stored& each : stored) {
    if (each.range.offset > next) break;
    next = std::max(next, each.range.offset + each.range.count);
  }
  std::sort(actors.begin(), actors.end());
  if (next != whole || std::adjacent_find(actors.begin(), actors.end()) != actors.end())
    throw FormatError(first, " lacks weights from number ", next,
                      " on, or has an actor's file twice: give the files of all actors");
  load_model();
  if (kinds == 2) weights.take_parameters();
  for (const ShardPiece& piece : weights.pieces()) {
    for (const auto& [range, from] : stored) {
      const std::int64_t begin = std::max(range.offset, piece.range.offset);
      const std::int64_t end = std::min(range.offset + range.count, piece.range.offset + piece.range.count);
      for (std::size_t i = 0; begin < end && i < kinds; ++i)
        std::copy_n(from[i] + (begin - range.offset), end - begin,
                    piece.values()[i].begin() + (begin - piece.range.offset));
    }
  }
  weights.steps() = steps;
  if (kinds == 3) weights.refresh();
}

}  // namespace dvla
