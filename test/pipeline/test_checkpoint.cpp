// dvla-test: tsan
// Saving and resuming a run: equal to one that was never interrupted, and damaged or foreign files change
// nothing.
#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <string>

#include "dvla/handoff/signals.hpp"
#include "dvla/pipeline/checkpoint.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {

using dvla_test::contains;
using dvla_test::small_config;
using dvla_test::TemporaryFolder;
using InTurn = dvla_test::ToyPipeline<dvla::Schedule<dvla::Synchronous>>;
using Lanes = dvla_test::ToyPipeline<>;
template <class P>
using Run = dvla::Run<P, dvla::trace::Off>;

/// What a checkpoint keeps of the batches so far.
template <class One>
void check_same_history(const One& one, const One& two) {
  REQUIRE(one.history().size() == two.history().size());
  for (std::size_t i = 0; i < one.history().size(); ++i) {
    const dvla::Iteration &a = one.history()[i], &b = two.history()[i];
    CHECK(a.batch == b.batch);
    CHECK(a.update.success_rate == b.update.success_rate);
    CHECK(a.counts.env_steps == b.counts.env_steps);
    CHECK(a.counts.chunk_steps == b.counts.chunk_steps);
  }
}

}  // namespace

TEST_CASE("A synchronous run that is saved and resumed equals an uninterrupted one bit for bit") {
  Run<InTurn> whole(small_config<InTurn>(24));
  whole.train();
  for (const int first : {0, 1, 9, 24}) {
    CAPTURE(first);
    const TemporaryFolder folder;
    const dvla::io::CheckpointFolder checkpoints(folder.path());
    {
      Run<InTurn> begun(small_config<InTurn>(first));
      begun.train();
      CHECK(dvla::save_checkpoint(begun, checkpoints) == checkpoints.path_of(first));
    }
    Run<InTurn> resumed(small_config<InTurn>(24));
    dvla::load_checkpoint(resumed, checkpoints.load(first).file);
    CHECK(resumed.next_batch() == first);
    const auto report = resumed.train();
    CHECK(report.batches == 24 - first);
    CHECK(dvla_test::same_state(whole, resumed));
    check_same_history(whole, resumed);
    CHECK(whole.evaluate(64) == resumed.evaluate(64));
  }
}

TEST_CASE("A checkpoint saved between two updates of a swimlane is whole, and a run goes on from it") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path(), 100);
  auto config = small_config<Lanes>(12);
  Run<Lanes> run(config);
  run.train({}, [&](std::int64_t) { dvla::save_checkpoint(run, checkpoints); });
  CHECK(checkpoints.steps().size() == 12);
  Run<Lanes> last(config);
  dvla::load_checkpoint(last, checkpoints.load(12).file);
  CHECK(dvla_test::same_state(run, last));
  check_same_history(run, last);
  CHECK(last.train().batches == 0);
  Run<Lanes> middle(config);
  dvla::load_checkpoint(middle, checkpoints.load(5).file);
  const auto report = middle.train();
  CHECK(report.batches == 7);
  CHECK(report.max_staleness <= 1);
  CHECK(middle.history().size() == 12);
  for (std::size_t i = 1; i < 12; ++i)
    CHECK(middle.history()[i].counts.env_steps > middle.history()[i - 1].counts.env_steps);
}

TEST_CASE("SIGTERM, checkpoint, resume: as if nothing had happened") {
  Run<InTurn> whole(small_config<InTurn>(20));
  whole.train();
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  {
    Run<InTurn> run(small_config<InTurn>(20));
    dvla::stop_flag stop;
    const dvla::signal_guard guard(stop);
    const auto report = run.train(
        [](const dvla::Iteration& iteration) {
          if (iteration.batch == 6) ::raise(SIGTERM);
        },
        {}, &stop);
    CHECK(report.signal == SIGTERM);
    CHECK(report.batches == 7);
    dvla::save_checkpoint(run, checkpoints);
  }
  Run<InTurn> resumed(small_config<InTurn>(20));
  dvla::load_checkpoint(resumed, checkpoints.latest().checkpoint.value().file);
  resumed.train();
  CHECK(dvla_test::same_state(whole, resumed));
  check_same_history(whole, resumed);
}

