// dvla-test: asan
// Against NumPy: test/golden/environment/make_golden.py.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dvla/environment/action_statistics.hpp"
#include "test/io/temporary_folder.hpp"

using dvla::Adapter;
using dvla::AdapterKnobs;
using nlohmann::json;

namespace {
const std::string folder = DVLA_TEST_DIR "/golden/environment/";
constexpr int A = 7, P = 8;

dvla::ObservationSpec shows(int proprioception = P) {
  dvla::ObservationSpec spec;
  spec.proprioception = proprioception;
  return spec;
}
dvla::ActionSpec takes(float low, float high) {
  return {.dimensions = A, .bounds = std::vector<dvla::ActionBounds>(A, {low, high})};
}
template <class Enum>
Enum chosen(const std::string& name) {
  const auto& names = dvla::enum_names<Enum>;
  return static_cast<Enum>(std::find(names.begin(), names.end(), name) - names.begin());
}
AdapterKnobs openvla() {
  AdapterKnobs knobs;
  knobs.action_statistics = folder + "dataset_statistics.json";
  knobs.action_key = "libero_spatial_no_noops";
  return knobs;
}
}  // namespace

TEST_CASE("Actions and proprioception are what OpenVLA-OFT's and openpi's code makes of them") {
  const json golden = json::parse(std::ifstream(folder + "golden.json"));
  REQUIRE(golden["cases"].size() == 10);
  for (const json& each : golden["cases"]) {
    CAPTURE(each["file"].get<std::string>() + each["form"].get<std::string>() +
            each["order"].get<std::string>());
    AdapterKnobs knobs;
    knobs.action_statistics = folder + each["file"].get<std::string>();
    knobs.action_key = each["key"];
    knobs.action_form = chosen<dvla::ActionForm>(each["form"]);
    knobs.action_gripper = chosen<dvla::Gripper>(each["gripper"]);
    knobs.action_order = each["order"];
    const Adapter wide = dvla::make_adapter(knobs, shows(), takes(-9, 9));
    const Adapter narrow = dvla::make_adapter(knobs, shows(), takes(-0.75F, 0.5F));
    CHECK(wide.changes_actions());
    CHECK(wide.changes_proprioception());
    for (std::size_t i = 0; i < golden["model"].size(); ++i) {
      const auto model = golden["model"][i].get<std::vector<float>>();
      auto state = golden["state"][i].get<std::vector<float>>();
      std::vector<float> action(A), bounded(A), back(A);
      wide.to_environment(model, action);
      narrow.to_environment(model, bounded);
      wide.to_model(action, back);
      wide.proprioception(state);
      for (std::size_t a = 0; a < A; ++a) {
        CHECK(action[a] == doctest::Approx(each["action"][i][a].get<double>()).epsilon(2e-7));
        CHECK(bounded[a] == doctest::Approx(each["bounded"][i][a].get<double>()).epsilon(2e-7));
        if (knobs.action_gripper != dvla::Gripper::binary || a + 1 < A)
          CHECK(back[a] == doctest::Approx(model[a]).epsilon(1e-5));
      }
      for (std::size_t p = 0; p < P; ++p)
        CHECK(state[p] == doctest::Approx(each["state"][i][p].get<double>()).epsilon(2e-7));
    }
  }
}

TEST_CASE("An adapter has a name that says what it does") {
  CHECK(dvla::make_adapter({}, shows(), takes(-1, 1)).name() == "bounds");
  AdapterKnobs knobs = openvla();
  knobs.action_order = "0,1,2,3,4,5,-6";
  knobs.action_gripper = dvla::Gripper::binary;
  CHECK(dvla::make_adapter(knobs, shows(), takes(-1, 1)).name() ==
        "quantiles of libero_spatial_no_noops in " + knobs.action_statistics +
            ", order 0,1,2,3,4,5,-6, gripper binary");
  knobs.state_statistics = false;
  CHECK_FALSE(dvla::make_adapter(knobs, shows(3), takes(-1, 1)).changes_proprioception());
  knobs.state_statistics = true;
  CHECK_FALSE(dvla::make_adapter(knobs, shows(0), takes(-1, 1)).changes_proprioception());
}

