// dvla-test: torch
// Activations that a backward pass computes again: the same numbers come out, the model keeps its promises, and less is kept.
#include <ATen/ops/randn.h>
#include <ATen/ops/tanh.h>
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/openvla_oft.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/model/smolvla.hpp"
#include "dvla/model/with_value.hpp"
#include "dvla/testing/model.hpp"
#include "test/model/vla.hpp"

using namespace dvla;
using dvla_test::all, dvla_test::some_inputs;

namespace {

template <class Knobs>
Knobs tiny() {
  Knobs knobs;
  knobs.random = RandomWeights::tiny;
  knobs.chunk = 3;
  return knobs;
}

/// Log-probabilities and gradients of a training pass.
template <class Model>
std::vector<std::vector<float>> trained(Model& model, const ModelInputs& inputs) {
  dvla::testing::detail::ModelBatch<Model> batch(model, inputs, 4);
  batch.act(model, Decoding::sample, 5);
  model.hold_gradients(true);
  batch.accumulate(model, batch.order);
  std::vector<std::vector<float>> result{batch.log_prob(model, batch.order)};
  for (const WeightUnit& unit : model.units())
    result.emplace_back(unit.gradients.begin(), unit.gradients.end());
  return result;
}

/// The largest difference from `of`, over the largest number in it.
double difference(const std::vector<float>& from, const std::vector<float>& of) {
  REQUIRE_EQ(from.size(), of.size());
  double most = 0, apart = 0;
  for (std::size_t i = 0; i < of.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(of[i])));
    apart = std::max(apart, std::abs(static_cast<double>(from[i]) - static_cast<double>(of[i])));
  }
  return most > 0 ? apart / most : apart;
}

template <class Model, class Knobs>
void check_same(Knobs knobs) {
  Model::use_threads(1);
  const ModelInputs inputs = some_inputs();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    CAPTURE(enum_name(dtype));
    knobs.dtype = dtype;
    knobs.gradient_checkpointing = false;
    Model keeps(knobs, inputs, 3);
    const std::size_t planned = Model::plan(knobs, inputs, 2, 4).training_bytes;
    knobs.gradient_checkpointing = true;
    Model recomputes(knobs, inputs, 3);
    CHECK_LT(Model::plan(knobs, inputs, 2, 4).training_bytes, planned);
    const auto one = trained(keeps, inputs), other = trained(recomputes, inputs);
    REQUIRE_EQ(one.size(), other.size());
    CHECK(one[0] == other[0]);
    double largest = 0;
    for (std::size_t unit = 1; unit < one.size(); ++unit) {
      CAPTURE(unit);
      // What a condition gets from every layer is added up in another order, in bfloat16 with its rounding.
      CHECK_LE(difference(other[unit], one[unit]), dtype == Dtype::f32 ? 1e-5 : 0.02);
      for (const float value : one[unit]) largest = std::max(largest, std::abs(static_cast<double>(value)));
    }
    CHECK_GT(largest, 0);
    const auto make = [&](std::uint64_t seed) { return Model(knobs, inputs, seed); };
    CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
  }
}

}  // namespace

TEST_CASE("of pi0.5, whole, beside a frozen vision-language model and under LoRA") {
  auto knobs = tiny<FlowVlaKnobs>();
  check_same<Pi05Model>(knobs);
  knobs.train = Trained::expert;
  check_same<Pi05Model>(knobs);
  knobs.train = Trained::all;
  LoraKnobs<FlowVlaKnobs> adapted{knobs};
  adapted.lora_rank = 2;
  check_same<LoraModel<Pi05Model>>(adapted);
}
TEST_CASE("of pi0.5 with a value head, whole and frozen, and with learned noise") {
  ValueKnobs<FlowVlaKnobs> judging{tiny<FlowVlaKnobs>()};
  check_same<ValueModel<Pi05Model>>(judging);
  judging.train = Trained::expert;
  judging.noise = FlowNoise::flow_noise;
  check_same<ValueModel<Pi05Model>>(judging);
  ValueKnobs<OpenVlaOftKnobs> tokens{tiny<OpenVlaOftKnobs>()};
  check_same<ValueModel<OpenVlaOftModel>>(tokens);
}
TEST_CASE("of SmolVLA, whole and beside a frozen vision-language model") {
  auto knobs = tiny<FlowVlaKnobs>();
  check_same<SmolVlaModel>(knobs);
  knobs.train = Trained::expert;
  check_same<SmolVlaModel>(knobs);
}
TEST_CASE("of OpenVLA-OFT, whole and under LoRA") {
  const auto knobs = tiny<OpenVlaOftKnobs>();
  check_same<OpenVlaOftModel>(knobs);
  LoraKnobs<OpenVlaOftKnobs> adapted{knobs};
  adapted.lora_rank = 2;
  check_same<LoraModel<OpenVlaOftModel>>(adapted);
}

TEST_CASE("a part is called once forwards and once more backwards, and keeps what goes in alone") {
  const at::Tensor weight = at::randn({4, 4}).requires_grad_(true), x = at::randn({2, 4});
  int calls = 0;
  const dvla::detail::NetworkPart part = [&](const std::vector<at::Tensor>& in) {
    ++calls;
    return std::vector{at::tanh(in[0].mm(weight)), in[0] * 2};
  };
  at::Tensor alone;
  {
    const std::vector<at::Tensor> y = part({x});
    torch::autograd::backward({y[0].sum()}, {});
    alone = weight.grad().clone();
    weight.mutable_grad().reset();
  }
  calls = 0;
  const auto y = dvla::detail::recomputed(part, {x}, true, 2);  // nothing that goes in wants a gradient
  CHECK_EQ(calls, 1);
  torch::autograd::backward({y[0].sum()}, {});
  CHECK_EQ(calls, 2);
  CHECK(weight.grad().equal(alone));
  CHECK_FALSE(dvla::detail::recomputed(part, {x}, false, 2)[0].grad_fn() == nullptr);  // as without
  const auto first = dvla::detail::recomputed(part, {x}, true, 1);
  CHECK(first[0].requires_grad());
  CHECK_FALSE(first[1].requires_grad());
  const c10::InferenceMode no_graph;
  CHECK_FALSE(dvla::detail::recomputed(part, {x}, true, 2)[0].requires_grad());
}
