// What stands on a run's page (io/page.hpp): what was run, its curves, its report as far as there is one, and what went
// wrong. Written as the run goes on and at its end. Also the page of a folder of runs, side by side.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "dvla/core/process_limits.hpp"
#include "dvla/core/text.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/io/page.hpp"
#include "dvla/io/run_folder.hpp"
#include "dvla/pipeline/command_line.hpp"
#include "dvla/pipeline/history.hpp"
#include "dvla/version.hpp"

namespace dvla {
namespace detail {

inline constexpr std::size_t most_points =
    1000;  ///< of a curve; longer ones are means over as many stretches
inline constexpr std::size_t most_faults = 100;

inline std::string page_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}
/// As it was typed, near enough to be read.
inline std::string own_command() {
  std::string command = text_of("/proc/self/cmdline").value_or("");
  std::ranges::replace(command, '\0', ' ');
  return command;
}

/// Curves of the first `batches`, at most `most_points` each; of those before `known`, which a checkpoint gave, success
/// and steps alone. Tasks: those of the instruction table, where there are several.
inline nlohmann::json curves(const History& history, std::size_t batches, std::size_t known,
                             const std::vector<std::string>& tasks) {
  nlohmann::json out{{"batch", nlohmann::json::array()}};
  for (const char* name : {"success", "mean", "gain", "env_steps", "gradient_norm", "kl", "clipped"})
    out[name] = nlohmann::json::array();
  out["tasks"] = nlohmann::json::array();
  for (const std::string& task : tasks)
    if (tasks.size() > 1 && out["tasks"].size() < std::tuple_size_v<decltype(UpdateStats::tasks)>)
      out["tasks"].push_back({{"name", task}, {"success", nlohmann::json::array()}});
  const auto at = [&](std::size_t i) { return history.at(static_cast<std::int64_t>(i)); };
  const std::size_t stretch = std::max<std::size_t>((batches + most_points - 1) / most_points, 1);
  for (std::size_t first = 0; first < batches; first += stretch) {
    const std::size_t end = std::min(first + stretch, batches);
    const std::size_t window = std::min(first, end - std::min<std::size_t>(end, 10));
    std::vector<UpdateStats> read;  // each once: training waits while one is copied
    for (std::size_t i = window; i < end; ++i) read.push_back(at(i).update);
    const auto mean = [&](std::size_t from, auto value) {
      double sum = 0;
      for (std::size_t i = from; i < end; ++i) sum += value(read[i - window]);
      return sum / static_cast<double>(end - from);
    };
    out["batch"].push_back(end);
    out["env_steps"].push_back(at(end - 1).counts.env_steps);
    out["success"].push_back(mean(first, [](const UpdateStats& each) { return each.success_rate; }));
    out["mean"].push_back(mean(window, [](const UpdateStats& each) { return each.success_rate; }));
    const auto measured = [&](const char* name, auto value) {
      out[name].push_back(first < known ? nlohmann::json() : nlohmann::json(mean(first, value)));
    };
    measured("gain", [](const UpdateStats& each) { return each.mean_return; });
    measured("gradient_norm", [](const UpdateStats& each) { return each.gradient_norm; });
    measured("kl", [](const UpdateStats& each) { return each.loss.approx_kl(); });
    measured("clipped", [](const UpdateStats& each) {
      return each.loss.clip_fraction_low() + each.loss.clip_fraction_high();
    });
    for (std::size_t task = 0; task < out["tasks"].size(); ++task) {
      double solved = 0, played = 0;
      for (const UpdateStats& each : read) {
        solved += each.tasks[task].solved;
        played += each.tasks[task].episodes;
      }
      out["tasks"][task]["success"].push_back(played > 0 ? nlohmann::json(solved / played)
                                                         : nlohmann::json());
    }
  }
  return out;
}

/// Warnings of a run, the first ones. Thread-safe.
class FaultList {
 public:
  void add(const std::string& what) {
    const std::scoped_lock lock(mutex_);
    if (++count_ <= most_faults) faults_.push_back(what);
  }
  std::vector<std::string> all() const {
    const std::scoped_lock lock(mutex_);
    std::vector<std::string> all = faults_;
    if (count_ > most_faults) all.push_back("and " + std::to_string(count_ - most_faults) + " more");
    return all;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> faults_;
  std::size_t count_ = 0;
};

/// Knobs that are not as a pipeline has them by itself.
template <class Pipeline>
nlohmann::json changed_from_defaults(const Config<Pipeline>& config) {
  nlohmann::json out = nlohmann::json::array();
  const nlohmann::json now = to_json(kept(config)), usual = to_json(kept(Config<Pipeline>{}));
  for (const auto& [section, knobs] : now.items()) {
    if (!knobs.is_object()) continue;
    for (const auto& [knob, value] : knobs.items())
      if (usual[section].contains(knob) && usual[section][knob] != value)
        out.push_back({{"knob", section + "." + knob},
                       {"value", value.dump()},
                       {"usual", usual[section][knob].dump()}});
  }
  return out;
}

/// The lines of P::describe() as slot and policy.
inline nlohmann::json policies_of(std::string_view description) {
  nlohmann::json out = nlohmann::json::array();
  while (!description.empty()) {
    const std::string_view line = take(description, '\n');
    const std::size_t gap = line.find(' ');
    if (gap == line.npos) continue;
    out.push_back({{"slot", std::string(line.substr(0, gap))},
                   {"policy", std::string(line.substr(line.find_first_not_of(" ", gap)))}});
  }
  return out;
}

}  // namespace detail

/// Success of the evaluations, after so many batches.
struct EvaluationPoint {
  std::int64_t batch = 0;
  double success = 0;
};

namespace detail {
/// What does, but for the report.
inline void fill_page(nlohmann::json& page, const std::string& state, const History& history,
                      std::size_t batches, std::size_t known, const std::vector<std::string>& tasks,
                      const std::vector<EvaluationPoint>& evaluations, const FaultList& faults) {
  page["state"] = state;
  page["written"] = page_time();
  page["curve"] = curves(history, std::min(batches, history.size()), known, tasks);
  page["evaluations"] = nlohmann::json::array();
  for (const EvaluationPoint& each : evaluations)
    page["evaluations"].push_back({{"batch", each.batch}, {"success", each.success}});
  page["faults"] = faults.all();
}
}  // namespace detail

/// What does not change, of a run. `adapter`: the configuration's, with what the model's checkpoint brings. `conventions`: the
/// environment's (HasConventions).
template <class Pipeline>
nlohmann::json page_data(const Config<Pipeline>& config, const AdapterKnobs& adapter,
                         const Conventions& conventions) {
  return {{"kind", "run"},
          {"name", config.run.name},
          {"iterations", config.run.iterations},
          {"policies", detail::policies_of(Pipeline::describe(adapter))},
          {"knobs", detail::changed_from_defaults(config)},
          {"conventions", conventions},
          {"command", detail::own_command()},
          {"versions",
           {{"dvla", std::string(library_version)},
            {"compiler", std::string(__VERSION__)},
            {"cores", std::to_string(usable_cores())}}}};
}

/// The page of the folder that has the runs' folders, from what they have left; `name` is the run that writes it, in
/// `state`. Throws Error where it cannot be written, or an index.html is there that is somebody else's.
inline void write_runs_page(const std::filesystem::path& root, const std::string& name,
                            const std::string& state) {
  const std::filesystem::path page = root / "index.html";
  const std::optional<std::string> there = detail::text_of(page.string());
  if (there && there->find(io::detail::page_mark) == there->npos)
    throw Error("'" + page.string() + "' is not a page of dvla's; it stays, and the runs are not listed");
  std::vector<std::filesystem::path> folders;
  std::error_code unreadable;
  for (const auto& entry : std::filesystem::directory_iterator(root, unreadable))
    if (std::filesystem::exists(entry.path() / "config.json", unreadable) &&
        std::filesystem::exists(entry.path() / "index.html", unreadable))
      folders.push_back(entry.path());
  std::ranges::sort(folders);
  nlohmann::json runs = nlohmann::json::array();
  for (const auto& folder : folders) {
    const auto read = [&](const char* file) {
      return nlohmann::json::parse(detail::text_of((folder / file).string()).value_or(""), nullptr, false);
    };
    const nlohmann::json config = read("config.json"), report = read("report.json");
    nlohmann::json run{{"name", folder.filename().string()}};
    const auto of = [](const nlohmann::json& json, const char* key) {
      return json.is_object() && json.contains(key) ? json[key] : nlohmann::json();
    };
    // The lock's file goes when a run ends; of one that was killed it stays.
    run["state"] = run["name"] == name ? state
                   : std::filesystem::exists(folder / io::FolderLock::file_name, unreadable)
                       ? "at work, or was killed"
                   : !report.is_object()           ? "no report"
                   : of(report, "stopped") == true ? "stopped"
                                                   : "finished";
    const nlohmann::json policies = of(config, "pipeline");
    for (const char* slot : {"environment", "model", "algorithm"}) {
      const nlohmann::json policy = of(policies, slot);
      run[slot] = policy.is_string() ? policy : nlohmann::json("");
    }
    for (const auto& [to, from] : {std::pair{"before", "success_rate_before"},
                                   {"after", "success_rate"},
                                   {"batches", "batches"},
                                   {"env_steps", "env_steps"},
                                   {"rate", "env_steps_per_s"},
                                   {"seconds", "train_wall_s"}})
      run[to] = of(report, from);
    runs.push_back(run);
  }
  io::write_page(page, {{"kind", "list"}, {"written", detail::page_time()}, {"runs", runs}});
}

}  // namespace dvla