TEST_CASE("A dimension of categories has no statistics, and stays where it is") {
  AdapterKnobs knobs = openvla();
  dvla::ActionSpec spec = takes(-1, 1);
  spec.categories = {0, 0, 0, 0, 0, 0, 3};
  const Adapter adapter = dvla::make_adapter(knobs, shows(), spec);
  std::vector<float> model(A, 0), environment(A);
  model.back() = 2;
  adapter.to_environment(model, environment);
  CHECK(environment.back() == 2);
  knobs.action_order = "6,1,2,3,4,5,0";
  CHECK_THROWS_WITH_AS(dvla::make_adapter(knobs, shows(), spec), doctest::Contains("pass through unchanged"),
                       dvla::ConfigError);
}

TEST_CASE("Whatever is wrong with knobs or file is one sentence") {
  const dvla_test::TemporaryFolder made;
  const std::string path = (made.path() / "statistics.json").string();
  const auto refuses = [&](const AdapterKnobs& knobs, const std::string& why, int proprioception = P) {
    CAPTURE(why);
    CHECK_THROWS_WITH_AS(dvla::make_adapter(knobs, shows(proprioception), takes(-1, 1)),
                         doctest::Contains(why.c_str()), dvla::ConfigError);
  };
  AdapterKnobs knobs = openvla();
  knobs.action_key = "";
  refuses(knobs, "run.action_key is empty; it has another, libero_spatial_no_noops");
  knobs.action_key = "libero";
  refuses(knobs, "it has no 'libero' (run.action_key); it has another, libero_spatial_no_noops");
  knobs.action_key = "another";
  refuses(knobs, "'action.q01' has 3 numbers, and the environment has 7 dimensions of actions");
  refuses(openvla(),
          "'proprio.q01' has 8 numbers, and the environment has 5 dimensions of proprioception (run.", 5);
  for (const char* order : {"0,1,2,3,4,5", "0,1,2,3,4,5,5", "0,1,2,3,4,5,7", "0,1,2,3,4,5,--6",
                            "0,1,2,3,4,5,6,", "0, 1,2,3,4,5,6", ",", "a"}) {
    knobs = openvla();
    knobs.action_order = order;
    refuses(knobs, std::string("run.action_order is '") + order + "'; it must name each of the 7 dimensions");
  }
  knobs = openvla();
  knobs.action_statistics = path;
  refuses(knobs, "it cannot be read");
  const json good = json::parse(std::ifstream(folder + "dataset_statistics.json"));
  const std::vector<std::pair<std::function<void(json&)>, std::string>> changes{
      {[](json& all) { all = 3; }, "it is no JSON object"},
      {[](json& all) { all["libero_spatial_no_noops"]["action"]["q99"][2] = -100; },
       "dimension 2 of 'action' has q99 -100.000000, which is not above q01 "},
      {[](json& all) { all["libero_spatial_no_noops"]["action"]["q99"][2] = nullptr; },
       "'action.q99' has something that is no finite number"},
      {[](json& all) { all["libero_spatial_no_noops"]["action"]["mask"][2] = 1; },
       "'action.mask' is not one of"},
      {[](json& all) { all["libero_spatial_no_noops"]["action"]["mask"] = {true}; },
       "'action.mask' is not one of"},
      {[](json& all) { all["libero_spatial_no_noops"]["action"].erase("q01"); },
       "it has no list 'action.q01'; run.action_form chooses others"},
      {[](json& all) { all["libero_spatial_no_noops"].erase("action"); },
       "it has no statistics 'action' of actions"},
      {[](json& all) { all["libero_spatial_no_noops"].erase("proprio"); },
       "it has no statistics 'proprio' of proprioception"}};
  for (const auto& [change, why] : changes) {
    json all = good;
    change(all);
    std::ofstream(path) << all;
    refuses(knobs, why);
  }
  std::string text = good.dump();
  text.replace(text.find("\"mean\":[") + 8, 1, "NaN,");
  std::ofstream(path) << text;
  refuses(knobs, "it is no JSON object, or holds NaN");
  knobs.action_form = dvla::ActionForm::mean_std;
  json flat = good;
  flat["libero_spatial_no_noops"]["action"]["std"][0] = 0;
  std::ofstream(path) << flat;
  refuses(knobs, "dimension 0 of 'action' has std 0.000000, which is not above 0");
  flat["libero_spatial_no_noops"]["action"]["mask"][0] = false;  // it is not asked for then
  std::ofstream(path) << flat;
  dvla::make_adapter(knobs, shows(), takes(-1, 1));
  AdapterKnobs alone;
  alone.action_gripper = dvla::Gripper::binary;
  refuses(alone, "run.action_statistics names no file");
}
