// dvla-test: torch
// SmolVLA's network: a denoising step over the prefix's keys and values is the joint pass, what is left out makes no
// difference, and its units are used as a sharded trainer wants them. That it is the published one, examples/parity
// shows against records of it.
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dvla/model/smolvla_network.hpp"
#include "dvla/testing/model.hpp"

using namespace dvla;
using Network = dvla::detail::SmolVlaNetwork;
using Shape = dvla::detail::SmolVlaShape;

namespace {

constexpr std::int64_t rows = 2;

Shape small() {
  Shape shape;
  shape.views = 2, shape.text = 5, shape.horizon = 4, shape.actions = 7, shape.states = 6;
  shape.vocabulary = 50, shape.shuffle = 2;
  shape.vision = {.width = 24, .layers = 2, .heads = 2, .mlp = 32, .image = 32, .patch = 8};
  shape.language.width = 48, shape.language.layers = 4, shape.language.mlp = 64;
  shape.language.heads = 6, shape.language.kv_heads = 2, shape.language.head_width = 8;
  shape.expert = shape.language;
  shape.expert.width = 36, shape.expert.mlp = 40;
  return shape;
}
/// Row 0 lacks the second camera and its prompt's last token.
Network::Inputs some_inputs(const Shape& shape) {
  Network::Inputs inputs;
  for (std::int64_t view = 0; view < shape.views; ++view)
    inputs.images.push_back(at::rand({rows, 3, shape.vision.image, shape.vision.image}) * 2 - 1);
  inputs.image_mask = at::ones({rows, shape.views}, at::kBool);
  inputs.image_mask.select(0, 0).select(0, 1).fill_(false);
  inputs.tokens = at::randint(shape.vocabulary, {rows, shape.text}, at::kLong);
  inputs.token_mask = at::ones({rows, shape.text}, at::kBool);
  inputs.token_mask.select(0, 0).select(0, shape.text - 1).fill_(false);
  inputs.state = at::randn({rows, shape.states});
  return inputs;
}
double apart(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

}  // namespace

TEST_CASE("SmolVLA's velocity is that of the joint pass, with what nobody reads left out") {
  Shape shape = small();
  for (const std::int64_t every : {0, 1, 2, 3}) {
    CAPTURE(every);
    shape.joint_every = every;
    Parameters weights;
    const Network network(shape, weights);
    weights.allocate(3);
    const c10::InferenceMode no_graph;
    Network::Inputs inputs = some_inputs(shape);
    at::Tensor x = at::randn({rows, shape.horizon, shape.actions}), times = at::rand({rows});
    const at::Tensor joint = network.forward(inputs, x, times);
    CHECK(apart(network.velocity(network.prefix(inputs), x, times), joint) < 1e-6);
    // Row 0 alone: a camera that it lacks is not looked through, and its prompt may be cut.
    const auto first = [](at::Tensor& of) { of = of.narrow(0, 0, 1); };
    for (at::Tensor* each : {&inputs.images[0], &inputs.images[1], &inputs.image_mask, &inputs.tokens,
                             &inputs.token_mask, &inputs.state, &x, &times})
      first(*each);
    CHECK(apart(network.velocity(network.prefix(inputs), x, times), joint.narrow(0, 0, 1)) < 1e-5);
    inputs.tokens = inputs.tokens.narrow(1, 0, shape.text - 1);
    inputs.token_mask = inputs.token_mask.narrow(1, 0, shape.text - 1);
    CHECK(apart(network.velocity(network.prefix(inputs), x, times), joint.narrow(0, 0, 1)) < 1e-5);
    // The state and the first action decide what the first action becomes, later actions do not.
    at::Tensor other = x.clone();
    other.narrow(1, 1, shape.horizon - 1).add_(1);
    const auto prefix = network.prefix(inputs);
    const at::Tensor before = network.velocity(prefix, x, times),
                     after = network.velocity(prefix, other, times);
    CHECK(apart(after.narrow(1, 0, 1), before.narrow(1, 0, 1)) < 1e-6);
    CHECK(apart(after.narrow(1, 1, 1), before.narrow(1, 1, 1)) > 1e-3);
  }
}

TEST_CASE("SmolVLA's units are used once each way, and complete in order") {
  const Shape shape = small();
  struct Case {
    std::string name;
    Adapters adapters;
    bool expert_alone;
  };
  const Adapters everywhere{.rank = 2, .alpha = 4, .targets = ".*"};
  for (const Case& each :
       {Case{"whole", {}, false}, Case{"expert alone", {}, true}, Case{"adapters", everywhere, false}}) {
    CAPTURE(each.name);
    Parameters weights(Dtype::f32, each.adapters);
    const Network network(shape, weights, each.expert_alone);
    weights.allocate(3);
    weights.hold_gradients(true);
    dvla::testing::detail::UnitLog log;
    weights.hook(&log);
    const at::Tensor v = network.forward(some_inputs(shape), at::randn({rows, shape.horizon, shape.actions}),
                                         at::rand({rows}));
    weights.backward_begins();
    torch::autograd::backward({v.square().mean()}, {});
    weights.backward_done();
    weights.hook(nullptr);
    const auto faults = log.faults(weights.units(), false);
    CHECK_MESSAGE(faults.empty(), (faults.empty() ? "" : faults.front()));
    CHECK(std::ranges::is_sorted(log.ready, std::ranges::greater()));
  }
}

TEST_CASE("SmolVLA's defaults have the published parameters, but for the language model's dead head") {
  Parameters weights(Dtype::bf16);
  const Network network(Shape{}, weights);
  std::int64_t count = 0, unread = 0;
  for (const Parameter& each : weights.parameters()) {
    count += each.count();
    if (!each.trainable) unread += each.count();
  }
  CHECK(count + 49280 * 960 == 450046176);
  // The last layer but for its first norm and what makes keys and values, and the norm at the end.
  CHECK(unread == 2 * 960 * 960 + 3 * 960 * 2560 + 960 + 960);
  CHECK(network.shape().image_tokens() == 64);
}
