// The folder that scripts/convert_libero writes: manifest.json and, for each task, task.json, model.xml and
// states.safetensors. What each field is, docs/libero.md says. Reading takes any text: what does not fit is one sentence that
// names file and field.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/core/members.hpp"

namespace dvla::libero {

/// Of manifest.json: the same for all tasks.
struct Robot {
  std::vector<std::string> arm_joints, arm_actuators, finger_joints, finger_actuators;
  std::vector<double> arm_qpos, finger_qpos;
  double finger_speed = 0;
  std::vector<double> finger_sign;
  std::string eef_site, eef_body;
  std::vector<double> kp, kd;
  double nullspace_kp = 0;
  std::vector<double> input_min, input_max, output_min, output_max;
  double timestep = 0;
  int substeps = 0;
};

/// Where a joint begins to be where a word wants it.
struct Turn {
  bool above = false;  ///< it holds above the position; otherwise below
  double at = 0;
  bool equal = false;  ///< and at it
};
/// What a predicate reads of an object, or of a region, which is a site of an object or of the table.
struct Thing {
  std::string name;
  bool region = false, has_parent = false;
  std::string body, site;
  std::array<double, 3> size{};    ///< half extents of a region
  std::vector<std::string> geoms;  ///< that touch; of a region its parent's
  std::vector<std::string> joints;
  std::map<std::string, Turn> articulation;
};
/// A site that is seen while one of the joints is turned on.
struct Burner {
  std::string site;
  std::vector<std::string> joints;
  Turn turnon;
  double alpha_off = 0, alpha_on = 1;
};
struct TaskFile {
  std::string name, instruction;
  std::int64_t nq = 0, nv = 0;
  std::vector<std::vector<std::string>> goal;  ///< predicate and its arguments
  std::vector<Thing> things;
  std::vector<std::string> fixtures;  ///< bodies, in the order of the poses
  std::vector<Burner> burners;
};
struct Listed {
  std::string suite, folder, instruction;
  int task = 0;
};
struct Manifest {
  std::string mujoco;
  int settling = 0;
  std::map<std::string, int> horizons;  ///< by suite
  std::map<std::string, int> sizes;     ///< by suite: the tasks that it has, converted or not
  Robot robot;
  std::vector<Listed> tasks;
};

}  // namespace dvla::libero

template <std::same_as<dvla::libero::Robot> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::arm_joints, &K::arm_actuators, &K::finger_joints, &K::finger_actuators, &K::arm_qpos,
                    &K::finger_qpos, &K::finger_speed, &K::finger_sign, &K::eef_site, &K::eef_body, &K::kp,
                    &K::kd, &K::nullspace_kp, &K::input_min, &K::input_max, &K::output_min, &K::output_max,
                    &K::timestep, &K::substeps> {};

namespace dvla::libero {

inline constexpr int folder_format = 1;

/// An object of a JSON text, whose fields are asked for by name.
class JsonObject {
 public:
  JsonObject(const nlohmann::json& json, dvla::detail::JsonPlace place) : json_(json), place_(place) {
    if (!json.is_object()) place_.refuse("is " + dvla::detail::shown(json) + "; it must be an object");
  }
  bool has(const char* field) const { return json_.contains(field) && !json_[field].is_null(); }
  template <class Value>
  void read(const char* field, Value& value) const {
    dvla::detail::read_json_value(at(field), {&place_, field}, value);
  }
  JsonObject object(const char* field) const { return {at(field), {&place_, field}}; }
  /// visit(name, object) of each field.
  template <class Visit>
  void each(Visit visit) const {
    for (const auto& item : json_.items())
      visit(item.key(), JsonObject(item.value(), {&place_, item.key().c_str()}));
  }
  /// visit(object) of each element of a field's array.
  template <class Visit>
  void each_of(const char* field, Visit visit) const {
    const nlohmann::json& list = at(field);
    const dvla::detail::JsonPlace place{&place_, field};
    if (!list.is_array()) place.refuse("is " + dvla::detail::shown(list) + "; it must be an array");
    for (std::size_t i = 0; i < list.size(); ++i) visit(JsonObject(list[i], {&place, nullptr, i}));
  }

