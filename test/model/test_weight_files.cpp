// dvla-test: asan
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "dvla/model/weight_files.hpp"
#include "dvla/testing/linear_model.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;
using dvla_test::contains;
using dvla_test::TemporaryFolder;
using testing::LinearModel;

namespace {

LinearModel made(Dtype dtype, std::uint64_t seed) {
  ModelInputs inputs;
  inputs.observation.proprioception = 3;
  inputs.observation.instructions = {"go", "stop"};
  inputs.action.dimensions = 2;
  inputs.chunk = 2;
  return LinearModel({.bins = 5, .chunk = 2, .frozen_units = 2, .dtype = dtype}, inputs, seed);
}

/// All parameters' bytes, frozen ones too.
std::string bytes_of_all(const LinearModel& model) {
  std::string all;
  for (const Parameter& each : model.parameters())
    all.append(reinterpret_cast<const char*>(each.data), each.bytes());
  return all;
}

}  // namespace

TEST_CASE("What is written of a model is read into another of the same or the other precision") {
  const TemporaryFolder folder;
  for (const Dtype from : {Dtype::f32, Dtype::bf16}) {
    const LinearModel source = made(from, 1);
    io::write_safetensors(folder / "a", weights_to_write(source, WeightSet::all, "model."));
    const io::SafetensorsFile file(folder / "a");
    for (const Dtype to : {Dtype::f32, Dtype::bf16}) {
      LinearModel model = made(to, 2);
      load_weights(model, file, WeightSet::all, "model.");
      if (from == to) CHECK(bytes_of_all(model) == bytes_of_all(source));
      for (std::size_t i = 0; i < model.parameters().size(); ++i) {
        const Parameter &one = source.parameters()[i], &other = model.parameters()[i];
        std::vector<float> sent(static_cast<std::size_t>(one.count())), got(sent.size()), rounded = sent;
        to_floats({one.data, one.bytes()}, from, sent);
        to_floats({other.data, other.bytes()}, to, got);
        for (std::size_t k = 0; k < sent.size(); ++k)
          rounded[k] = to == Dtype::f32 ? sent[k] : from_bf16(to_bf16(sent[k]));
        CHECK(got == rounded);
      }
    }
  }
}

TEST_CASE("Weights whose last tensor is wrong or missing are one sentence, and change nothing") {
  const TemporaryFolder folder;
  const LinearModel source = made(Dtype::f32, 1);
  const auto refusal = [&](Dtype dtype, WeightSet set, auto change) {
    std::vector<io::TensorToWrite> tensors = weights_to_write(source, WeightSet::all);
    REQUIRE(tensors.size() == 4);
    change(tensors, tensors[set == WeightSet::frozen ? 1 : 3]);
    io::write_safetensors(folder / "a", tensors);
    LinearModel model = made(dtype, 2);
    const std::string before = bytes_of_all(model);
    const std::string said =
        dvla_test::message_of<Error>([&] { load_weights(model, io::SafetensorsFile(folder / "a"), set); });
    CHECK(!contains(said, "\n"));
    CHECK((bytes_of_all(model) == before) == !said.empty());
    return said;
  };
  std::vector<float> broken(1000, 1.0F);
  broken[7] = std::numeric_limits<float>::infinity();
  const std::vector<std::int64_t> integers(1000);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const WeightSet set : {WeightSet::all, WeightSet::trainable, WeightSet::frozen}) {
      CHECK(refusal(dtype, set, [](auto&, auto&) {}).empty());
      CHECK(contains(refusal(dtype, set, [](auto&, auto& last) { std::swap(last.shape[0], last.shape[1]); }),
                     "has another shape than this model"));
      CHECK(contains(refusal(dtype, set, [](auto&, auto& last) { last.name += "x"; }), "has no tensor"));
      CHECK(contains(refusal(dtype, set,
                             [&](auto&, auto& last) {
                               last.bytes = std::as_bytes(std::span(broken)).first(last.bytes.size());
                             }),
                     "has inf at element 7: it must be finite"));
      CHECK(contains(refusal(dtype, set, [&](auto&, auto& last) { last.dtype = io::Dtype::I32; }),
                     "is I32; weights are read from F32, BF16 and F16"));
    }
}

TEST_CASE("Half precision is read: normal, denormal, the largest, and what is no number is refused") {
  CHECK(from_f16(0x3C00) == 1.0F);
  CHECK(from_f16(0xC100) == -2.5F);
  CHECK(from_f16(0x7BFF) == 65504.0F);
  CHECK(from_f16(0x8001) == -0x1p-24F);
  CHECK(from_f16(0x03FF) == 1023 * 0x1p-24F);
  CHECK(from_f16(0x0400) == 0x1p-14F);
  CHECK(std::isinf(from_f16(0x7C00)));
  CHECK(std::isnan(from_f16(0x7E00)));
  const TemporaryFolder folder;
  for (const std::uint16_t last : {0x3555, 0xFC00}) {
    LinearModel model = made(Dtype::f32, 2);
    const std::string before = bytes_of_all(model);
    std::vector<io::TensorToWrite> tensors = weights_to_write(model, WeightSet::all);
    std::vector<std::uint16_t> halves(static_cast<std::size_t>(model.parameters()[3].count()), 0x3555);
    halves.back() = last;
    for (io::TensorToWrite& tensor : tensors) {
      tensor.dtype = io::Dtype::F16;
      tensor.bytes = std::as_bytes(std::span(halves));
    }
    io::write_safetensors(folder / "a", tensors);
    const std::string said =
        dvla_test::message_of<Error>([&] { load_weights(model, io::SafetensorsFile(folder / "a")); });
    CHECK(contains(said, "it must be finite") == (last != 0x3555));
    if (!said.empty()) CHECK(bytes_of_all(model) == before);
    if (said.empty()) CHECK(model.units()[3].floats()[0] == 0x1.554p-2F);
  }
}
