// dvla-test: torch
// OpenVLA's networks in ways of their own that must agree: padded and not, a batch and its rows, decoded and teacher-forced,
// adapters beside the weights and added in; what units are told; how many parameters the published one has. That they
// are the published ones is what records of those say (examples/parity.cpp).
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "dvla/model/openvla_network.hpp"  // first: doctest's CHECK replaces torch's
#include "dvla/testing/model.hpp"
#include "test/complaint.hpp"

using namespace dvla;
using dvla::detail::OpenVlaNetwork;
using dvla::detail::OpenVlaShape;

namespace {

OpenVlaShape small(bool parallel) {
  OpenVlaShape shape;
  shape.parallel = parallel;
  shape.views = 2;
  shape.dimensions = 3;
  shape.chunk = 2;
  shape.state = 4;
  shape.vocabulary = 60;
  shape.unused = 4;
  shape.bins = 16;
  for (parts::VitShape* tower : {&shape.dinov2, &shape.siglip}) {
    tower->image = 28;
    tower->layers = 3;
    tower->heads = 2;
    tower->mlp = 20;
  }
  shape.dinov2.width = 16;
  shape.siglip.width = 12;
  shape.language.width = 32;
  shape.language.layers = 3;
  shape.language.mlp = 48;
  shape.language.heads = shape.language.kv_heads = 4;
  shape.language.head_width = 8;
  return shape;
}

/// A network, all of its weights drawn, so that none is 0 or 1.
struct Small {
  explicit Small(const OpenVlaShape& shape, const Adapters& adapters = {})
      : weights(Dtype::f32, adapters), network(shape, weights) {
    weights.allocate(3);
    const auto draw = [](const at::Tensor& x) { return 0.3 * at::randn(x.sizes()); };
    for (const Parameter& each : weights.parameters()) {
      const c10::NoGradGuard no_graph;
      at::Tensor to = at::from_blob(each.data, each.shape);
      to.copy_(draw(to));
    }
    weights.hold_gradients(true);
  }
  Parameters weights;
  OpenVlaNetwork network;
};

/// `lengths`: of the prompts behind BOS; padded to the longest, at the front (as RLinf does) or at the end.
OpenVlaNetwork::Inputs padded(const OpenVlaShape& shape, const std::vector<std::int64_t>& lengths,
                              bool at_front) {
  const std::int64_t n = std::ssize(lengths), longest = *std::max_element(lengths.begin(), lengths.end());
  OpenVlaNetwork::Inputs inputs;
  inputs.pixels = at::randn({n, 6 * shape.views, 28, 28});
  inputs.state = at::randn({n, shape.state});
  inputs.tokens = at::full({n, longest + 1}, 39, at::kLong);
  inputs.token_mask = at::zeros({n, longest + 1}, at::kBool);
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t length = lengths[static_cast<std::size_t>(row)];
    inputs.tokens[row][0] = 1;
    inputs.token_mask[row][0] = true;
    const std::int64_t from = at_front ? longest + 1 - length : 1;
    inputs.token_mask[row].narrow(0, from, length).fill_(true);
    inputs.tokens[row].narrow(0, from, length).copy_(at::arange(row + 3, row + 3 + length));
  }
  return inputs;
}

/// Row `row`, without its padding.
OpenVlaNetwork::Inputs alone(const OpenVlaNetwork::Inputs& all, std::int64_t row) {
  const auto of = [&](const at::Tensor& x) { return x.narrow(0, row, 1); };
  return {of(all.pixels), of(all.tokens).masked_select(of(all.token_mask)).unsqueeze(0), at::Tensor(),
          of(all.state)};
}

double apart(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

at::Tensor some_actions(const OpenVlaShape& shape, std::int64_t n) {
  return at::randint(shape.first_action_token(), shape.first_action_token() + shape.bins,
                     {n, shape.actions()}, at::kLong);
}

}  // namespace