 private:
  const nlohmann::json& at(const char* field) const {
    const auto found = json_.find(field);
    if (found == json_.end()) dvla::detail::JsonPlace{&place_, field}.refuse("is missing");
    return *found;
  }
  const nlohmann::json& json_;
  dvla::detail::JsonPlace place_;
};

/// read(object) of the file. Throws Error where it cannot be opened, FormatError, which names the file, where it does not fit.
template <class Read>
void read_json_file(const std::filesystem::path& path, Read read) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file)
    throw Error("'", path.string(),
                "' cannot be read; scripts/convert_libero makes such a folder (docs/libero.md)");
  try {
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    if (json.is_discarded()) throw FormatError("it is no JSON, or was cut off");
    const JsonObject object(json, {});
    int format = 0;
    object.read("format", format);
    if (format != folder_format)
      throw FormatError("its format is ", format, " and not ", folder_format,
                        "; convert again, with this version's scripts/convert_libero");
    read(object);
  } catch (const FormatError& error) {
    throw FormatError("'", path.string(), "': ", error.what());
  }
}

inline Turn read_turn(const JsonObject& object) {
  Turn turn{.above = object.has("above")};
  object.read(turn.above ? "above" : "below", turn.at);
  object.read("equal", turn.equal);
  return turn;
}

inline Manifest read_manifest(const std::filesystem::path& folder) {
  Manifest manifest;
  read_json_file(folder / "manifest.json", [&](const JsonObject& object) {
    object.read("mujoco", manifest.mujoco);
    object.read("settling", manifest.settling);
    object.object("suites").each([&](const std::string& suite, const JsonObject& of) {
      of.read("horizon", manifest.horizons[suite]);
      of.read("tasks", manifest.sizes[suite]);
    });
    object.read("robot", manifest.robot);
    object.each_of("tasks", [&](const JsonObject& each) {
      Listed& listed = manifest.tasks.emplace_back();
      each.read("suite", listed.suite);
      each.read("task", listed.task);
      each.read("folder", listed.folder);
      each.read("instruction", listed.instruction);
      if (const std::filesystem::path path = listed.folder;
          path.is_absolute() || listed.folder.find("..") != listed.folder.npos)
        throw FormatError("the folder of a task is '", listed.folder, "'; it must lie in this one");
      const auto known = manifest.horizons.find(listed.suite);
      if (known == manifest.horizons.end() || known->second < 1)
        throw FormatError("it gives no horizon of the suite '", listed.suite, "', of which it has tasks");
    });
  });
  return manifest;
}

inline TaskFile read_task(const std::filesystem::path& path) {
  TaskFile task;
  read_json_file(path, [&](const JsonObject& object) {
    object.read("name", task.name);
    object.read("instruction", task.instruction);
    object.read("nq", task.nq);
    object.read("nv", task.nv);
    object.read("goal", task.goal);
    for (const auto& atom : task.goal)
      if (atom.size() < 2) throw FormatError("its goal has an atom without a predicate and what it is of");
    object.object("things").each([&](const std::string& name, const JsonObject& of) {
      Thing& thing = task.things.emplace_back();
      thing.name = name;
      std::string kind;
      of.read("kind", kind);
      thing.region = kind == "region";
      of.read("joints", thing.joints);
      if (thing.region) {
        of.read("site", thing.site);
        of.read("size", thing.size);
        thing.has_parent = of.has("parent");
        if (thing.has_parent) of.read("parent_geoms", thing.geoms);
      } else {
        of.read("body", thing.body);
        of.read("geoms", thing.geoms);
      }
      if (of.has("articulation"))
        of.object("articulation").each([&](const std::string& word, const JsonObject& turn) {
          thing.articulation[word] = read_turn(turn);
        });
    });
    object.each_of("fixtures",
                   [&](const JsonObject& each) { each.read("body", task.fixtures.emplace_back()); });
    object.each_of("burners", [&](const JsonObject& each) {
      Burner& burner = task.burners.emplace_back();
      each.read("site", burner.site);
      each.read("joints", burner.joints);
      burner.turnon = read_turn(each.object("turnon"));
      each.read("alpha_off", burner.alpha_off);
      each.read("alpha_on", burner.alpha_on);
    });
  });
  return task;
}

}  // namespace dvla::libero