TEST_CASE("Weights alone go into a model of the same shape") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  Run<InTurn> run(small_config<InTurn>(5));
  run.train();
  dvla::save_checkpoint(run, checkpoints);
  Run<InTurn> other(small_config<InTurn>(5));
  dvla::load_checkpoint_weights(other.model(), checkpoints.load(5).file);
  CHECK(dvla_test::same_bits(dvla_test::values(run.model()), dvla_test::values(other.model())));
  CHECK(other.next_batch() == 0);
  const auto loaded = checkpoints.load(5);
  CHECK(loaded.file.metadata().at("pipeline") == InTurn::describe());
  CHECK(contains(loaded.file.metadata().at("config"), "\"learning_rate\""));
}

TEST_CASE("Another seed, other shapes, a foreign or a damaged file: one sentence, and the run is as it was") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  Run<InTurn> run(small_config<InTurn>(5));
  run.train();
  const auto path = dvla::save_checkpoint(run, checkpoints);

  auto message = [&](auto change, const std::filesystem::path& file) {
    auto config = small_config<InTurn>(5);
    change(config);
    Run<InTurn> other(config);
    Run<InTurn> untouched(config);
    std::string text = dvla_test::message_of<dvla::Error>(
        [&] { dvla::load_checkpoint(other, dvla::io::SafetensorsFile(file)); });
    CHECK(dvla_test::same_state(other, untouched) == !text.empty());
    CHECK(other.history().empty() == !text.empty());
    CHECK(!contains(text, "\n"));
    return text;
  };
  const auto nothing = [](auto&) {};

  CHECK(contains(message([](auto& config) { config.run.seed = 2; }, path), "was made with seed 1"));
  CHECK(contains(message(
                     [](auto& config) {
                       config.model.bins = 5;
                       config.run.allow_changes = true;
                     },
                     path),
                 "use the settings the checkpoint was made with"));
  CHECK(contains(message(nothing, folder / "missing.safetensors"), "missing.safetensors"));

  const std::string whole = dvla_test::read_text(path);
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() / 2, whole.size() - 1}) {
    CAPTURE(bytes);
    dvla_test::write_text(folder / "cut.safetensors", whole.substr(0, bytes));
    CHECK(contains(message(nothing, folder / "cut.safetensors"), "cut.safetensors"));
  }

  // Sound files that lack something or count wrongly.
  struct Change {
    std::string tensor{};  ///< of the model's file or of its part
    std::size_t at = 0;
    double value = 0;
    bool left_out = false;
  };
  using Counters = std::vector<std::int64_t>;
  const auto foreign = [&](const Counters& counters, const std::vector<double>& curve,
                           const Change& change = {}, const std::string& config = "{}") {
    std::vector<float> weights = dvla_test::values(run.model()), first = weights, second = weights;
    for (float& value : second) value *= value;
    Counters of_part{0, 1, 2, std::ssize(weights)}, ranges{0, std::ssize(weights)};
    const auto changed = [&](const char* name, auto& values) {
      using Value = std::remove_cvref_t<decltype(values[0])>;
      if (change.tensor == name && !change.left_out) values[change.at] = static_cast<Value>(change.value);
      return dvla::io::tensor_to_write<Value>(name, {std::ssize(values)}, std::span<const Value>(values));
    };
    dvla::io::Checkpoint part;
    part.tensors = {changed("shard.exp_avg", first), changed("shard.exp_avg_sq", second),
                    changed("shard.counters", of_part)};
    part.tensors.push_back(dvla::io::tensor_to_write<std::int64_t>("shard.ranges", {1, 2},
                                                                   std::span<const std::int64_t>(ranges)));
    dvla::io::Checkpoint checkpoint;
    std::size_t at = 0;
    for (const dvla::Parameter& each : run.model().parameters()) {
      const std::span<float> values = std::span(weights).subspan(at, static_cast<std::size_t>(each.count()));
      if (change.tensor == "model." + each.name && !change.left_out)
        values[change.at] = static_cast<float>(change.value);
      checkpoint.tensors.push_back(
          dvla::io::tensor_to_write<float>("model." + each.name, each.shape, std::span<const float>(values)));
      at += values.size();
    }
    checkpoint.tensors.push_back(dvla::io::tensor_to_write<std::int64_t>(
        "run.counters", {std::ssize(counters)}, std::span<const std::int64_t>(counters)));
    checkpoint.tensors.push_back(
        dvla::io::tensor_to_write<double>("run.curve", {std::ssize(curve)}, std::span<const double>(curve)));
    for (auto* file : {&part, &checkpoint})
      std::erase_if(file->tensors,
                    [&](const auto& tensor) { return change.left_out && tensor.name == change.tensor; });
    if (!config.empty()) checkpoint.metadata["config"] = config;
    checkpoint.metadata["shards"] = "1";
    const dvla::io::CheckpointFolder in(folder / "foreign");
    std::filesystem::create_directories(folder / "foreign");
    dvla::io::write_safetensors(dvla::io::CheckpointFolder::part_path(in.path_of(1), 0, 1), part.tensors,
                                {{std::string(dvla::io::CheckpointFolder::format_key),
                                  std::string(dvla::io::CheckpointFolder::format_version)}});
    return message(nothing, in.save(1, checkpoint));
  };
  CHECK(foreign({1, 1}, {0.5, 10, 5}).empty());
  CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {}, ""), "metadata lacks config"));
  CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {}, R"({"pipeline": {"environment": "Else"}})"),
                 "written by another pipeline"));
  for (const char* tensor : {"model.weight.0", "shard.exp_avg", "shard.exp_avg_sq", "shard.counters"}) {
    CAPTURE(tensor);
    CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {.tensor = tensor, .left_out = true}), tensor));
  }
  CHECK(contains(foreign({2, 1}, {0.5, 10, 5}), "run.curve"));
  CHECK(contains(foreign({-1, 1}, {}), "run.counters"));
  CHECK(contains(foreign({1}, {0.5, 10, 5}), "run.counters"));
  CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {"shard.counters", 2, -2}), "damaged"));
  CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {"shard.counters", 3, 7}),
                 "use the settings the checkpoint was made with"));

  // Numbers that no run writes.
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = HUGE_VAL;
  CHECK(contains(foreign({1, 1}, {nan, 10, 5}), "run.curve has nan at element 0: it must be finite"));
  CHECK(contains(foreign({1, 1}, {0.5, infinity, 5}), "run.curve has inf at element 1"));
  CHECK(contains(foreign({1, 1}, {0.5, 10, -5}), "run.curve has -5"));
  CHECK(contains(foreign({1, 1}, {0.5, 1e17, 5}), "run.curve has 1e+17"));
  for (const double value : {nan, infinity, -infinity}) {
    CAPTURE(value);
    CHECK(contains(
        foreign({1, 1}, {0.5, 10, 5}, {"model.weight.0", 1, value}),
        "model.weight.0 has " + dvla::detail::number_text(value) + " at element 1: it must be finite"));
    for (const char* tensor : {"shard.exp_avg", "shard.exp_avg_sq"})
      CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {tensor, 1, value}),
                     std::string(tensor) + " holds " + dvla::detail::number_text(value)));
  }
  CHECK(contains(foreign({1, 1}, {0.5, 10, 5}, {"shard.exp_avg_sq", 1, -1e-30}), "shard.exp_avg_sq holds"));
  CHECK(foreign({1, 1}, {0.5, 10, 5}, {"shard.exp_avg", 1, -1}).empty());
}

