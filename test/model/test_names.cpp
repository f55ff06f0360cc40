// dvla-test: torch
// Names and shapes of the published checkpoints at full size, as test/golden/model/names/make_names.py read them off the Python
// classes: each model has exactly those, but for what nobody reads. No tensor is made.
#include <doctest/doctest.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "dvla/model/openvla_oft.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/model/smolvla.hpp"

namespace {

using Names = std::map<std::string, std::string>;

Names published(const std::string& model) {
  std::ifstream file(DVLA_TEST_DIR "/golden/model/names/" + model + ".tsv");
  REQUIRE(file.good());
  Names names;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, shape, dtype, kind;
    words >> name >> shape >> dtype >> kind;
    if (name != "#" && kind == "used") names[name] = shape;
  }
  return names;
}
Names ours(const std::vector<dvla::Parameter>& parameters) {
  Names names;
  for (const dvla::Parameter& each : parameters) {
    std::string shape;
    for (const std::int64_t size : each.shape) shape += (shape.empty() ? "" : "x") + std::to_string(size);
    names[each.name] = shape;
  }
  return names;
}
template <class Model, class Knobs>
void same(const std::string& model) {
  Knobs knobs;
  knobs.random = dvla::RandomWeights::full;
  dvla::ModelInputs inputs;
  inputs.observation.cameras = {{"top", 224, 224}};
  inputs.observation.proprioception = 7;
  inputs.observation.instructions = {"push the cube"};
  inputs.action.dimensions = 7;
  inputs.chunk = knobs.chunk;
  const Names here = ours(Model::plan(knobs, inputs, 1, 1).parameters), there = published(model);
  CHECK_GT(there.size(), 400);
  for (const auto& [name, shape] : there) {
    CAPTURE(name);
    const auto found = here.find(name);
    if (found == here.end())
      FAIL_CHECK("it is missing here");
    else
      CHECK_EQ(found->second, shape);
  }
  for (const auto& [name, shape] : here)
    if (!there.contains(name)) FAIL_CHECK(name << " is not in the published checkpoint");
}

}  // namespace

TEST_CASE("pi0.5 has the published checkpoint's names and shapes") {
  same<dvla::Pi05Model, dvla::FlowVlaKnobs>("pi05");
}
TEST_CASE("SmolVLA has the published checkpoint's names and shapes") {
  same<dvla::SmolVlaModel, dvla::FlowVlaKnobs>("smolvla");
}
TEST_CASE("OpenVLA-OFT has the published checkpoint's names and shapes") {
  same<dvla::OpenVlaOftModel, dvla::OpenVlaOftKnobs>("openvla_oft");
}
