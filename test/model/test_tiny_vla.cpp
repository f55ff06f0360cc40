// dvla-test: torch
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory_resource>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/process_limits.hpp"
#include "dvla/model/lora.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/testing/model.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;

namespace {

ModelInputs state_inputs() {
  ModelInputs inputs;
  inputs.observation.proprioception = 7;
  inputs.observation.instructions = {"push the cube to the left goal", "push the cube right"};
  inputs.action.dimensions = 2;
  inputs.chunk = 4;
  return inputs;
}

ModelInputs camera_inputs() {
  ModelInputs inputs = state_inputs();
  inputs.observation.cameras = {{
                                    "top",
                                    16,
                                    24,
                                },
                                {"wrist", 8, 8}};
  inputs.chunk = 2;
  return inputs;
}

template <class Head = TokenHead>
typename Head::knobs small(int chunk) {
  typename Head::knobs knobs;
  knobs.width = 32;
  knobs.blocks = 2;
  knobs.attention_heads = 2;
  knobs.chunk = chunk;
  if constexpr (requires { knobs.bins; }) knobs.bins = 8;
  return knobs;
}

template <class Head>
struct Rollout {
  Rollout(const typename Head::knobs& knobs, const ModelInputs& inputs, std::int64_t n)
      : model(knobs, inputs, 3),
        observation(observation_layout(inputs.observation, {n}), *std::pmr::new_delete_resource()),
        decision(model.decision_layout({n}), *std::pmr::new_delete_resource()),
        storage(static_cast<std::size_t>(n * inputs.chunk * inputs.action.dimensions)),
        action({n, inputs.chunk, inputs.action.dimensions}, storage.data()) {
    dvla::testing::fill_observation(*observation, inputs.observation, 4);
    for (std::int64_t i = 0; i < n; ++i) rows.push_back(i);
  }
  void act(std::uint64_t seed, Decoding decoding = Decoding::sample) {
    model.act(*observation, rows, decoding, seed, *decision, action);
  }
  std::span<float> weights(std::size_t unit) { return model.units()[unit].floats(); }

  TinyVlaModel<Head> model;
  OwnedRecord<Observation> observation;
  OwnedRecord<typename TinyVlaModel<Head>::Decision> decision;
  std::vector<float> storage;
  Field<float> action;
  std::vector<std::int64_t> rows;
};

using dvla::testing::detail::gradients_of;
using dvla::testing::detail::weights_of;

std::string all(const std::vector<std::string>& sentences) {
  std::string text;
  for (const auto& sentence : sentences) text += sentence + "\n";
  return text;
}

}  // namespace

static_assert(ModelMachinery<TinyVlaModel<TokenHead>>);
static_assert(ModelMachinery<TinyVlaModel<FlowHead>>);

TEST_CASE_TEMPLATE("TinyVLA keeps what a model promises, from state and from images", Head, TokenHead,
                   FlowHead) {
  TinyVlaModel<Head>::use_threads(1);
  for (const ModelInputs& inputs : {state_inputs(), camera_inputs()}) {
    const auto make = [&](std::uint64_t seed) {
      return TinyVlaModel<Head>(small<Head>(static_cast<int>(inputs.chunk)), inputs, seed);
    };
    CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
  }
}

TEST_CASE("a dimension of categories is served by tokens, refused by flow matching, and wants as many bins") {
  TinyVlaModel<TokenHead>::use_threads(1);
  ModelInputs inputs = state_inputs();
  inputs.action.categories.assign(static_cast<std::size_t>(inputs.action.dimensions), 0);
  inputs.action.categories.back() = 5;
  const auto make = [&](std::uint64_t seed) {
    return TinyVlaModel<TokenHead>(small(static_cast<int>(inputs.chunk)), inputs, seed);
  };
  CHECK_EQ(all(dvla::testing::check_model(make, inputs)), "");
  CHECK_THROWS_WITH_AS(TinyVlaModel<FlowHead>(small<FlowHead>(static_cast<int>(inputs.chunk)), inputs, 1),
                       "the model's actions are continuous, as flow matching makes them, and the environment "
                       "has a dimension of "
                       "categories; choose a model with tokens (TinyVLA<TokenHead>)",
                       dvla::ConfigError);
  inputs.action.categories.back() = 9;
  CHECK_THROWS_WITH_AS(
      make(1), "model.bins is 8, and an action's dimension is one of 9 categories; raise it to 9 or more",
      dvla::ConfigError);
}