TEST_CASE("Knobs that say what data and weights mean are the checkpoint's, or named; the others are listed") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  const auto config = small_config<InTurn>(3);
  Run<InTurn> run(config);
  run.train();
  const auto path = dvla::save_checkpoint(run, checkpoints);
  const dvla::io::SafetensorsFile file(path);
  const auto texts = [&](const auto& changed) {
    std::vector<std::string> all;
    for (const dvla::ChangedKnob& knob : dvla::changed_knobs(changed, file)) all.push_back(knob.text);
    return all;
  };
  const auto refused = [&](auto change) {
    auto changed = config;
    change(changed);
    Run<InTurn> other(changed);
    return dvla_test::message_of<dvla::ConfigError>([&] { dvla::load_checkpoint(other, file); });
  };
  CHECK(texts(run.config()).empty());
  const std::string end = " in the checkpoint '" + path.string() +
                          "': its data and weights would mean something else; use its settings, or add "
                          "--allow-changes";
  const std::string bins = std::to_string(config.model.bins),
                    horizon = std::to_string(config.environment.horizon);
  CHECK(refused([](auto& c) { c.model.bins = 5; }) == "model.bins is 5, and was " + bins + end);
  CHECK(refused([](auto& c) { c.environment.proprioception = 2; }) ==
        "environment.proprioception is 2, and was " + std::to_string(config.environment.proprioception) +
            end);
  CHECK(refused([](auto& c) {
          c.run.reward_scale = 3;
          c.environment.horizon += 4;
        }) == "environment.horizon is " + std::to_string(config.environment.horizon + 4) + ", and was " +
                  horizon + "; run.reward_scale is 3.0, and was 1.0" + end);
  CHECK(refused([](auto& c) { c.run.state_statistics = false; }) ==
        "run.state_statistics is false, and was true" + end);
  // The next are allowed, and said.
  for (const bool asked : {false, true}) {
    auto changed = config;
    changed.algorithm.learning_rate *= 2;
    changed.environment.environments *= 2;
    changed.run.name = "other";  // what one start is for is no change
    if (asked) {
      changed.run.reward_scale = 3;
      changed.run.allow_changes = true;
    }
    Run<InTurn> other(changed);
    CHECK_NOTHROW(dvla::load_checkpoint(other, file));
    const auto said = texts(other.config());
    REQUIRE(said.size() == (asked ? 3 : 2));
    CHECK(contains(said[0], "environment.environments is "));
    CHECK(contains(said[1], "algorithm.learning_rate is "));
  }
}

