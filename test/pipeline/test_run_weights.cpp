// dvla-test: torch
// The weights of a run whose model computes with torch: what a worker's copies share, what the memory plan
// says of them, and that adapters alone are enough to go on with.
#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/pipeline/checkpoint.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {

using dvla_test::contains;
using dvla_test::TemporaryFolder;
using Plain = dvla::TinyVLA<dvla::TokenHead>;
using Adapted = dvla::LoRA<Plain>;
template <class Model, class... More>
using Of = dvla::Pipeline<dvla::Sampler<dvla::Toy, Model>, dvla::Trainer<dvla::GRPO>, More...>;
template <class P>
using Run = dvla::Run<P, dvla::trace::Off>;

template <class P>
dvla::Config<P> config_of(dvla::Dtype dtype = dvla::Dtype::f32) {
  auto config = dvla_test::small_config<P>(100);
  config.memory = {};
  config.model.width = 32;
  config.model.blocks = 2;
  config.model.attention_heads = 2;
  config.model.bins = 8;
  config.model.dtype = dtype;
  if constexpr (requires { config.model.lora_rank; }) config.model.lora_rank = 4;
  return config;
}

/// The bytes of what trains.
template <class Model>
std::string trainable(const Model& model) {
  std::string bytes(dvla::trainable_bytes(model.units()), '\0');
  dvla::read_weights(model.units(), 0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

/// What a plan says, by kind.
template <class P>
std::map<std::string, std::size_t> items(const Run<P>& run) {
  std::map<std::string, std::size_t> all;
  for (const dvla::MemoryItem& item : run.memory_plan().items()) all[item.kind] += item.bytes;
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("Adapters are saved alone, and a fresh run goes on from them bit for bit", P,
                   Of<Adapted, dvla::Synchronous>, Of<Adapted, dvla::Swimlane<1>>) {
  for (const dvla::Dtype dtype : {dvla::Dtype::f32, dvla::Dtype::bf16}) {
    CAPTURE(static_cast<int>(dtype));
    const TemporaryFolder folder;
    const dvla::io::CheckpointFolder checkpoints(folder.path());
    std::string untrained, saved, next;
    std::vector<float> moments;
    {
      Run<P> run(config_of<P>(dtype));
      untrained = trainable(run.model());
      run.train(3);
      saved = trainable(run.model());
      moments = dvla_test::moments(run);
      CHECK((saved != untrained));
      dvla::save_checkpoint(run, checkpoints);
      run.train(1);
      next = trainable(run.model());
      CHECK((next != saved));
    }
    Run<P> fresh(config_of<P>(dtype));
    const dvla::io::LoadedCheckpoint loaded = checkpoints.load(3);
    std::size_t stored = 0;
    for (const dvla::Parameter& each : fresh.model().parameters()) {
      CHECK(loaded.file.contains("model." + each.name) == each.trainable);
      if (each.trainable) stored += loaded.file.tensor("model." + each.name).bytes.size();
    }
    CHECK(stored == saved.size());
    CHECK((trainable(fresh.model()) == untrained));
    dvla::load_checkpoint(fresh, loaded.file);
    CHECK((trainable(fresh.model()) == saved));
    CHECK(dvla_test::same_bits(dvla_test::moments(fresh), moments));
    fresh.train(1);
    CHECK((trainable(fresh.model()) == next));
  }
}

TEST_CASE("A whole checkpoint of adapters brings its base along") {
  using P = Of<Adapted, dvla::Synchronous>;
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder / "checkpoint");
  auto config = config_of<P>(dvla::Dtype::bf16);
  config.run.checkpoint_weights = dvla::CheckpointWeights::whole;
  std::string base, next;
  const auto frozen = [](const auto& model) {
    std::string bytes;
    for (const dvla::Parameter& each : model.parameters())
      if (!each.trainable) bytes.append(reinterpret_cast<const char*>(each.data), each.bytes());
    return bytes;
  };
  {
    using Base = Of<Plain, dvla::Synchronous>;
    auto other = config_of<Base>();
    other.run.seed = 7;
    Run<Base> run(other);
    dvla::io::write_safetensors(folder / "model.safetensors",
                                dvla::weights_to_write(run.model(), dvla::WeightSet::all));
  }
  {
    auto with_base = config;
    with_base.model.base_checkpoint = folder.path().string();
    Run<P> run(with_base);
    base = frozen(run.model());
    run.train(2);
    dvla::save_checkpoint(run, checkpoints);
    run.train(1);
    next = trainable(run.model());
  }
  Run<P> run(config);
  CHECK((frozen(run.model()) != base));
  dvla::load_checkpoint(run, checkpoints.load(2).file);
  CHECK((frozen(run.model()) == base));
  run.train(1);
  CHECK((trainable(run.model()) == next));
}

TEST_CASE("A worker's copies refer to the frozen tensors of the trainer's model and own what trains") {
  using P = Of<Adapted, dvla::Swimlane<1>>;
  Run<P> run(config_of<P>());
  auto& models = run.worker().models();
  auto* const front = models.front().model;
  decltype(models.front().model) back = nullptr;
  models.fill([&](auto& copy) { back = copy.model; });
  models.try_swap();
  CHECK(models.front().model == back);
  const auto& own = run.model().parameters();
  std::size_t frozen = 0, trains = 0;
  for (std::size_t i = 0; i < own.size(); ++i) {
    const std::byte *const one = front->parameters()[i].data, *const other = back->parameters()[i].data;
    CHECK(front->parameters()[i].name == own[i].name);
    CHECK((one == own[i].data) == !own[i].trainable);
    CHECK((other == own[i].data) == !own[i].trainable);
    CHECK((one == other) == !own[i].trainable);
    (own[i].trainable ? trains : frozen) += 1;
  }
  CHECK(frozen > 0);
  CHECK(trains > 0);
  for (std::size_t unit = 0; unit < front->units().size(); ++unit) {
    CHECK(front->units()[unit].gradients.empty());
    CHECK(back->units()[unit].gradients.empty());
    CHECK(run.model().units()[unit].gradients.size() ==
          static_cast<std::size_t>(run.model().units()[unit].count()));
  }
}

TEST_CASE("Where lanes take turns the worker samples from the trainer's own model") {
  using P = Of<Plain, dvla::Synchronous>;
  Run<P> run(config_of<P>());
  auto& models = run.worker().models();
  CHECK(models.front().model == &run.model());
  models.fill([&](auto& copy) { CHECK(copy.model == &run.model()); });
  run.train(1);
  CHECK(models.front().model == &run.model());
}

TEST_CASE_TEMPLATE("The plan's items are the bytes that shapes, precision and schedule say", P,
                   Of<Plain, dvla::Swimlane<1>>, Of<Plain, dvla::Synchronous>, Of<Adapted, dvla::Swimlane<1>>,
                   Of<Adapted, dvla::Synchronous>) {
  constexpr bool adapted = std::is_same_v<typename P::model, Adapted>;
  constexpr bool in_turn = std::is_same_v<typename P::schedule, dvla::Synchronous>;
  for (const dvla::Dtype dtype : {dvla::Dtype::f32, dvla::Dtype::bf16}) {
    CAPTURE(static_cast<int>(dtype));
    auto config = config_of<P>(dtype);
    config.model.width = 256;
    Run<P> run(config);
    std::size_t frozen = 0, trains = 0;  // elements
    for (const dvla::Parameter& each : run.model().parameters())
      (each.trainable ? trains : frozen) += static_cast<std::size_t>(each.count());
    CHECK((frozen > 0) == adapted);
    const std::size_t each = dtype == dvla::Dtype::f32 ? 4 : 2, half = dtype == dvla::Dtype::f32 ? 0 : 1;
    const auto plan = items<P>(run);
    const auto bytes = [&](const char* kind) {
      const auto found = plan.find(kind);
      return found == plan.end() ? 0 : found->second;
    };
    CHECK(bytes("frozen weights") == frozen * each);
    CHECK(bytes("trainable weights") == trains * each);
    CHECK(bytes("copies of them to sample from") == (in_turn ? 0 : 2) * trains * each);
    CHECK(bytes("gradients") == 4 * trains);
    CHECK(bytes("masters") == 4 * half * trains);
    CHECK(bytes("moments") == 8 * trains);
    CHECK(bytes("activations of sampling") > 0);
    CHECK(bytes("activations of training") > 0);
    CHECK(bytes("batches in flight") > 0);
    CHECK(bytes("decisions of the self-test") ==
          2 * static_cast<std::size_t>(run.config().environment.environments) *
              dvla::record_bytes(run.model().decision_layout({1})));

    // What was taken by now: all of the weights' kinds, and nothing else to speak of.
    const std::size_t weights = frozen * each + trains * ((in_turn ? 1 : 3) * each + 4 + 4 * half + 8);
    const std::size_t taken = run.memory().model().report().in_use;
    CHECK(taken >= weights);
    CHECK(taken < weights + weights / 32 + 65536);
  }
}

TEST_CASE_TEMPLATE("A pool that is bounded below what the plan needs is refused in one sentence", P,
                   Of<Plain, dvla::DualPool>, Of<Plain, dvla::SinglePool>) {
  constexpr bool dual = std::is_same_v<typename P::memory, dvla::DualPool>;
  auto config = config_of<P>();
  config.environment.proprioception = 4096;
  const dvla::MemoryPlan plan = Run<P>(config).memory_plan();
  const std::size_t model = plan.of(dvla::MemoryPlace::model_pool),
                    environment = plan.of(dvla::MemoryPlace::environment_pool);
  const auto refusal = [&](std::int64_t environment_mib, std::int64_t model_mib) {
    config.memory.environment_pool_mib = environment_mib;
    config.memory.model_pool_mib = model_mib;
    return dvla_test::message_of<dvla::ConfigError>([&] { Run<P> run(config); });
  };
  const auto mib = [](std::size_t bytes) { return static_cast<std::int64_t>(bytes >> 20); };
  const auto needs = [](std::size_t bytes) { return dvla::mebibytes(bytes); };
  REQUIRE(mib(model) > 2);
  if (dual) {
    const std::int64_t little = mib(model);  // rounded down
    CHECK(refusal(64, little) == "the model pool may have " + std::to_string(little) +
                                     ".0 MiB, and the run needs " + needs(model) +
                                     " of it; raise --model-pool-mib");
    CHECK(refusal(64, little + 1).empty());
  } else {  // each alone would fit, both do not
    const std::int64_t little = mib(model + environment);
    CHECK(mib(model) + 1 < little);
    CHECK(mib(environment) + 1 < little);
    CHECK(refusal(1, little - 1) == "the single pool may have " + std::to_string(little) +
                                        ".0 MiB, and the run needs " + needs(model + environment) +
                                        " of it; raise --environment-pool-mib or --model-pool-mib");
    CHECK(refusal(1, little).empty());
  }
}
