// dvla-test: tsan
// Saving and resuming a run: equal to one that was never interrupted, and damaged or foreign files change
// nothing.
#include <doctest/doctest.h>
#include <signal.h>

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
  dvla::load_weights(other.model(), checkpoints.load(5).file);
  CHECK(dvla_test::same_bits(run.model().parameters(), other.model().parameters()));
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
  CHECK(contains(message([](auto& config) { config.model.bins = 5; }, path),
                 "use the settings the checkpoint was made with"));
  CHECK(contains(message([](auto& config) { config.environment.proprioception = 2; }, path),
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
  struct Poison {
    std::string tensor;
    float value = 0;
  };
  auto foreign = [&](std::vector<std::int64_t> counters, std::vector<double> curve, bool moments,
                     const std::string& config = "{}", const Poison& poison = {}) {
    std::vector<float> parameters = dvla_test::values(run.model().parameters());
    std::vector<float> first = parameters, second = parameters;
    for (float& value : second) value *= value;
    if (poison.tensor == "model.weight") parameters[1] = poison.value;
    if (poison.tensor == "optimizer.exp_avg") first[1] = poison.value;
    if (poison.tensor == "optimizer.exp_avg_sq") second[1] = poison.value;
    const std::vector<std::int64_t> flat{static_cast<std::int64_t>(parameters.size())};
    dvla::io::Checkpoint checkpoint;
    const auto& tensor = run.model().tensors().at(0);
    checkpoint.tensors.push_back(dvla::io::tensor_to_write<float>("model." + tensor.name, tensor.shape,
                                                                  std::span<const float>(parameters)));
    if (moments) {
      checkpoint.tensors.push_back(
          dvla::io::tensor_to_write<float>("optimizer.exp_avg", flat, std::span<const float>(first)));
      checkpoint.tensors.push_back(
          dvla::io::tensor_to_write<float>("optimizer.exp_avg_sq", flat, std::span<const float>(second)));
    }
    checkpoint.tensors.push_back(
        dvla::io::tensor_to_write<std::int64_t>("run.counters", {static_cast<std::int64_t>(counters.size())},
                                                std::span<const std::int64_t>(counters)));
    checkpoint.tensors.push_back(dvla::io::tensor_to_write<double>(
        "run.curve", {static_cast<std::int64_t>(curve.size())}, std::span<const double>(curve)));
    if (!config.empty()) checkpoint.metadata["config"] = config;
    return message(nothing, dvla::io::CheckpointFolder(folder / "foreign").save(1, checkpoint));
  };
  CHECK(contains(foreign({1, 2, 1}, {0.5, 10, 5}, true, ""), "metadata lacks config"));
  CHECK(contains(foreign({1, 2, 1}, {0.5, 10, 5}, true, R"({"pipeline": {"environment": "Else"}})"),
                 "written by another pipeline"));
  CHECK(foreign({1, 2, 1}, {0.5, 10, 5}, true).empty());
  CHECK(contains(foreign({1, 2, 1}, {0.5, 10, 5}, false), "optimizer.exp_avg"));
  CHECK(contains(foreign({2, 2, 1}, {0.5, 10, 5}, true), "run.curve"));
  CHECK(contains(foreign({-1, 2, 1}, {}, true), "run.counters"));
  CHECK(contains(foreign({1, -2, 1}, {0.5, 10, 5}, true), "run.counters"));
  CHECK(contains(foreign({1, 2}, {0.5, 10, 5}, true), "run.counters"));

  // Numbers that no run writes.
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = HUGE_VAL;
  CHECK(
      contains(foreign({1, 2, 1}, {nan, 10, 5}, true), "run.curve has nan at element 0: it must be finite"));
  CHECK(contains(foreign({1, 2, 1}, {0.5, infinity, 5}, true), "run.curve has inf at element 1"));
  CHECK(contains(foreign({1, 2, 1}, {0.5, 10, -5}, true), "run.curve has -5"));
  CHECK(contains(foreign({1, 2, 1}, {0.5, 1e17, 5}, true), "run.curve counts beyond 2^53"));
  for (const char* tensor : {"model.weight", "optimizer.exp_avg", "optimizer.exp_avg_sq"})
    for (const double value : {nan, infinity, -infinity}) {
      CAPTURE(tensor);
      CAPTURE(value);
      CHECK(contains(
          foreign({1, 2, 1}, {0.5, 10, 5}, true, "{}", {tensor, static_cast<float>(value)}),
          std::string(tensor) + " has " + std::to_string(value) + " at element 1: it must be finite"));
    }
  CHECK(contains(foreign({1, 2, 1}, {0.5, 10, 5}, true, "{}", {"optimizer.exp_avg_sq", -1e-30F}),
                 "it must be finite and not negative"));
  CHECK(foreign({1, 2, 1}, {0.5, 10, 5}, true, "{}", {"optimizer.exp_avg", -1.0F}).empty());
}