TEST_CASE("Weights are played by another schedule's pipeline; another environment's are refused") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  auto made = small_config<InTurn>(3);
  made.environment.horizon += 1;
  made.algorithm.group *= 2;
  made.schedule.deadline_s = 77;
  Run<InTurn> run(made);
  run.train();
  const auto path = dvla::save_checkpoint(run, checkpoints);
  const dvla::io::SafetensorsFile file(path);
  const auto config = dvla::load_config<Lanes>(file);
  CHECK(config.environment.horizon == made.environment.horizon);
  CHECK(config.algorithm.group == made.algorithm.group);
  CHECK(config.schedule.deadline_s == dvla::Config<Lanes>().schedule.deadline_s);
  Run<Lanes> other(config);
  dvla::load_checkpoint_weights(other.model(), file);
  CHECK(other.evaluate(64) == run.evaluate(64));

  const auto with_config = [&](const std::string& text) {
    dvla::io::Checkpoint foreign;
    foreign.metadata["config"] = text;
    return checkpoints.save(9, foreign);
  };
  // Sharded, connected and placed by policies that are not here, with knobs of theirs.
  nlohmann::json text = nlohmann::json::parse(file.metadata().at("config"));
  for (const char* slot : {"algorithm", "sharding", "data_plane", "control_plane", "memory", "placement"}) {
    text["pipeline"][slot] = "Else";
    text[slot]["knob_of_its_own"] = 1;
  }
  const dvla::io::SafetensorsFile elsewhere(with_config(text.dump()));
  CHECK(dvla::to_json(dvla::load_config<Lanes>(elsewhere)) == dvla::to_json(config));
  for (const char* slot : {"environment", "model"}) {
    nlohmann::json wrong = text;
    wrong["pipeline"][slot] = "Else";
    const dvla::io::SafetensorsFile bad(with_config(wrong.dump()));
    CHECK(contains(dvla_test::message_of<dvla::ConfigError>([&] { dvla::load_config<Lanes>(bad); }),
                   "written by another pipeline: its " + std::string(slot) + " is \"Else\""));
  }
}