TEST_CASE_TEMPLATE("so it does in bfloat16, and with adapters on a frozen base, of either precision", Head,
                   TokenHead, FlowHead) {
  TinyVlaModel<Head>::use_threads(1);
  const ModelInputs inputs = camera_inputs();
  auto knobs = small<Head>(static_cast<int>(inputs.chunk));
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    knobs.dtype = dtype;
    const auto plain = [&](std::uint64_t seed) { return TinyVlaModel<Head>(knobs, inputs, seed); };
    if (dtype != Dtype::f32) CHECK_EQ(all(dvla::testing::check_model(plain, inputs)), "");
    LoraKnobs<typename Head::knobs> lora{knobs};
    lora.lora_rank = 4;
    const auto adapted = [&](std::uint64_t seed) {
      return LoraModel<TinyVlaModel<Head>>(lora, inputs, seed);
    };
    CHECK_EQ(all(dvla::testing::check_model(adapted, inputs)), "");
  }
}

TEST_CASE("adapters stand beside the layers that are targets, and are all that trains") {
  LoraKnobs<TokenHeadKnobs> knobs{small(4)};
  knobs.lora_rank = 2;
  knobs.lora_targets = R"(blocks\.\d+\.mlp\.(in|out))";
  const LoraModel<TinyVlaModel<TokenHead>> model(knobs, state_inputs(), 3);
  std::vector<std::string> trainable;
  for (const Parameter& each : model.parameters())
    if (each.trainable) trainable.push_back(each.name);
  CHECK_EQ(trainable, std::vector<std::string>{"base_model.model.blocks.0.mlp.in.lora_A.weight",
                                               "base_model.model.blocks.0.mlp.in.lora_B.weight",
                                               "base_model.model.blocks.0.mlp.out.lora_A.weight",
                                               "base_model.model.blocks.0.mlp.out.lora_B.weight",
                                               "base_model.model.blocks.1.mlp.in.lora_A.weight",
                                               "base_model.model.blocks.1.mlp.in.lora_B.weight",
                                               "base_model.model.blocks.1.mlp.out.lora_A.weight",
                                               "base_model.model.blocks.1.mlp.out.lora_B.weight"});
  CHECK_EQ(trainable_count(model.units()), 2 * 2 * 2 * (32 + 128));
  const std::vector<Parameter> plan = decltype(model)::plan(knobs, state_inputs(), 16, 16).parameters;
  REQUIRE_EQ(plan.size(), model.parameters().size());
  for (std::size_t i = 0; i < plan.size(); ++i) {
    CHECK_EQ(plan[i].name, model.parameters()[i].name);
    CHECK_EQ(plan[i].shape, model.parameters()[i].shape);
    CHECK_EQ(plan[i].trainable, model.parameters()[i].trainable);
  }
  const auto refusal = [&](const std::string& targets) -> std::string {
    knobs.lora_targets = targets;
    try {
      const LoraModel<TinyVlaModel<TokenHead>> refused(knobs, state_inputs(), 3);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  CHECK(refusal("gate_proj")
            .starts_with("model.lora_targets is 'gate_proj', which matches no linear layer; they are "
                         "proprioception, blocks.0."));
  CHECK(refusal("(").starts_with("model.lora_targets is '(', which is no regular expression: "));
}

TEST_CASE("merged weights are those of a base that gives the same log-probabilities without adapters") {
  LoraKnobs<TokenHeadKnobs> knobs{small(4)};
  knobs.lora_rank = 3;
  knobs.lora_alpha = 5;
  LoraModel<TinyVlaModel<TokenHead>> adapted(knobs, state_inputs(), 3);
  std::vector<float> weights = weights_of(adapted);
  SplitMix64 random(5);
  for (float& value : weights) value = static_cast<float>(0.05 * random.normal());
  dvla::testing::detail::set_weights(adapted, weights);

  Rollout<TokenHead> base(small(4), state_inputs(), 6);
  adapted.merged([&](const Parameter& parameter, const at::Tensor& value) {
    for (const Parameter& each : base.model.parameters())
      if (each.name == parameter.name) std::memcpy(each.data, value.const_data_ptr(), each.bytes());
  });
  base.act(1);
  std::vector<float> expected(base.storage.size()), entropy(expected.size());
  adapted.forward(*base.observation, *base.decision, base.rows, expected, entropy);
  for (std::size_t i = 0; i < expected.size(); ++i)
    CHECK(base.decision->log_prob[static_cast<std::int64_t>(i)] ==
          doctest::Approx(expected[i]).epsilon(1e-4));
}

TEST_CASE(
    "the reference policy of a model with adapters is the base as it was, whatever the adapters have "
    "learned") {
  static_assert(HasReference<LoraModel<TinyVlaModel<TokenHead>>> && !HasReference<TinyVlaModel<TokenHead>>);
  LoraKnobs<TokenHeadKnobs> knobs{small(4)};
  LoraModel<TinyVlaModel<TokenHead>> adapted(knobs, state_inputs(), 3);
  Rollout<TokenHead> base(small(4), state_inputs(), 6);
  base.act(1);
  const std::size_t count = base.storage.size();
  std::vector<float> before(count), entropy(count), moved(count), reference(count), again(count);
  adapted.forward(*base.observation, *base.decision, base.rows, before, entropy);  // B is 0
  std::vector<float> weights = weights_of(adapted);
  SplitMix64 random(5);
  for (float& value : weights) value = static_cast<float>(0.05 * random.normal());
  dvla::testing::detail::set_weights(adapted, weights);
  adapted.forward(*base.observation, *base.decision, base.rows, moved, entropy);
  adapted.reference(*base.observation, *base.decision, base.rows, reference);
  adapted.forward(*base.observation, *base.decision, base.rows, again, entropy);
  CHECK(moved != before);
  CHECK(reference == before);
  CHECK(again == moved);
}

TEST_CASE("a frozen base gets public weights, in files with an index or in one") {
  const dvla_test::TemporaryFolder folder;
  const TinyVlaModel<TokenHead> base(small(4), state_inputs(), 3);
  LoraKnobs<TokenHeadKnobs> knobs{small(4)};
  for (const std::uint64_t limit : {io::shard_bytes, std::uint64_t{10000}}) {
    const auto path = io::write_safetensors(folder / "model.safetensors",
                                            weights_to_write(base, WeightSet::all), {}, limit);
    CHECK_EQ(path.extension() == ".json", limit < io::shard_bytes);
    for (const std::filesystem::path& from : {path, folder.path()}) {
      knobs.base_checkpoint = from.string();
      const LoraModel<TinyVlaModel<TokenHead>> adapted(knobs, state_inputs(), 4);
      std::size_t same = 0;
      for (const Parameter& each : adapted.parameters())
        for (const Parameter& other : base.parameters())
          same += each.name == other.name && std::memcmp(each.data, other.data, each.bytes()) == 0;
      CHECK_EQ(same, base.parameters().size());
    }
  }
}

namespace {

/// [first, past the last) of all mappings of a file.
std::vector<std::pair<std::uintptr_t, std::uintptr_t>> mappings(const std::filesystem::path& path) {
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t first = 0, last = 0;
    char rights[5] = {};
    if (!line.ends_with(path.string()) ||
        std::sscanf(line.c_str(), "%lx-%lx %4s", &first, &last, rights) != 3)
      continue;
    CHECK_EQ(std::string(rights), "r--p");
    found.emplace_back(first, last);
  }
  return found;
}

}  // namespace

TEST_CASE("a frozen base is not read before it is used: its tensors are the mapped file's") {
  const dvla_test::TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.safetensors";
  LoraKnobs<TokenHeadKnobs> knobs{small(4)};
  knobs.width = 512;
  knobs.blocks = 4;
  std::size_t size = 0;
  {
    const TinyVlaModel<TokenHead> base(knobs, state_inputs(), 3);
    io::write_safetensors(path, weights_to_write(base, WeightSet::all));
    size = std::filesystem::file_size(path);
  }
  REQUIRE(size > (std::size_t{32} << 20));
  knobs.base_checkpoint = path.string();
  for (const Parameter& each :
       LoraModel<TinyVlaModel<TokenHead>>::plan(knobs, state_inputs(), 8, 8).parameters)
    CHECK_EQ(each.mapped, !each.trainable);
  const std::size_t before = resident_bytes();
  {
    LoraModel<TinyVlaModel<TokenHead>> model(knobs, state_inputs(), 4);
    const LoraModel<TinyVlaModel<TokenHead>> copy(model, share_frozen);
    CHECK_LT(resident_bytes(), before + size / 4);

    const auto ranges = mappings(path);
    REQUIRE_EQ(ranges.size(), 1);
    const io::SafetensorsFile file(path);
    std::size_t frozen = 0;
    for (std::size_t i = 0; i < model.parameters().size(); ++i) {
      const Parameter& each = model.parameters()[i];
      const auto at = reinterpret_cast<std::uintptr_t>(each.data);
      CHECK_EQ(each.mapped, !each.trainable);
      CHECK_EQ(at >= ranges[0].first && at + each.bytes() <= ranges[0].second, !each.trainable);
      CHECK_EQ(copy.parameters()[i].data == each.data, !each.trainable);
      if (each.trainable) continue;
      frozen += each.bytes();
      CHECK_EQ(std::memcmp(each.data, file.tensor(each.name).bytes.data(), each.bytes()), 0);
    }
    CHECK(frozen > size / 10 * 9);
    CHECK_GT(resident_bytes(), before + size / 2);  // now it was used

    // What the base is stays: the same weights again are none the worse, others are refused.
    load_weights(model, file, WeightSet::frozen);
    const TinyVlaModel<TokenHead> other(knobs, state_inputs(), 5);
    io::write_safetensors(folder / "other", weights_to_write(other, WeightSet::all));
    const std::string said = dvla_test::message_of<ConfigError>(
        [&] { load_weights(model, io::SafetensorsFile(folder / "other"), WeightSet::frozen); });
    CHECK(dvla_test::contains(said, "is not what this model has mapped from its base"));
  }
  CHECK(mappings(path).empty());

  // In another precision it is read and rounded, as ever.
  knobs.dtype = Dtype::bf16;
  const LoraModel<TinyVlaModel<TokenHead>> rounded(knobs, state_inputs(), 4);
  for (const Parameter& each : rounded.parameters()) CHECK_FALSE(each.mapped);
  CHECK(mappings(path).empty());
}

TEST_CASE_TEMPLATE("at the default size the ratio is 1 for every batch size and number of threads", Head,
                   TokenHead, FlowHead) {
  Rollout<Head> rollout({}, state_inputs(), 128);
  double worst = 0;
  // As far from uniform as a trained policy.
  for (std::size_t unit = 0; unit < rollout.model.units().size(); ++unit)
    for (float& weight : rollout.weights(unit)) weight *= 1.3f;
  for (float& weight : rollout.weights(rollout.model.units().size() - 1)) weight *= 10;
  for (const int sampling : {1, 2}) {
    for (const int training : {1, 2}) {
      TinyVlaModel<Head>::use_threads(sampling);
      rollout.act(7);
      TinyVlaModel<Head>::use_threads(training);
      for (const std::size_t size : {1u, 2u, 3u, 17u, 33u, 64u, 128u}) {
        for (std::size_t first = 0; first + size <= 128; first += 59) {
          worst = std::max(worst, check_ratio(rollout.model, *rollout.observation, *rollout.decision,
                                              std::span(rollout.rows).subspan(first, size))
                                      .error);
        }
      }
    }
  }
  MESSAGE("worst |ratio - 1|: " << worst);
  CHECK_LE(worst, 1e-5);
}

TEST_CASE_TEMPLATE("gradients accumulate in place, at the addresses that units() gave", Head, TokenHead,
                   FlowHead) {
  Rollout<Head> rollout(small<Head>(4), state_inputs(), 6);
  rollout.act(1);
  rollout.model.hold_gradients(true);
  const float* before = rollout.model.units()[1].gradients.data();
  std::vector<float> log_prob(rollout.storage.size()), entropy(log_prob.size()), ones(log_prob.size(), 1.0f);
  std::vector<float> first;
  for (int pass = 1; pass <= 3; ++pass) {
    rollout.model.forward(*rollout.observation, *rollout.decision, rollout.rows, log_prob, entropy);
    rollout.model.backward(ones, ones);
    CHECK_EQ(rollout.model.units()[1].gradients.data(), before);
    const std::vector<float> gradients = gradients_of(rollout.model);
    if (pass == 1) first = gradients;
    double worst = 0;
    for (std::size_t i = 0; i < first.size(); ++i) {
      worst =
          std::max(worst, static_cast<double>(std::abs(gradients[i] - static_cast<float>(pass) * first[i])));
    }
    CHECK_LE(worst, 1e-4);
  }
  // Every named tensor takes part.
  std::size_t offset = 0;
  const std::vector<float> gradients = gradients_of(rollout.model);
  for (const Parameter& each : rollout.model.parameters()) {
    const auto part = std::span(gradients).subspan(offset, static_cast<std::size_t>(each.count()));
    CHECK_MESSAGE(std::ranges::any_of(part, [](float g) { return g != 0; }), each.name);
    offset += part.size();
  }
}

TEST_CASE("two models work at the same time in two threads, each with its own number of cores") {
  const auto once = [](int threads) {
    TinyVlaModel<TokenHead>::use_threads(threads);
    Rollout<TokenHead> rollout(small(4), state_inputs(), 32);
    rollout.model.hold_gradients(true);
    std::vector<float> log_prob(rollout.storage.size()), entropy(log_prob.size()),
        ones(log_prob.size(), 1.0f);
    for (std::uint64_t i = 0; i < 20; ++i) {
      rollout.act(i);
      rollout.model.forward(*rollout.observation, *rollout.decision, rollout.rows, log_prob, entropy);
      rollout.model.backward(ones, ones);
      if (at::get_num_threads() != threads) return std::vector<float>{};
    }
    return gradients_of(rollout.model);
  };
  const std::vector<float> alone = once(1);
  std::vector<float> left, right;
  {
    std::jthread first([&] { left = once(1); });
    std::jthread second([&] { right = once(2); });
  }
  CHECK_EQ(left, alone);
  CHECK_EQ(right.size(), alone.size());
}

TEST_CASE("the observation decides the action: proprioception, every camera and the instruction") {
  const ModelInputs inputs = camera_inputs();
  Rollout<TokenHead> rollout(small(2), inputs, 1);
  std::vector<float> before(4), after(4), entropy(4);
  rollout.act(1);
  Observation& observation = *rollout.observation;
  const auto forward = [&](std::vector<float>& out) {
    rollout.model.forward(observation, *rollout.decision, rollout.rows, out, entropy);
  };
  forward(before);
  const auto changes = [&](auto& value, auto to) {
    const auto kept = value;
    value = to;
    forward(after);
    value = kept;
    return before != after;
  };
  CHECK(changes(observation.proprioception[3], 2.0f));
  CHECK(changes(observation.frames[0][5], static_cast<std::uint8_t>(observation.frames[0][5] ^ 128)));
  CHECK(changes(observation.frames[1][7], static_cast<std::uint8_t>(observation.frames[1][7] ^ 128)));
  CHECK(changes(observation.instruction[0], 1 - observation.instruction[0]));
}

TEST_CASE_TEMPLATE("imitation brings the loss far below its start", Head, TokenHead, FlowHead) {
  Rollout<Head> rollout(small<Head>(4), state_inputs(), 64);
  TinyVlaModel<Head>::use_threads(1);
  // The expert: the instruction flips the sign of the first action, proprioception steers the second.
  const Observation& observation = *rollout.observation;
  for (std::int64_t row = 0; row < 64; ++row) {
    for (std::int64_t step = 0; step < 4; ++step) {
      rollout.action.at(row).at(step)[0] = observation.instruction[row] == 0 ? 0.7f : -0.7f;
      rollout.action.at(row).at(step)[1] =
          std::clamp(observation.proprioception.at(row)[0] * 0.5f, -0.9f, 0.9f);
    }
  }
  rollout.model.hold_gradients(true);
  const auto count = static_cast<std::size_t>(trainable_count(rollout.model.units()));
  std::vector<float> first(count), second(count);
  double start = 0, end = 0;
  constexpr int steps = 250;
  for (int i = 1; i <= steps; ++i) {
    dvla::testing::detail::zero_gradients(rollout.model);
    const double loss = rollout.model.imitate(observation, rollout.action, rollout.rows, 1.0);
    if (i <= 10) start += loss / 10;
    if (i > steps - 10) end += loss / 10;
    std::vector<float> weights = weights_of(rollout.model);
    const std::vector<float> gradients = gradients_of(rollout.model);
    for (std::size_t k = 0; k < weights.size(); ++k) {  // Adam
      first[k] = 0.9f * first[k] + 0.1f * gradients[k];
      second[k] = 0.95f * second[k] + 0.05f * gradients[k] * gradients[k];
      const float scale =
          std::sqrt(1 - std::pow(0.95f, static_cast<float>(i))) / (1 - std::pow(0.9f, static_cast<float>(i)));
      weights[k] -= 3e-3f * scale * first[k] / (std::sqrt(second[k]) + 1e-8f);
    }
    dvla::testing::detail::set_weights(rollout.model, weights);
  }
  MESSAGE(Head::name << ": loss " << start << " -> " << end);
  CHECK_LT(end, 0.35 * start);
}

TEST_CASE("inputs that do not fit are refused in one sentence") {
  const auto message = [](const TokenHeadKnobs& knobs, const ModelInputs& inputs) -> std::string {
    try {
      const TinyVlaModel<TokenHead> model(knobs, inputs, 1);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  ModelInputs inputs = camera_inputs();
  inputs.observation.cameras[0].width = 20;
  CHECK(message(small(2), inputs).find("camera 'top' has 16 x 20 pixels") != std::string::npos);
  inputs = state_inputs();
  inputs.observation.instructions.clear();
  CHECK(message(small(4), inputs).find("no instruction") != std::string::npos);
  inputs.observation.instructions = {"go", "  ! "};
  CHECK(message(small(4), inputs).find("instruction 1 of the environment has no word") != std::string::npos);
  inputs = state_inputs();
  CHECK(message(small(3), inputs).find("chunk is 3 in the knobs and 4 in the pipeline") != std::string::npos);
  inputs.observation.proprioception = 0;
  CHECK(message(small(4), inputs).find("neither proprioception nor a camera") != std::string::npos);
  TokenHeadKnobs knobs = small(4);
  knobs.attention_heads = 5;
  CHECK(message(knobs, state_inputs()).find("multiple of attention_heads 5") != std::string::npos);
}

TEST_CASE("calls with rows, instructions or weights that make no sense are refused") {
  Rollout<TokenHead> rollout(small(4), state_inputs(), 4);
  rollout.act(1);
  std::vector<float> log_prob(8), entropy(8);
  const auto forward = [&](std::vector<std::int64_t> rows) {
    rollout.model.forward(*rollout.observation, *rollout.decision, rows, log_prob, entropy);
  };
  forward({3});
  CHECK_THROWS_WITH_AS(forward({4}), "TinyVLA: row 4 was asked for, but the batch has 4 rows", Error);
  CHECK_THROWS_AS(forward({0, 1}), Error);
  CHECK_THROWS_AS(forward({}), Error);
  rollout.decision->tokens.at(2)[0] = 8;
  CHECK_THROWS_AS(forward({2}), Error);
  rollout.observation->instruction[1] = 2;
  CHECK_THROWS_AS(forward({1}), Error);
  CHECK_THROWS_AS(rollout.act(1), Error);
  rollout.observation->instruction[1] = 0;
  rollout.weights(0)[40] = std::numeric_limits<float>::quiet_NaN();
  rollout.weights(rollout.model.units().size() - 1).back() = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(rollout.act(1), Error);
  Rollout<TokenHead> fresh(small(4), state_inputs(), 4);
  fresh.storage[9] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH_AS(fresh.model.imitate(*fresh.observation, fresh.action, fresh.rows, 1.0),
                       "TinyVLA: the expert's action in row 1 is not finite", Error);
  CHECK_THROWS_AS(fresh.model.backward(log_prob, entropy), Error);
}

TEST_CASE("the ratio self-test names row and element where the two sides differ") {
  Rollout<TokenHead> rollout(small(4), state_inputs(), 5);
  rollout.act(1);
  CHECK_LE(check_ratio(rollout.model, *rollout.observation, *rollout.decision, rollout.rows).error, 1e-5);
  rollout.decision->log_prob.at(3).span()[6] += 0.01f;
  std::string said;
  try {
    check_ratio(rollout.model, *rollout.observation, *rollout.decision, rollout.rows);
  } catch (const Error& error) {
    said = error.what();
  }
  CHECK(said.find("row 3, element 6") != std::string::npos);
}
