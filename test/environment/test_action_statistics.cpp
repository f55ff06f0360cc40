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

TEST_CASE("Actions and proprioception are what OpenVLA-OFT's, openpi's and lerobot's code makes of them") {
  const json golden = json::parse(std::ifstream(folder + "golden.json"));
  REQUIRE(golden["cases"].size() == 13);
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
        "statistics of libero_spatial_no_noops in " + knobs.action_statistics +
            ", order 0,1,2,3,4,5,-6, gripper binary");
  knobs.action_form = dvla::ActionForm::quantiles;
  CHECK(dvla::make_adapter(knobs, shows(), takes(-1, 1)).name().starts_with("quantiles of libero_spatial"));
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
  refuses(knobs, "statistics.json' cannot be read");
  const json good = json::parse(std::ifstream(folder + "dataset_statistics.json"));
  const std::vector<std::pair<std::function<void(json&)>, std::string>> changes{
      {[](json& all) { all = 3; }, "is no JSON object"},
      {[](json& all) { all["libero_spatial_no_noops"]["action"]["q99"][2] = -100; },
       "dimension 2 of 'action' has q99 -100.000000, which is below q01 "},
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
  refuses(knobs, "is no JSON object, or holds NaN");
  knobs.action_form = dvla::ActionForm::mean_std;
  json flat = good;
  flat["libero_spatial_no_noops"]["action"]["std"][0] = -1;
  std::ofstream(path) << flat;
  refuses(knobs, "dimension 0 of 'action' has std -1.000000, which is below 0");
  flat["libero_spatial_no_noops"]["action"]["mask"][0] = false;  // it is not asked for then
  std::ofstream(path) << flat;
  dvla::make_adapter(knobs, shows(), takes(-1, 1));
  AdapterKnobs alone;
  alone.action_gripper = dvla::Gripper::binary;
  refuses(alone, "run.action_statistics names no file");
}

TEST_CASE("A range without width is divided by its writer's epsilon, is not clamped, and is a warning") {
  const dvla_test::TemporaryFolder made;
  const auto adapter_of = [&](const std::string& file, json all) {
    const std::string path = (made.path() / file).string();
    std::ofstream(path) << all;
    AdapterKnobs knobs;
    knobs.action_statistics = path;
    return dvla::make_adapter(knobs, shows(2), {.dimensions = 2, .bounds = {{-9, 9}, {-9, 9}}});
  };
  const json flat{{"q01", {-1, 0.5}}, {"q99", {1, 0.5}}}, other{{"q01", {-1, -1}}, {"q99", {1, 1}}};
  const Adapter openpi =
      adapter_of("norm_stats.json", {{"norm_stats", {{"state", flat}, {"actions", other}}}});
  REQUIRE(openpi.warnings().size() == 1);
  CHECK(openpi.warnings()[0] == "dimension 1 of 'state' in '" + (made.path() / "norm_stats.json").string() +
                                    "' has q01 = q99, so what is not its q01 is divided by 1e-06");
  std::vector<float> state{0, 0.75F};
  openpi.proprioception(state);
  CHECK(state[1] == doctest::Approx(2 * 0.25 / 1e-6 - 1));  // (0.75 - 0.5) / (0.5 - 0.5 + 1e-6) * 2 - 1
  state = {0, 0.5F};
  openpi.proprioception(state);
  CHECK(state[1] == doctest::Approx(-1));

  const Adapter openvla =
      adapter_of("dataset_statistics.json", {{"a", {{"action", flat}, {"proprio", other}}}});
  REQUIRE(openvla.warnings().size() == 1);
  CHECK(openvla.warnings()[0].starts_with("dimension 1 of 'action' in "));
  CHECK(openvla.warnings()[0].ends_with("divided by 1e-08"));
  std::vector<float> action(2);
  openvla.to_environment(std::vector<float>{0, 0.9F}, action);
  CHECK(action[1] == doctest::Approx(0.5));
  CHECK(adapter_of("norm_stats.json", {{"norm_stats", {{"state", other}, {"actions", other}}}})
            .warnings()
            .empty());
}

TEST_CASE("openpi's lists may be filled up with dimensions of no width, and with no others") {
  const dvla_test::TemporaryFolder made;
  const std::string path = (made.path() / "norm_stats.json").string();
  const auto write = [&](const std::vector<double>& q99) {
    const json state{{"q01", {-1, -2, 0, 0}}, {"q99", q99}}, actions{{"q01", {-1, -1}}, {"q99", {1, 1}}};
    std::ofstream(path) << json{{"norm_stats", {{"state", state}, {"actions", actions}}}};
  };
  AdapterKnobs knobs;
  knobs.action_statistics = path;
  write({1, 2, 0, 0});
  std::vector<float> state{0.5F, 1};
  const Adapter adapter = dvla::make_adapter(knobs, shows(2), {.dimensions = 2});
  adapter.proprioception(state);
  CHECK(state[0] == doctest::Approx(0.5).epsilon(1e-5));
  CHECK(state[1] == doctest::Approx(0.5).epsilon(1e-5));
  CHECK(adapter.warnings().empty());
  write({1, 2, 0, 1});
  CHECK_THROWS_WITH_AS(dvla::make_adapter(knobs, shows(2), {.dimensions = 2}),
                       doctest::Contains("'state.q01' has 4 numbers, and the environment has 2 dimensions"),
                       dvla::ConfigError);
}