TEST_CASE(
    "A checkpoint makes its model again without environment and algorithm; what lacks is one sentence") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  auto made = small_config<InTurn>(3);
  made.model.bins = 5;
  Run<InTurn> run(made);
  run.train();
  const dvla::io::SafetensorsFile file(dvla::save_checkpoint(run, checkpoints));
  using Policy = InTurn::model;
  const auto [knobs, inputs, seed] = dvla::load_model_settings<Policy>(file);
  CHECK(knobs.bins == 5);
  CHECK(seed == dvla::RunSettings<InTurn>(made).weight_seed());
  CHECK(dvla::json_text(inputs.observation) == dvla::json_text(run.spec().observation));
  CHECK(dvla::json_text(inputs.action) == dvla::json_text(run.spec().action));
  CHECK(inputs.chunk == made.model.chunk);
  dvla::machinery_t<Policy, void> model(knobs, inputs, seed);
  CHECK_FALSE(dvla_test::same_bits(dvla_test::values(run.model()), dvla_test::values(model)));
  dvla::load_checkpoint_weights(model, file);
  CHECK(dvla_test::same_bits(dvla_test::values(run.model()), dvla_test::values(model)));

  const auto refuses = [&](const std::string& key, const std::string& text, const std::string& why) {
    dvla::io::Checkpoint foreign;
    foreign.metadata = file.metadata();
    if (text.empty())
      foreign.metadata.erase(key);
    else
      foreign.metadata[key] = text;
    const std::vector<std::int64_t> counters{3, made.run.seed};
    foreign.tensors.push_back(dvla::io::tensor_to_write<std::int64_t>(
        "run.counters", {2}, std::span<const std::int64_t>(counters)));
    const dvla::io::SafetensorsFile bad(checkpoints.save(9, foreign));
    const std::string said =
        dvla_test::message_of<dvla::Error>([&] { (void)dvla::load_model_settings<Policy>(bad); });
    CAPTURE(said);
    CHECK(contains(said, why));
  };
  refuses("environment", "", "it was written before checkpoints said what their environment shows and takes");
  refuses("environment", "{}", "environment: its field 'observation' is missing");
  auto spec = run.spec();
  spec.action.dimensions = 0;
  refuses("environment", dvla::json_text(spec), "an action has no dimension");
  refuses("config", "", "metadata lacks config");
  refuses("config", "{}", "its model is null, here it is \"");
  nlohmann::json config = nlohmann::json::parse(file.metadata().at("config"));
  config["model"]["bins"] = 1;
  refuses("config", config.dump(), "model.bins is 1; it must be a whole number in [2, ");
  config["pipeline"]["model"] = "Else";
  refuses("config", config.dump(), "written by another pipeline: its model is \"Else\"");
}

TEST_CASE("A checkpoint of 0.1 is refused in one sentence that says so") {
  const TemporaryFolder folder;
  const float weight = 1;
  const std::vector<dvla::io::TensorToWrite> tensors{
      dvla::io::tensor_to_write<float>("model.weight", {1}, std::span<const float>(&weight, 1))};
  dvla::io::write_safetensors(folder / "step-5.safetensors", tensors, {{"dvla.checkpoint_format", "1"}});
  CHECK(
      dvla_test::message_of<dvla::Error>([&] { dvla::io::open_checkpoint(folder / "step-5.safetensors"); }) ==
      "'" + (folder / "step-5.safetensors").string() +
          "' is a checkpoint of dvla 0.1, which kept weights and moments as one flat row; this version does "
          "not read it: train anew, or go on with 0.1");
}

