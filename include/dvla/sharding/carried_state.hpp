// Weights and AdamW's moments carried from one set of actors to another in the midst of a run: whole, through
// the memory of every rank that takes part. What a sharded checkpoint does through files (checkpoint.hpp).
// Torch-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/placement/group.hpp"
#include "dvla/sharding/pieces.hpp"

namespace dvla {

/// The optimiser's whole state, as one flat range: 3 floats a trainable weight.
struct CarriedState {
  std::array<std::vector<float>, 3> values;  ///< as ShardPiece::values()
  std::int64_t step = 0;
};

/// Every member of `all` calls it: those that train with their `weights`, the others with null, each with the
/// same `trainers` (members of `all`, ascending) and `whole`, the model's trainable_count. Returns the whole
/// state on every member. Throws Error where the trainers' pieces do not make up the whole.
template <class Weights>
CarriedState carry(Weights* weights, Group& all, const std::vector<int>& trainers, std::int64_t whole) {
  CarriedState state;
  for (auto& each : state.values) each.resize(static_cast<std::size_t>(whole));
  std::int64_t there = 0;  // replicas hold the whole each: the first one's is enough
  for (std::size_t i = 0; i < trainers.size() && there < whole; ++i) {
    const int trainer = trainers[i];
    const bool mine = all.rank() == trainer;
    std::vector<ShardPiece> pieces;
    std::array<std::int64_t, 2> head{};  // optimiser steps, pieces
    if (mine) {
      pieces = weights->pieces();
      head = {weights->steps(), std::ssize(pieces)};
    }
    all.broadcast(std::as_writable_bytes(std::span(head)), trainer);
    std::vector<std::int64_t> ranges;
    for (const ShardPiece& piece : pieces)
      ranges.insert(ranges.end(), {piece.range.offset, piece.range.count});
    ranges.resize(static_cast<std::size_t>(2 * head[1]));
    all.broadcast(std::as_writable_bytes(std::span(ranges)), trainer);
    if (i > 0 && head[0] != state.step)
      throw Error("actor ", i, " has made ", head[0], " optimiser steps, actor 0 ", state.step,
                  ": their states do not fit");
    state.step = head[0];
    for (std::size_t piece = 0; piece < ranges.size() / 2; ++piece) {
      const std::int64_t offset = ranges[2 * piece], count = ranges[2 * piece + 1];
      if (offset < 0 || count < 0 || offset > whole - count)
        throw Error("actor ", i, " has weights beyond the model's ", whole,
                    "; do all ranks have the same model?");
      for (std::size_t kind = 0; kind < state.values.size(); ++kind) {
        const std::span<float> to =
            std::span(state.values[kind])
                .subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(count));
        if (mine) std::ranges::copy(pieces[piece].values()[kind], to.begin());
        all.broadcast(std::as_writable_bytes(to), trainer);
      }
      there += count;
    }
  }
  if (there != whole)
    throw Error("the actors have ", there, " of the model's ", whole,
                " weights; their pieces must make up the whole");
  return state;
}

/// Every actor of the new set calls it: the state becomes that of its weights.
template <class Weights>
void take(Weights& weights, const CarriedState& state) {
  for (const ShardPiece& piece : weights.pieces())
    for (std::size_t kind = 0; kind < state.values.size(); ++kind)
      std::copy_n(state.values[kind].begin() + piece.range.offset, piece.range.count,
                  piece.values()[kind].begin());
  weights.steps() = state.step;
  weights.refresh();
}

}  // namespace dvla
