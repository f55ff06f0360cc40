// Sharded checkpoints: each actor adds its own pieces of weights and moments to a file of its own; all files
// together are the state, whoever wrote how much of it, so they load at any number of actors and under any
// sharding. Bytes only; what else stands in a checkpoint, and where the files lie, is the caller's.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/control_plane/parts.hpp"
#include "dvla/core/error.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/sharding/actors.hpp"

namespace dvla {

namespace detail {
inline constexpr const char* shard_counters = "shard.counters";  // actor, actors, optimiser steps, all floats
inline constexpr const char* shard_ranges = "shard.ranges";      // [pieces, 2]: offset, count
inline constexpr std::array shard_values{"shard.weights", "shard.exp_avg", "shard.exp_avg_sq"};
}  // namespace detail

/// An actor's part of a checkpoint: a copy, so that training may go on before it is written.
class ShardToWrite {
 public:
  /// `floats`: of the whole model. In the training lane, between two steps.
  template <class Weights>
  ShardToWrite(Weights& weights, std::int64_t floats)
      : counters_{weights.actor(), weights.actors(), weights.state().step, floats} {
    for (const ShardPiece& piece : weights.pieces()) {
      ranges_.insert(ranges_.end(), {piece.range.offset, piece.range.count});
      const std::array from{piece.weight, piece.first_moment, piece.second_moment};
      for (std::size_t i = 0; i < from.size(); ++i)
        values_[i].insert(values_[i].end(), from[i].begin(), from[i].end());
    }
  }

  /// Adds views of this; it must live until `checkpoint` is written.
  void add_to(io::Checkpoint& checkpoint) const {
    const auto add = [&]<class Value>(const char* name, std::vector<std::int64_t> shape,
                                      const std::vector<Value>& values) {
      checkpoint.tensors.push_back(
          io::tensor_to_write<Value>(name, std::move(shape), std::span<const Value>(values)));
    };
    add(detail::shard_counters, {std::ssize(counters_)}, counters_);
    add(detail::shard_ranges, {std::ssize(ranges_) / 2, 2}, ranges_);
    for (std::size_t i = 0; i < values_.size(); ++i)
      add(detail::shard_values[i], {std::ssize(values_[i])}, values_[i]);
  }

 private:
  std::vector<std::int64_t> counters_, ranges_;
  std::array<std::vector<float>, 3> values_;
};

/// Weights, moments and step counter from the files of all actors that wrote them, in any order. All actors
/// call it. Throws FormatError where the files are not all parts of one state, ConfigError where that is
/// another model's, and then changes nothing.
template <class Weights>
void load_shards(Weights& weights, std::int64_t floats, std::span<const io::SafetensorsFile> files) {
  if (files.empty()) throw ConfigError("a sharded checkpoint has no files; give those of all actors");
  struct Stored {
    WeightRange range;
    std::array<const float*, 3> values;
  };
  std::vector<Stored> stored;
  std::vector<std::int64_t> actors;
  std::int64_t steps = 0;
  for (const io::SafetensorsFile& file : files) {
    const std::string name = "'" + file.path().string() + "'";
    const auto counters = file.span<std::int64_t>(detail::shard_counters);
    const auto ranges = file.span<std::int64_t>(detail::shard_ranges);
    if (counters.size() != 4 || ranges.size() % 2 != 0 || counters[2] < 0)
      throw FormatError(name + " is no part of a sharded checkpoint: its counters or ranges are damaged");
    if (counters[3] != floats)
      throw ConfigError(name + " is of a model with " + std::to_string(counters[3]) +
                        " weights, this one has " + std::to_string(floats) +
                        ": use the settings that the checkpoint was made with");
    if (actors.empty()) steps = counters[2];
    if (counters[1] != std::ssize(files) || counters[2] != steps)
      throw FormatError(name + " is the part of one of " + std::to_string(counters[1]) +
                        " actors after optimiser step " + std::to_string(counters[2]) + ", but " +
                        std::to_string(files.size()) + " files were given and the first is of step " +
                        std::to_string(steps) + ": give all files of one checkpoint");
    actors.push_back(counters[0]);
    std::array<std::span<const float>, 3> values;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = file.span<float>(detail::shard_values[i]);
    std::int64_t at = 0;
    for (std::size_t i = 0; i < ranges.size(); i += 2) {
      const WeightRange range{ranges[i], ranges[i + 1]};
      if (range.offset < 0 || range.count < 0 || range.offset > floats - std::min(range.count, floats) ||
          range.count > std::ssize(values[0]) - at)
        throw FormatError(name + ": tensor shard.ranges reaches beyond the weights");
      stored.push_back({range, {values[0].data() + at, values[1].data() + at, values[2].data() + at}});
      at += range.count;
    }
    for (const auto& value : values)
      if (std::ssize(value) != at)
        throw FormatError(name + ": weights or moments do not have the " + std::to_string(at) +
                          " floats of its ranges");
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
  if (next != floats || std::adjacent_find(actors.begin(), actors.end()) != actors.end())
    throw FormatError(first + " lacks weights from float " + std::to_string(next) +
                      " on, or has an actor's file twice: give the files of all actors");
  for (const ShardPiece& piece : weights.pieces()) {
    const std::array to{piece.weight, piece.first_moment, piece.second_moment};
    for (const auto& [range, from] : stored) {
      const std::int64_t begin = std::max(range.offset, piece.range.offset);
      const std::int64_t end = std::min(range.offset + range.count, piece.range.offset + piece.range.count);
      for (std::size_t i = 0; begin < end && i < to.size(); ++i)
        std::copy_n(from[i] + (begin - range.offset), end - begin,
                    to[i].begin() + (begin - piece.range.offset));
    }
  }
  weights.state().step = steps;
  weights.refresh();
}

}  // namespace dvla
