// dvla-test: mujoco io
// LIBERO in C++ against records that scripts/record_libero has made of the original (test/golden/environment/libero), part by part and as
// a whole; and what a folder is refused for. Skipped where scripts/convert_libero has not made build/libero-tasks, or
// where this is another MuJoCo than that folder's.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <list>
#include <map>
#include <memory_resource>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "dvla/environment/libero.hpp"
#include "dvla/environment/libero/agreement.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/testing/environment.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;
namespace fs = std::filesystem;

namespace {
fs::path folder() {
  const char* const given = std::getenv("DVLA_LIBERO");
  return given != nullptr ? fs::path(given) : fs::path(DVLA_TEST_DIR) / "../build/libero-tasks";
}
std::pmr::memory_resource& heap() { return *std::pmr::new_delete_resource(); }
std::vector<fs::path> records() {
  std::vector<fs::path> all;
  for (const auto& entry : fs::directory_iterator(fs::path(DVLA_TEST_DIR) / "golden/environment/libero"))
    if (entry.path().extension() == ".safetensors") all.push_back(entry.path());
  return all;
}
libero::Scene scene_of(const libero::Record& record) {
  return libero::Scene::open(folder(), libero::read_manifest(folder()), record.about.suite, record.about.task,
                             static_cast<int>(record.about.seed), heap());
}
/// The tasks of a suite that are converted, as the knob takes them.
std::string tasks_of(const std::string& suite) {
  std::string all;
  for (const libero::Listed& listed : libero::read_manifest(folder()).tasks)
    if (listed.suite == suite) all += (all.empty() ? "" : ",") + std::to_string(listed.task);
  return all;
}
LiberoKnobs small() {
  const libero::Manifest manifest = libero::read_manifest(folder());
  LiberoKnobs knobs;
  knobs.converted = folder().string();
  knobs.environments = 3;
  knobs.suite = manifest.tasks.front().suite;
  knobs.tasks = tasks_of(knobs.suite);
  knobs.settling = 2;
  return knobs;
}
/// What making an environment says.
std::string refusal(const LiberoKnobs& knobs) {
  try {
    LiberoBatch batch(knobs, heap());
  } catch (const Error& error) {
    return error.what();
  }
  return "it was made";
}
/// A folder whose files are the converted one's, but for its manifest, which is `text` behind `change`.
template <class Change>
std::string refusal_behind(const fs::path& at, Change change) {
  std::ifstream file(folder() / "manifest.json");
  nlohmann::json manifest = nlohmann::json::parse(file);
  change(manifest);
  std::ofstream(at / "manifest.json") << manifest.dump();
  for (const char* each : {"tasks", "assets"})
    if (!fs::exists(at / each)) fs::create_directory_symlink(fs::absolute(folder() / each), at / each);
  LiberoKnobs knobs = small();
  knobs.converted = at.string();
  return refusal(knobs);
}
/// What a batch shows of episodes that begin in all of its rows.
struct Begun {
  Begun(LiberoBatch& batch, const std::vector<Start>& starts, int side, int threads = 1)
      : felt(static_cast<std::size_t>(batch.size() * 8)),
        pixels(static_cast<std::size_t>(2 * batch.size() * side * side * 3)) {
    const std::int64_t n = batch.size();
    std::vector<std::int32_t> instruction(static_cast<std::size_t>(n));
    Observation next;
    for (std::size_t camera = 0; camera < 2 && side > 0; ++camera)
      next.frames[camera] =
          Field<std::uint8_t>(Extents{n, side, side, 3}, pixels.data() + camera * pixels.size() / 2);
    next.proprioception = Field<float>(Extents{n, 8}, felt.data());
    next.instruction = Field<std::int32_t>(Extents{n}, instruction.data());
    Arena arena(threads);
    RowFailures failures(n);
    std::vector<std::int64_t> all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    Rows rows(all, arena, failures);
    batch.reset(rows, starts, next);
    for (const std::int64_t row : all) CHECK(failures.why(row) == "");
  }
  std::vector<float> felt;
  std::vector<std::uint8_t> pixels;
};
/// Whether the expert has a skill for all of a batch's tasks.
bool has_expert(const LiberoBatch& batch) {
  try {
    batch.check_expert();
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}
/// Of the expert, in episodes that begin in the first states of a task, a row each, with Gaussian noise on its actions: how many it solves.
int solved_by_the_expert(const libero::Listed& listed, double noise) {
  LiberoKnobs knobs = small();
  knobs.suite = listed.suite;
  knobs.tasks = std::to_string(listed.task);
  knobs.environments = 10;
  knobs.settling = 10;
  LiberoBatch batch(knobs, heap());
  const std::int64_t n = batch.size();
  OwnedRecord<Outcome> outcome(
      {Field<float>({n, 1}), Field<std::uint8_t>({n, 1}), Field<std::uint8_t>({n, 1}),
       observation_layout(batch.observation_spec(), {n})},
      heap());
  std::vector<float> actions(static_cast<std::size_t>(n * libero::actions));
  const Field<float> action({n, 1, libero::actions}, actions.data());
  std::vector<Start> starts;
  for (std::int64_t index = 0; index < n; ++index) starts.push_back({.case_index = index});
  Arena arena(1);
  RowFailures failures(n);
  std::vector<std::int64_t> all(static_cast<std::size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  Rows rows(all, arena, failures);
  batch.reset(rows, starts, outcome->next);
  SplitMix64 random(1);
  for (std::int64_t step = 0; step < batch.horizon(); ++step) {
    for (const std::int64_t row : all) {
      const std::span<float> one = action.at(row).span();
      batch.expert(row, one);
      for (float& value : one) value += static_cast<float>(noise * random.normal());
    }
    batch.step(rows, action, *outcome);
  }
  for (const std::int64_t row : all) CHECK(failures.why(row) == "");
  return static_cast<int>(std::ranges::count_if(all, [&](std::int64_t row) { return batch.succeeded(row); }));
}
/// Numbers of a record that are changed: by `much`, at `at` of the tensor.
struct Change {
  std::string tensor;
  std::size_t at;
  double much;
};
using Changes = std::vector<Change>;
void changed_copy(const fs::path& from, const fs::path& to, const Changes& changes) {
  const io::SafetensorsFile file(from);
  std::list<std::vector<double>> changed;
  std::vector<io::TensorToWrite> tensors;
  for (const std::string& name : file.names()) {
    const io::TensorView view = file.tensor(name);
    io::TensorToWrite& tensor = tensors.emplace_back(
        io::TensorToWrite{name, view.dtype, {view.shape.begin(), view.shape.end()}, view.bytes});
    for (const Change& change : changes) {
      if (change.tensor != name) continue;
      const std::span<const double> numbers = file.span<double>(name);
      changed.emplace_back(numbers.begin(), numbers.end()).at(change.at) += change.much;
      tensor.bytes = std::as_bytes(std::span(changed.back()));
    }
  }
  io::write_safetensors(to, tensors, file.metadata());
}
bool contains(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != text.npos;
  if (!found) MESSAGE(text);
  return found;
}
}  // namespace

TEST_CASE("recorded episodes go as in the original, part by part and as a whole") {
  std::map<std::string, std::set<bool>> predicates;
  int placed = 0;
  REQUIRE(records().size() >= 7);
  for (const fs::path& path : records()) {
    CAPTURE(path);
    const libero::Record record(path);
    const libero::Scene scene = scene_of(record);
    const libero::Agreement found = record.compare(scene, heap());
    CHECK(found.steps >= 100);
    CHECK(found.positions <= libero::Agreement::near);
    CHECK(found.first_apart == 0);
    CHECK(found.began == libero::Agreement::Part::none);
    CHECK(found.observed <= 1e-4);
    // The controller, by what it measures and makes of it; gripper and goals; a physics step; predicates; rendering.
    CHECK(found.substeps >= scene.substeps);
    CHECK(found.measured <= 1e-9);
    CHECK(found.torques <= 1e-9);
    CHECK(found.aimed <= 1e-12);
    CHECK(found.moved <= 1e-9);
    CHECK(found.alone <= 1e-6);
    CHECK(found.other_successes == 0);
    CHECK(found.other_atoms == 0);
    CHECK(found.burners == 0);
    CHECK(found.images == 4);
    CHECK(found.pixels <= 0.5);
    CHECK(found.pixels_near >= 0.999);
    for (std::size_t atom = 0; atom < found.atoms.size(); ++atom) {
      std::set<bool>& seen = predicates[record.about.goal[atom].front()];
      if (found.atoms[atom] > 0) seen.insert(true);
      if (found.atoms[atom] < found.steps) seen.insert(false);
    }

    // The folder's initial state and its fixtures' poses are what the original began in.
    if (record.about.set.empty() && record.about.resets == record.about.state + 1) {
      ++placed;
      const std::vector<double> start = record.start();
      CHECK(std::ranges::equal(scene.state(record.about.state).subspan(1), start));
      CHECK(std::ranges::equal(scene.placed(record.about.state), record.fixtures()));
    }
  }
  CHECK(placed >= 7);
  for (const char* word : {"on", "in", "open", "close", "turnon", "turnoff"}) {
    CAPTURE(word);
    CHECK(predicates[word].size() == 2);
  }
}

TEST_CASE("what is off in a record is found where it is") {
  const fs::path path = fs::path(DVLA_TEST_DIR) / "golden/environment/libero/90_39_off.safetensors";
  const libero::Scene scene = scene_of(libero::Record(path));
  const dvla_test::TemporaryFolder temporary;
  const auto compared = [&](const Changes& changes) {
    const fs::path other = temporary.path() / "other.safetensors";
    changed_copy(path, other, changes);
    return libero::Record(other).compare(scene, heap(), /*draw=*/false);
  };
  {
    // Another action than was recorded, by 2 cm along x, in step 31.
    const libero::Agreement found = compared({{"action", 30 * 7, 0.4}});
    CHECK(found.first_apart >= 31);
    CHECK(found.aimed == doctest::Approx(0.02).epsilon(1e-6));
    CHECK(!found.controller_agrees());
    CHECK(found.began == libero::Agreement::Part::controller);
    CHECK(found.began_at == 31);
  }
  {
    // A joint of the arm that leaps in step 41, and is back behind it; a mass that was measured otherwise in step 1; predicates.
    const int joint = scene.arm.angle(0), width = scene.model->nq;
    const libero::Agreement found = compared({{"qpos", static_cast<std::size_t>(40 * width + joint), 1e-3},
                                              {"substep.mass_matrix", 49 * 3, 1e-6}});
    CHECK(found.first_apart == 41);
    CHECK(found.measured == doctest::Approx(1e-6).epsilon(1e-3));
    CHECK(found.began == libero::Agreement::Part::controller);
    CHECK(found.began_at == 1);
  }
  {
    const int joint = scene.arm.angle(0), width = scene.model->nq;
    const libero::Agreement found = compared({{"qpos", static_cast<std::size_t>(40 * width + joint), 1e-3}});
    CHECK(found.began == libero::Agreement::Part::integrator);
    CHECK(found.began_at == 41);
    CHECK(found.began_by == doctest::Approx(1e-3).epsilon(1e-3));
    CHECK(found.itself < 1e-9);
    CHECK(found.other_successes == 0);
  }
}

TEST_CASE("it keeps the promises of an environment") {
  LiberoKnobs knobs = small();
  LiberoBatch batch(knobs, heap());
  for (const std::string& wrong : testing::check_environment(
           batch, {.most_steps = 9, .largest_proprioception = 7, .experts = has_expert(batch)}))
    FAIL_CHECK(wrong);
}
TEST_CASE("with cameras, too, and frames are turned as asked for") {
  LiberoKnobs knobs = small();
  knobs.camera_pixels = 32;
  knobs.environments = 2;
  LiberoBatch batch(knobs, heap());
  for (const std::string& wrong : testing::check_environment(
           batch, {.rows = 2, .most_steps = 3, .largest_proprioception = 7, .experts = has_expert(batch)}))
    FAIL_CHECK(wrong);

  std::vector<std::vector<std::uint8_t>> frames;
  for (const LiberoFrames way : {LiberoFrames::libero, LiberoFrames::upright, LiberoFrames::rotated}) {
    knobs.frames = way;
    LiberoBatch turned(knobs, heap());
    frames.push_back(Begun(turned, std::vector<Start>(2, Start{.seed = ~std::uint64_t{0}}), 32).pixels);
  }
  const auto at = [&](std::size_t way, int row, int column) {
    return frames[way][static_cast<std::size_t>(3 * (32 * row + column))];
  };
  bool textured = false;
  for (int row = 0; row < 32; ++row)
    for (int column = 0; column < 32; ++column) {
      CHECK(at(0, row, column) == at(1, 31 - row, column));
      CHECK(at(0, row, column) ==
            at(2, 31 - row, 31 - column));  // [::-1, ::-1], as openpi and OpenVLA-OFT turn them
      textured = textured || at(0, row, column) != at(0, 31 - row, column);
    }
  CHECK(textured);

  knobs.drawn_at_once = 2;
  LiberoBatch two(knobs, heap());
  CHECK(Begun(two, std::vector<Start>(2, Start{.seed = ~std::uint64_t{0}}), 32, 2).pixels == frames[2]);
}

TEST_CASE("what success depends on is said: simulator, settling, both horizons, frames and who draws them") {
  LiberoKnobs knobs = small();
  const auto said = [&](const std::string& name) {
    for (const auto& [each, words] : LiberoBatch::conventions(knobs))
      if (each == name) return words;
    return std::string();
  };
  const libero::Manifest manifest = libero::read_manifest(folder());
  const std::string own = std::to_string(manifest.horizons.at(knobs.suite));
  CHECK(said("simulator") == std::string("MuJoCo ") + mj_versionString());
  CHECK(contains(said("settling"), "2 control steps"));
  CHECK(contains(said("horizon"), own + " control steps behind settling, the suite's"));
  CHECK(said("frames") == "none");
  CHECK(said("rendering") == "");
  knobs.horizon = 37;
  knobs.camera_pixels = 16;
  CHECK(contains(said("horizon"), "37 control steps"));
  CHECK(contains(said("horizon"), "the suite's: " + own));
  CHECK(contains(said("frames"), "180 degrees"));
  LiberoBatch batch(knobs, heap());
  CHECK(contains(said("rendering"), "original, by "));
}

TEST_CASE(
    "cases are task x state, each once; training begins from states that are not held out, and nothing else "
    "does") {
  LiberoKnobs knobs = small();
  knobs.environments = 1;
  LiberoBatch batch(knobs, heap());
  const auto tasks = std::ssize(batch.observation_spec().instructions);
  CHECK(batch.cases() == 50 * tasks);
  CHECK(LiberoBatch::spec(knobs).cases == batch.cases());
  CHECK(batch.horizon() == libero::read_manifest(folder()).horizons.at(knobs.suite));
  knobs.horizon = 7;
  CHECK(LiberoBatch::spec(knobs).horizon == 7);

  const auto felt_of = [](LiberoBatch& of, const Start& start) { return Begun(of, {start}, 0).felt; };
  std::set<std::vector<float>> cases;
  for (std::int64_t index = 0; index < 50; ++index)
    cases.insert(felt_of(batch, {.case_index = index * tasks}));
  CHECK(cases.size() == 50);
  knobs.held_out = 49;  // training has one state of a task, all else the others
  knobs.tasks = std::to_string(libero::read_manifest(folder()).tasks.front().task);
  LiberoBatch apart(knobs, heap());
  const std::vector<float> first = felt_of(apart, {.case_index = 0});
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    CHECK(felt_of(apart, {.seed = seed, .training = true}) == first);
    CHECK(felt_of(apart, {.seed = seed, .training = false}) != first);
  }
}

TEST_CASE("an episode ends by the horizon, and several tasks share a batch") {
  LiberoKnobs knobs = small();
  knobs.horizon = 4;
  const auto play = [&] {
    LiberoBatch batch(knobs, heap());
    return testing::check_environment(
        batch, {.most_steps = 8, .largest_proprioception = 7, .experts = has_expert(batch)});
  };
  for (const std::string& wrong : play()) FAIL_CHECK(wrong);
  std::map<std::string, int> by_suite;
  for (const libero::Listed& listed : libero::read_manifest(folder()).tasks) ++by_suite[listed.suite];
  for (const auto& [suite, tasks] : by_suite) {
    if (tasks < 2) continue;
    knobs.suite = "libero_" + suite;  // as LIBERO calls it
    knobs.tasks = tasks_of(suite);
    for (const std::string& wrong : play()) FAIL_CHECK(wrong);
    return;
  }
  FAIL("no suite of the folder has two tasks");
}

TEST_CASE(
    "the scripted expert solves tasks of one thing put somewhere, and takes up again what noise undoes") {
  int tasks = 0;
  for (const libero::Listed& listed : libero::read_manifest(folder()).tasks) {
    if ((listed.suite != "spatial" && listed.suite != "object") || listed.task > 1) continue;
    CAPTURE(listed.instruction);
    ++tasks;
    CHECK(solved_by_the_expert(listed, 0) >= 9);
    CHECK(solved_by_the_expert(listed, 0.1) >= 8);
  }
  CHECK(tasks > 0);
}
TEST_CASE("a task that the expert has no skill for is one sentence") {
  int tasks = 0;
  for (const libero::Listed& listed : libero::read_manifest(folder()).tasks) {
    if (listed.suite != "goal" || listed.task != 7) continue;
    ++tasks;
    LiberoKnobs knobs = small();
    knobs.suite = listed.suite;
    knobs.tasks = std::to_string(listed.task);
    LiberoBatch batch(knobs, heap());
    float action[libero::actions];
    for (const bool asked : {false, true})
      CHECK_THROWS_WITH_AS(asked ? batch.expert(0, action) : batch.check_expert(),
                           doctest::Contains("LIBERO's scripted expert has no skill for these tasks of the "
                                             "suite goal: 7 (the first, 'turn on the stove': its "
                                             "goal asks for a joint to be moved"),
                           ConfigError);
  }
  CHECK(tasks > 0);
}

TEST_CASE("64 rows take little of a pool, and one that is too small is said before anything starts") {
  LiberoKnobs knobs = small();
  knobs.tasks = std::to_string(libero::read_manifest(folder()).tasks.front().task);
  knobs.environments = 64;
  EnvironmentPool pool(std::size_t{2} << 30);
  const LiberoBatch batch(knobs, pool);
  CHECK(pool.report().in_use < (std::size_t{300} + 64 * 20) << 20);
  EnvironmentPool narrow(std::size_t{400} << 20);
  CHECK_THROWS_WITH_AS(LiberoBatch(knobs, narrow),
                       doctest::Contains("the environment pool is too small: 64 environments"), Error);
}

TEST_CASE("a folder that is none, or another's, is one sentence") {
  LiberoKnobs knobs = small();
  knobs.converted = "/nowhere";
  CHECK(contains(refusal(knobs),
                 "'/nowhere/manifest.json' cannot be read; scripts/convert_libero makes such a folder"));
  knobs = small();
  knobs.suite = "kitchen";
  CHECK(contains(refusal(knobs), "environment.suite is 'kitchen', of which the folder"));
  knobs = small();
  for (const char* wrong : {"x", "0,", "0,0", "-1", ",", "0 1"}) {
    knobs.tasks = wrong;
    CHECK(contains(refusal(knobs), "environment.tasks is '"));
  }
  knobs.tasks = "99";
  CHECK(contains(refusal(knobs), "environment.tasks has 99, and the folder"));
  CHECK(contains(refusal(knobs), "' has of the suite " + knobs.suite + ": "));
  for (const auto& [suite, whole] : libero::read_manifest(folder()).sizes) {
    const std::string some = tasks_of(suite);
    if (some.empty() || std::ranges::count(some, ',') + 1 == whole) continue;
    knobs.suite = suite;
    knobs.tasks = "";
    CHECK(contains(refusal(knobs), "environment.tasks is empty, which is the whole suite, and the folder"));
    CHECK(contains(refusal(knobs), ": " + some.substr(0, some.find(','))));
  }
  knobs = small();
  knobs.camera_pixels = 8;
  CHECK(contains(refusal(knobs), "environment.camera_pixels is 8"));
  knobs = small();
  knobs.placement_seed = 3;
  CHECK(contains(refusal(knobs), "environment.placement_seed is 3"));

  const dvla_test::TemporaryFolder temporary;
  const fs::path at = temporary.path();
  CHECK(contains(refusal_behind(at, [](auto& m) { m["mujoco"] = "2.0.0"; }),
                 "was converted with MuJoCo 2.0.0, and this program has "));
  CHECK(contains(refusal_behind(at, [](auto& m) { m["format"] = 99; }), "its format is 99 and not 1"));
  CHECK(contains(refusal_behind(at, [](auto& m) { m.erase("robot"); }), "its field 'robot' is missing"));
  CHECK(contains(refusal_behind(at, [](auto& m) { m["robot"]["kp"] = "strong"; }),
                 "its field 'robot.kp' is \"strong\"; it must be an array"));
  CHECK(contains(refusal_behind(at, [](auto& m) { m["robot"]["arm_joints"].erase(0); }),
                 "its robot has another arm than one of 7 joints"));
  CHECK(contains(refusal_behind(at, [](auto& m) { m["robot"]["eef_site"] = "nose"; }),
                 "the MuJoCo model has no site named 'nose'"));
  CHECK(contains(refusal_behind(at, [](auto& m) { m["tasks"][0]["folder"] = "../secret"; }),
                 "it must lie in this one"));
  CHECK(contains(refusal_behind(at, [](auto& m) { m["tasks"][0]["folder"] = "tasks/unfinished"; }),
                 "task.json' cannot be read"));
  std::ofstream(at / "manifest.json") << "{";
  knobs = small();
  knobs.converted = at.string();
  CHECK(contains(refusal(knobs), "it is no JSON, or was cut off"));
}

TEST_CASE("a record that is none, or another task's, is one sentence") {
  const dvla_test::TemporaryFolder temporary;
  const libero::Record record(records().front());
  for (const libero::Listed& listed : libero::read_manifest(folder()).tasks) {
    if (listed.suite == record.about.suite && listed.task == record.about.task) continue;
    const libero::Scene scene =
        libero::Scene::open(folder(), libero::read_manifest(folder()), listed, 7, heap());
    CHECK_THROWS_WITH_AS(record.compare(scene, heap()), doctest::Contains(", and the scene of "), Error);
    break;
  }
  const fs::path path = temporary.path() / "states.safetensors";
  fs::copy_file(folder() / libero::read_manifest(folder()).tasks.front().folder / "states.safetensors", path);
  CHECK_THROWS_WITH_AS(libero::Record{path}, doctest::Contains("is no record of scripts/record_libero"),
                       FormatError);
}

int main(int argc, char** argv) {
  ::setenv("MUJOCO_GL", "osmesa", /*overwrite=*/0);  // which drew the records' images
  std::string why;
  if (!fs::exists(folder() / "manifest.json"))
    why = "'" + folder().string() + "' is not there; scripts/setup libero and scripts/convert_libero make it";
  else if (const std::string made = libero::read_manifest(folder()).mujoco; made != mj_versionString())
    why = "'" + folder().string() + "' was converted with MuJoCo " + made + ", and this is built with " +
          mj_versionString() + "; the preset libero has that";
  if (why.empty()) return doctest::Context(argc, argv).run();
  std::printf("skipped: %s\n", why.c_str());
  return 77;
}
