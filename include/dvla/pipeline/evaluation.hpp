// An evaluation's list of episodes, and what came of them by task. Either fresh seeds, which training never
// draws, or cases that the environment enumerates, each exactly once. Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/core/text.hpp"
#include "dvla/pipeline/rollout_worker.hpp"

namespace dvla {

/// The numbers that `text` names, in its order: "all", or numbers and ranges, both ends included, as
/// "0-9, 20". Throws ConfigError, naming the knob, where it is something else, names a case twice, or one that
/// is not in [0, cases).
inline std::vector<std::int64_t> parse_cases(std::string_view text, std::int64_t cases) {
  const auto refuse = [&](const std::string& why) {
    if (cases < 1)
      throw ConfigError("run.evaluation_cases is '", text,
                        "', but the environment has no cases; leave it empty");
    throw ConfigError("run.evaluation_cases is '", text, "': ", why,
                      "; give all, or numbers and ranges from 0 to ", cases - 1, " as 0-9,20");
  };
  std::vector<std::int64_t> list;
  if (cases < 1) refuse("");
  std::vector<bool> named(static_cast<std::size_t>(cases));
  const auto trimmed = [](std::string_view part) {
    part.remove_prefix(std::min(part.find_first_not_of(' '), part.size()));
    return part.substr(0, part.find_last_not_of(' ') + 1);
  };
  const std::string every = "0-" + std::to_string(cases - 1);
  std::string_view left = trimmed(text) == "all" ? every : text;
  for (bool more = true; more;) {
    more = left.find(',') != left.npos;
    const std::string part(trimmed(detail::take(left, ',')));
    std::string_view end = part;
    const auto begin = detail::whole_number(detail::take(end, '-'));
    const auto until = part.find('-') == part.npos ? begin : detail::whole_number(end);
    if (!begin || !until) refuse("'" + part + "' is no number and no range");
    if (*until < *begin || *until >= static_cast<std::uint64_t>(cases))
      refuse("'" + part + "' is not within the environment's cases");
    const auto first = static_cast<std::int64_t>(*begin), last = static_cast<std::int64_t>(*until);
    for (std::int64_t each = first; each <= last; ++each) {
      if (named[static_cast<std::size_t>(each)])
        refuse("case " + std::to_string(each) + " stands there twice");
      named[static_cast<std::size_t>(each)] = true;
      list.push_back(each);
    }
  }
  return list;
}

/// Of the episodes of one task.
struct TaskSuccess {
  std::string task;  ///< the instruction
  std::int64_t episodes = 0, failed = 0;
  double success = 0;  ///< share of all of them; a failed row's has not solved it
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::TaskSuccess, task, episodes, failed, success);

namespace dvla {

/// Where an episode could not begin and did not say of which task it is.
inline constexpr const char* unknown_task = "(not known: it could not be reset)";
inline std::string task_of(const EvaluatedEpisode& episode, const ObservationSpec& spec) {
  return episode.instruction < 0 ? unknown_task
                                 : spec.instructions.at(static_cast<std::size_t>(episode.instruction));
}

/// By task, in the order of the instruction table, those without an episode left out; last, if there are any,
/// episodes of unknown_task.
inline std::vector<TaskSuccess> by_task(std::span<const EvaluatedEpisode> episodes,
                                        const ObservationSpec& spec) {
  std::vector<TaskSuccess> tasks(spec.instructions.size() + 1);
  for (const EvaluatedEpisode& each : episodes) {
    TaskSuccess& task =
        each.instruction < 0 ? tasks.back() : tasks.at(static_cast<std::size_t>(each.instruction));
    task.task = task_of(each, spec);
    ++task.episodes;
    task.success += each.success;
    task.failed += each.failed;
  }
  for (TaskSuccess& task : tasks)
    task.success /= static_cast<double>(std::max<std::int64_t>(task.episodes, 1));
  std::erase_if(tasks, [](const TaskSuccess& task) { return task.episodes == 0; });
  return tasks;
}

/// For report.json: how it was played, success by task, and, where cases were named, of each.
inline nlohmann::json evaluation_json(std::span<const EvaluatedEpisode> episodes, const ObservationSpec& spec,
                                      std::int64_t horizon) {
  nlohmann::json json{{"episodes", episodes.size()}, {"horizon", horizon}, {"decoding", "mode"}};
  json["tasks"] = json_of(by_task(episodes, spec));
  for (const EvaluatedEpisode& each : episodes)
    if (each.start.case_index >= 0)
      json["cases"].push_back({{"case", each.start.case_index},
                               {"task", task_of(each, spec)},
                               {"success", each.success},
                               {"failed", each.failed}});
  return json;
}

}  // namespace dvla