TEST_CASE(
    "A checkpoint's folder has its statistics where its writer puts them, or says that there are none") {
  const dvla_test::TemporaryFolder made;
  AdapterKnobs knobs;
  knobs.action_statistics = made.path().string();
  const auto said = [&] {
    return dvla_test::message_of<dvla::ConfigError>(
        [&] { dvla::make_adapter(knobs, shows(), takes(-1, 1)); });
  };
  const auto scale = [&] {  // what tells one data set from another
    std::vector<float> action(A);
    dvla::make_adapter(knobs, shows(), takes(-90, 90)).to_environment(std::vector<float>(A, 1), action);
    return action[0];
  };
  const auto list = [](std::size_t n, double value) { return json(std::vector<double>(n, value)); };
  const auto of = [&](double high, const char* action, const char* state) {
    return json{{action, {{"q01", list(A, -high)}, {"q99", list(A, high)}}},
                {state, {{"q01", list(P, -1)}, {"q99", list(P, 1)}}}};
  };
  CHECK(dvla_test::contains(said(), "the folder has no statistics, which would be policy_preprocessor.json"));
  CHECK(dvla_test::contains(said(), "or bounds for the environment's own units"));
  for (const auto& [id, high] : {std::pair("droid", 2.0), std::pair("lab/libero", 3.0)}) {
    std::filesystem::create_directories(made.path() / "assets" / id);
    std::ofstream(made.path() / "assets" / id / "norm_stats.json")
        << json{{"norm_stats", of(high, "actions", "state")}};
  }
  CHECK(dvla_test::contains(said(), "run.action_key is empty; it has droid, lab/libero"));
  knobs.action_key = "lab/libero";
  CHECK(scale() == doctest::Approx(3));
  knobs.action_key = "other";
  CHECK(dvla_test::contains(said(), "it has no 'other' (run.action_key); it has droid, lab/libero"));
  std::filesystem::remove_all(made.path() / "assets" / "droid");
  knobs.action_key = "";
  CHECK(scale() == doctest::Approx(3));
  std::filesystem::rename(made.path() / "assets" / "lab", made.path() / "lab");  // as RLinf's folders have it
  CHECK(scale() == doctest::Approx(3));
  knobs.action_key = "lab/libero";
  CHECK(scale() == doctest::Approx(3));
  knobs.action_key = "";
  std::ofstream(made.path() / "config.json")
      << json{{"norm_stats", {{"bridge", of(4, "action", "proprio")}}}};
  CHECK(scale() == doctest::Approx(4));
  std::ofstream(made.path() / "dataset_statistics.json") << json{{"bridge", of(5, "action", "proprio")}};
  CHECK(scale() == doctest::Approx(5));

  const json good = json::parse(std::ifstream(folder + "lerobot/policy_preprocessor.json"));
  const std::string state_file = good["steps"][1]["state_file"];
  std::filesystem::copy_file(folder + "lerobot/" + state_file, made.path() / state_file);
  const auto preprocessor = [&](const std::function<void(json&)>& change) {
    json all = good;
    change(all["steps"][1]);
    std::ofstream(made.path() / "policy_preprocessor.json") << all;
  };
  preprocessor([](json& step) {
    step["config"]["norm_map"] = {{"ACTION", "IDENTITY"}, {"STATE", "IDENTITY"}};
  });
  CHECK(scale() == 1);
  preprocessor([](json& step) { step["config"]["norm_map"]["ACTION"] = "LOG"; });
  CHECK(dvla_test::contains(said(), "norm_map.ACTION is \"LOG\"; it must be IDENTITY, QUANTILES, "));
  preprocessor([](json& step) { step["config"]["norm_map"]["ACTION"] = "QUANTILE10"; });
  CHECK(dvla_test::contains(said(), "it has no list 'action.q10'"));
  preprocessor([](json& step) { step["state_file"] = "../x.safetensors"; });
  CHECK(dvla_test::contains(said(), "the state_file '../x.safetensors', which is none of its folder"));
  preprocessor([](json& step) { step.erase("state_file"); });
  CHECK(dvla_test::contains(said(), "its normaliser names no state_file"));
  preprocessor([](json& step) { step["registry_name"] = "other"; });
  CHECK(dvla_test::contains(said(), "none of its steps is a normaliser"));
  knobs.action_statistics = "bounds";
  CHECK(said() == "");
  CHECK(dvla::make_adapter(knobs, shows(), takes(-1, 1)).name() == "bounds");
}

TEST_CASE(
    "A model whose actions lie beyond [-1, 1] is held by the environment's bounds, others are not looked "
    "at") {
  Adapter adapter = Adapter::bounds(takes(-1, 1));
  CHECK_FALSE(adapter.changes_actions());
  CHECK(adapter.bounded());
  adapter.expect_any_action();
  CHECK(adapter.changes_actions());
  CHECK_FALSE(adapter.bounded());
  std::vector<float> action(A);
  adapter.to_environment(std::vector<float>{-3, -1, -0.25F, 0, 0.5F, 1, 7}, action);
  CHECK(action == std::vector<float>{-1, -1, -0.25F, 0, 0.5F, 1, 1});
}