TEST_CASE(
    "Of a model that is partly frozen, and computes in 16 bits, what trains is stored, with its masters") {
  const TemporaryFolder folder;
  const dvla::io::CheckpointFolder checkpoints(folder.path());
  auto config = small_config<InTurn>(10);
  config.environment.actions = 2;
  config.model.frozen_units = 1;
  config.model.dtype = dvla::Dtype::bf16;
  Run<InTurn> whole(config);
  whole.train();
  config.run.iterations = 4;
  Run<InTurn> run(config);
  run.train();
  dvla::save_checkpoint(run, checkpoints);
  config.run.iterations = 10;
  Run<InTurn> resumed(config);
  const auto file = checkpoints.latest().checkpoint.value().file;
  CHECK(!file.contains("model.weight.0"));
  CHECK(file.contains("model.weight.1"));
  CHECK(dvla::io::CheckpointFolder::open_parts(file).at(0).contains("shard.weights"));
  dvla::load_checkpoint(resumed, file);
  resumed.train();
  CHECK(dvla_test::same_state(whole, resumed));
}

TEST_CASE("A checkpoint of the whole model has what is frozen too, and a run goes on from either kind") {
  using dvla::CheckpointWeights;
  auto config = small_config<InTurn>(6);
  config.environment.actions = 2;
  config.model.frozen_units = 1;
  Run<InTurn> uninterrupted(config);
  uninterrupted.train();
  const auto frozen = [](auto& run) {
    const dvla::Parameter& first = run.model().parameters()[0];
    return std::span(reinterpret_cast<float*>(first.data), static_cast<std::size_t>(first.count()));
  };
  const auto copy = [](auto values) { return std::vector<float>(values.begin(), values.end()); };
  const std::vector<float> drawn = copy(frozen(uninterrupted));
  for (const CheckpointWeights kind : {CheckpointWeights::trainable, CheckpointWeights::whole}) {
    const bool whole = kind == CheckpointWeights::whole;
    CAPTURE(whole);
    const TemporaryFolder folder;
    const dvla::io::CheckpointFolder checkpoints(folder.path());
    config.run.checkpoint_weights = kind;
    Run<InTurn> run(config);
    run.train(4);
    dvla::save_checkpoint(run, checkpoints);
    const dvla::io::SafetensorsFile file = checkpoints.load(4).file;
    CHECK(file.contains("model.weight.0") == whole);
    CHECK(file.contains("model.weight.1"));

    config.run.checkpoint_weights = whole ? CheckpointWeights::trainable : CheckpointWeights::whole;
    Run<InTurn> resumed(config), changed(config), evaluated(config);
    dvla::load_checkpoint(resumed, file);
    resumed.train();
    CHECK(dvla_test::same_state(uninterrupted, resumed));
    std::ranges::fill(frozen(changed), 0.0F);
    std::ranges::fill(frozen(evaluated), 0.0F);
    dvla::load_checkpoint(changed, file);
    CHECK(dvla_test::same_bits(frozen(changed), whole ? drawn : std::vector<float>(drawn.size())));
    dvla::load_checkpoint_weights(evaluated.model(), file);
    CHECK(dvla_test::same_bits(frozen(evaluated), frozen(changed)));

    // One that says it is whole, and lacks a frozen tensor.
    dvla::io::Checkpoint lacking;
    for (const std::string& name : file.names())
      if (name != "model.weight.0")
        lacking.tensors.push_back({name,
                                   file.tensor(name).dtype,
                                   {file.tensor(name).shape.begin(), file.tensor(name).shape.end()},
                                   file.tensor(name).bytes});
    lacking.metadata = file.metadata();
    const dvla::io::SafetensorsFile damaged(checkpoints.save(4, lacking));
    Run<InTurn> fresh(config);
    const std::string said =
        dvla_test::message_of<dvla::FormatError>([&] { dvla::load_checkpoint(fresh, damaged); });
    CHECK(contains(said, "has no tensor 'model.weight.0'") == whole);
    CHECK(fresh.next_batch() == (whole ? 0 : 4));
    CHECK(dvla_test::same_bits(frozen(fresh), drawn));
    CHECK(dvla_test::same_bits(dvla_test::values(fresh.model()),
                               dvla_test::values(Run<InTurn>(config).model())) == whole);
  }
}