TEST_CASE(
    "padding is nobody's: wherever it stands, and in a batch, a row's outputs are those that it has alone") {
  const c10::InferenceMode no_graph;
  for (const bool parallel : {true, false}) {
    OpenVlaShape shape = small(parallel);
    for (const bool stop : {true, false}) {
      shape.stop = stop;
      const Small made(shape);
      const at::Tensor actions = some_actions(shape, 3);
      for (const bool at_front : {true, false}) {
        const OpenVlaNetwork::Inputs inputs = padded(shape, {5, 2, 4}, at_front);
        const auto together = made.network.forward(inputs, actions);
        CHECK(together.logits.sizes() == at::IntArrayRef{3, 6, 16});
        for (const std::int64_t row : {0, 1, 2}) {
          const auto own = made.network.forward(alone(inputs, row), actions.narrow(0, row, 1));
          CHECK(apart(together.logits.narrow(0, row, 1), own.logits) < 1e-5);
          CHECK(apart(together.hidden.narrow(0, row, 1), own.hidden) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("STOP and places count: either changes what OpenVLA-OFT puts out") {
  const c10::InferenceMode no_graph;
  OpenVlaShape shape = small(true);
  Small made(shape);
  const OpenVlaNetwork::Inputs inputs = padded(shape, {5, 2, 4}, true);
  const at::Tensor logits = made.network.forward(inputs).logits;
  const auto with = [&](OpenVlaShape other) {
    Small another(other);
    for (std::size_t i = 0; i < made.weights.parameters().size(); ++i) {
      const Parameter &from = made.weights.parameters()[i], &to = another.weights.parameters()[i];
      std::copy_n(from.data, from.bytes(), to.data);
    }
    return another.network.forward(inputs).logits;
  };
  CHECK(apart(with(shape), logits) == 0);
  shape.stop = false;
  CHECK(apart(with(shape), logits) > 1e-3);
  shape.stop = true;
  shape.places = dvla::detail::TokenPlaces::in_sequence;
  const at::Tensor placed = with(shape);
  CHECK(apart(placed.narrow(0, 0, 1), logits.narrow(0, 0, 1)) == 0);  // the longest prompt has no padding
  CHECK(apart(placed.narrow(0, 1, 1), logits.narrow(0, 1, 1)) > 1e-3);
}

TEST_CASE("OpenVLA decodes one token after the other what it puts out teacher-forced") {
  const c10::InferenceMode no_graph;
  OpenVlaShape shape = small(false);
  for (const auto places : {dvla::detail::TokenPlaces::among_valid, dvla::detail::TokenPlaces::in_sequence}) {
    shape.places = places;
    const Small made(shape);
    for (const bool masked : {true, false}) {
      OpenVlaNetwork::Inputs inputs = padded(
          shape, masked ? std::vector<std::int64_t>{5, 2, 4} : std::vector<std::int64_t>{4, 4, 4}, true);
      if (!masked) inputs.token_mask = at::Tensor();
      const at::Tensor actions = some_actions(shape, 3);
      const auto forced = made.network.forward(inputs, actions);
      auto [first, context] = made.network.begin(inputs);
      CHECK(apart(first.logits, forced.logits.narrow(1, 0, 1)) < 1e-5);
      for (std::int64_t e = 1; e < shape.actions(); ++e) {
        const auto next = made.network.next(context, actions.select(1, e - 1));
        CHECK(apart(next.logits, forced.logits.narrow(1, e, 1)) < 1e-5);
        CHECK(apart(next.hidden, forced.hidden.narrow(1, e, 1)) < 1e-5);
      }
    }
  }
}

TEST_CASE(
    "what is skipped changes nothing: an onlooker, for whom the last layer is computed whole, sees the same "
    "outputs") {
  const c10::InferenceMode no_graph;
  for (const bool parallel : {true, false}) {
    const OpenVlaShape shape = small(parallel);
    Small made(shape);
    const OpenVlaNetwork::Inputs inputs = padded(shape, {5, 2, 4}, true);
    const at::Tensor actions = some_actions(shape, 3), skipped = made.network.forward(inputs, actions).logits;
    std::int64_t seen = 0;
    made.network.watch([&](const std::string&, const at::Tensor&) { ++seen; });
    CHECK(apart(made.network.forward(inputs, actions).logits, skipped) < 1e-5);
    CHECK(seen > 0);
  }
}

TEST_CASE("units are used once each, forwards and backwards, with adapters and without") {
  for (const bool parallel : {true, false})
    for (const int rank : {0, 2})
      for (const bool regression : {false, true}) {
        if (regression && !parallel) continue;
        OpenVlaShape shape = small(parallel);
        shape.regression = regression;
        Small made(shape, rank == 0 ? Adapters{} : Adapters{.rank = rank, .alpha = 4});
        dvla::testing::detail::UnitLog log;
        made.weights.hook(&log);
        made.weights.backward_begins();
        const auto outputs = made.network.forward(padded(shape, {5, 2, 4}, true), some_actions(shape, 3));
        torch::autograd::backward(
            {regression ? outputs.actions.square().sum() : outputs.logits.square().sum()}, {});
        made.weights.backward_done();
        made.weights.hook(nullptr);
        for (const std::string& fault : log.faults(made.weights.units(), false)) FAIL_CHECK(fault);
        CHECK(made.weights.units().size() == 3 + 3 + 1 + 3 + 1);
        double sum = 0;
        for (const WeightUnit& unit : made.weights.units())
          for (const float value : unit.gradients) sum += std::abs(static_cast<double>(value));
        CHECK(sum > 0);
      }
}

TEST_CASE("what no pass reads neither trains nor has an adapter; all else has a gradient") {
  for (const int rank : {0, 2})
    for (const bool regression : {false, true}) {
      OpenVlaShape shape = small(true);
      shape.regression = regression;
      Small made(shape, rank == 0 ? Adapters{} : Adapters{.rank = rank, .alpha = 4});
      made.weights.backward_begins();
      const auto outputs = made.network.forward(padded(shape, {5, 2, 4}, true));
      torch::autograd::backward({(regression ? outputs.actions : outputs.logits).square().sum()}, {});
      made.weights.backward_done();
      std::vector<std::int64_t> next(made.weights.units().size());
      for (const Parameter& each : made.weights.parameters()) {
        CAPTURE(each.name);
        const bool unread = each.name.find("featurizer.blocks.2.") != std::string::npos ||
                            each.name.find("featurizer.norm.") != std::string::npos ||
                            each.name.find("attn_pool") != std::string::npos ||
                            (regression && each.name.find("lm_head") != std::string::npos);
        if (unread) CHECK(!each.trainable);
        if (rank == 0) CHECK(each.trainable != unread);
        if (!each.trainable) continue;
        const auto own = made.weights.units()[each.unit].gradients.subspan(
            static_cast<std::size_t>(next[each.unit]), static_cast<std::size_t>(each.count()));
        next[each.unit] += each.count();
        CHECK(std::ranges::any_of(own, [](float value) { return value != 0; }));
      }
    }
}

TEST_CASE("decoding tells of each unit, and that it has done with it, in the prompt and in every step") {
  const c10::InferenceMode no_graph;
  struct Log final : UnitHooks {
    void before_unit(std::size_t unit, Direction) override {
      CHECK(!open);
      open = true;
      units.push_back(unit);
    }
    void after_unit(std::size_t unit, Direction) override {
      CHECK((open && units.back() == unit));
      open = false;
    }
    void gradient_ready(std::size_t) override { CHECK(false); }
    std::vector<std::size_t> units;
    bool open = false;
  } log;
  const OpenVlaShape shape = small(false);
  Small made(shape);
  made.weights.hook(&log);
  auto [first, context] = made.network.begin(padded(shape, {5, 2, 4}, true));
  CHECK((log.units == std::vector<std::size_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  log.units.clear();
  made.network.next(context, some_actions(shape, 3).select(1, 0));
  CHECK((log.units == std::vector<std::size_t>{6, 7, 8, 9, 10}));
  CHECK(!log.open);
  made.weights.hook(nullptr);
}

TEST_CASE(
    "adapters of every layer, that of the patches too, have PEFT's shapes, and added in they change no "
    "output") {
  const c10::InferenceMode no_graph;
  const OpenVlaShape shape = small(true);
  Small adapted(shape, {.rank = 2, .alpha = 4}), merged(shape);
  const auto shape_of = [&](const std::string& name) {
    const auto& all = adapted.weights.parameters();
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const Parameter& each) { return each.name == name; });
    REQUIRE(found != all.end());
    return found->shape;
  };
  const std::string patches = "base_model.model.vision_backbone.featurizer.patch_embed.proj";
  CHECK(shape_of(patches + ".lora_A.weight") == std::vector<std::int64_t>{2, 3, 14, 14});
  CHECK(shape_of(patches + ".lora_B.weight") == std::vector<std::int64_t>{16, 2, 1, 1});
  CHECK(shape_of("base_model.model.language_model.lm_head.lora_B.weight") ==
        std::vector<std::int64_t>{60, 2});
  std::size_t next = 0;
  adapted.weights.merged([&](const Parameter& each, const at::Tensor& value) {
    const Parameter& to = merged.weights.parameters().at(next++);
    REQUIRE(to.name == each.name);
    at::from_blob(to.data, to.shape).copy_(value);
  });
  CHECK(next == merged.weights.parameters().size());
  const OpenVlaNetwork::Inputs inputs = padded(shape, {5, 2, 4}, true);
  const at::Tensor with = adapted.network.forward(inputs).logits;
  CHECK(apart(merged.network.forward(inputs).logits, with) < 1e-4);
  adapted.weights.use_adapters(false);
  CHECK(apart(adapted.network.forward(inputs).logits, with) > 1e-2);
}

TEST_CASE("the published OpenVLA-OFT has 7,541,237,184 parameters, by the names of its files") {
  Parameters weights(Dtype::bf16);
  const OpenVlaNetwork network(OpenVlaShape{}, weights);
  const auto& all = weights.parameters();
  CHECK(std::accumulate(all.begin(), all.end(), std::int64_t{0}, [](std::int64_t sum, const Parameter& each) {
          return sum + each.count();
        }) == 7'541'237'184);
  const auto starting = [&](const std::string& prefix) {
    std::int64_t sum = 0;
    for (const Parameter& each : all)
      if (each.name.starts_with(prefix)) sum += each.count();
    return sum;
  };
  CHECK(starting("vision_backbone.featurizer.") == 303'230'976);
  CHECK(starting("vision_backbone.fused_featurizer.") == 427'680'704);
  CHECK(starting("projector.") == 71'385'600);
  CHECK(starting("language_model.") == 6'738'939'904);
}

TEST_CASE("towers that cannot be OpenVLA's are refused in one sentence") {
  OpenVlaShape shape = small(true);
  shape.siglip.patch = 7;
  Parameters weights;
  CHECK(dvla_test::complaint([&] { OpenVlaNetwork(shape, weights); }).find("equally many patches") !=
        std::string::npos);
}
