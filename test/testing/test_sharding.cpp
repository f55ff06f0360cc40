// dvla-test: core
// The sharding suite must find each way of breaking a promise: weights of one trainer, broken by a switch.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "dvla/sharding/unsharded.hpp"
#include "dvla/testing/sharding.hpp"
#include "test/testing/found.hpp"

using dvla::testing::LinearModel;

namespace {

enum class Break {
  nothing,
  dirty,
  misses,
  old_pack,
  any_size,
  gradients,
  accumulates,
  decay,
  clipped,
  not_a_number,
  half_step,
  forgets_weights,
  keeps_steps,
  old_masters,
  no_refresh,
  thaws,
  no_masters
};

struct Broken : dvla::UnshardedWeights<LinearModel> {
  using Base = dvla::UnshardedWeights<LinearModel>;
  Broken(LinearModel& whose, std::pmr::memory_resource& memory, Break broken = Break::nothing)
      : Base(whose, memory), model(whose), how(broken), packed(packed_bytes()) {
    Base::pack(packed);
    if (how == Break::dirty) Base::pieces()[0].second_moment[2] = 1;
  }
  void zero_gradients() {
    if (how != Break::gradients) Base::zero_gradients();
  }
  double step(dvla::AdamWKnobs knobs) {
    if (how == Break::decay) knobs.weight_decay = 0;
    if (how == Break::half_step) Base::pieces()[0].first_moment[0] += 1;
    if (how == Break::not_a_number)
      for (const dvla::WeightUnit& unit : model.units())
        for (float& value : unit.gradients)
          if (!std::isfinite(value)) value = 0;
    const double norm = Base::step(knobs);
    if (how == Break::accumulates) Base::step(knobs);
    if (how == Break::thaws && !model.parameters()[0].trainable && steps() == 1)
      model.parameters()[0].data[0] ^= std::byte{1};
    if (how == Break::no_masters)
      for (const dvla::ShardPiece& piece : Base::pieces())
        for (float& value : piece.weight) value = dvla::from_bf16(dvla::to_bf16(value));
    return how == Break::clipped && knobs.max_grad_norm > 0 ? std::min(norm, knobs.max_grad_norm) : norm;
  }
  void reset_optimiser() {
    const std::int64_t before = steps();
    Base::reset_optimiser();
    if (how == Break::keeps_steps) steps() = before;
    if (how == Break::forgets_weights) model.units().back().values[0] ^= std::byte{1};
  }
  std::vector<dvla::ShardPiece> pieces() {
    std::vector<dvla::ShardPiece> all = Base::pieces();
    if (how == Break::misses) all.pop_back();
    return all;
  }
  void take_parameters() {
    if (how != Break::old_masters) Base::take_parameters();
  }
  void refresh() {
    if (how != Break::no_refresh) Base::refresh();
  }
  void pack(std::span<std::byte> out) const {
    if (how == Break::any_size && out.size() != packed.size()) return;
    Base::pack(out);
    if (how == Break::old_pack) std::ranges::copy(packed, out.begin());
  }
  LinearModel& model;
  const Break how;
  std::vector<std::byte> packed;
};

std::string said(Break how) {
  return lines(dvla::testing::check_sharding(
      [how](LinearModel& model, std::pmr::memory_resource& memory) { return Broken(model, memory, how); }));
}

}  // namespace

TEST_CASE("weights that keep their promises are not accused") { CHECK(said(Break::nothing) == ""); }

TEST_CASE("each broken promise is found and named") {
  check_each_is_found<Break>(
      {
          {Break::dirty, "must begin with moments and steps at 0"},
          {Break::misses, "pieces() must hold every trainable element once"},
          {Break::old_pack, "pack after a step must write the new weights"},
          {Break::any_size, "must be refused: packing into a buffer of another size"},
          {Break::gradients, "zero_gradients must leave no gradient"},
          {Break::accumulates, "off plain AdamW"},
          {Break::decay, "off plain AdamW"},
          {Break::clipped, "step with clipping must return the gradient's norm before clipping"},
          {Break::not_a_number, "must be refused: a step on a gradient of nan"},
          {Break::half_step, "a step that is refused for a gradient of inf must change nothing"},
          {Break::forgets_weights, "reset_optimiser must keep the weights"},
          {Break::keeps_steps, "reset_optimiser must forget moments and steps"},
          {Break::old_masters, "the step after take_parameters and reset_optimiser must be a first step"},
          {Break::no_refresh, "refresh must bring the model up to date with the masters"},
          {Break::thaws, "a step must leave every bit of what is frozen"},
          {Break::no_masters, "masters must keep what rounding to bf16 loses"},
      },
      said);
}
