// dvla-test: torch
// Names and shapes of the published checkpoints at full size, as test/golden/model/names/make_names.py read them off the Python
// classes: each model has exactly those, but for what nobody reads; and the layers that PEFT gives adapters to, as
// test/golden/model/peft/make_targets.py read them off it. No tensor is made.
#include <doctest/doctest.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "dvla/model/lora.hpp"
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
dvla::ModelInputs inputs_for(std::int64_t chunk) {
  dvla::ModelInputs inputs;
  inputs.observation.cameras = {{"top", 224, 224}};
  inputs.observation.proprioception = 7;
  inputs.observation.instructions = {"push the cube"};
  inputs.action.dimensions = 7;
  inputs.chunk = chunk;
  return inputs;
}
template <class Model, class Knobs>
void same(const std::string& model) {
  Knobs knobs;
  knobs.random = dvla::RandomWeights::full;
  const dvla::ModelInputs inputs = inputs_for(knobs.chunk);
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

TEST_CASE(
    "OpenVLA-OFT has adapters of rank 32 beside RLinf's modules where PEFT has them, but for what no pass "
    "reads") {
  dvla::LoraKnobs<dvla::OpenVlaOftKnobs> knobs;
  knobs.random = dvla::RandomWeights::full;
  knobs.lora_rank = 32;
  const dvla::ModelInputs inputs = inputs_for(knobs.chunk);
  for (
      const std::string targets :
      {R"(.*\.(proj|qkv|fc1|fc2|q|kv|fc3|out_proj|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|lm_head))",
       ""}) {
    CAPTURE(targets);
    knobs.lora_targets = targets;
    Names here;
    std::int64_t count = 0;
    for (const dvla::Parameter& each :
         dvla::LoraModel<dvla::OpenVlaOftModel>::plan(knobs, inputs, 1, 1).parameters)
      if (each.trainable) {
        here.merge(ours({each}));
        count += each.count();
      }
    std::ifstream file(DVLA_TEST_DIR "/golden/model/peft/openvla_oft.tsv");
    REQUIRE(file.good());
    Names there;
    int dead = 0;
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string layer, a, b, kind;
      words >> layer >> a >> b >> kind;
      if (layer == "#") continue;
      dead += kind == "dead" ? 1 : 0;
      if (kind != "used") continue;
      there["base_model.model." + layer + ".lora_A.weight"] = a;
      there["base_model.model." + layer + ".lora_B.weight"] = b;
    }
    CHECK(here == there);
    CHECK_EQ(there.size(), 2 * (439 - 13));
    CHECK_EQ(dead, 13);
    CHECK_EQ(count,
             109'126'400);  // PEFT counts 110,828,288: 1,701,888 of them in the 13 layers that no pass reads
  }
}
