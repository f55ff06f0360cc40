// The ways into and out of a configuration: command line, TOML file, JSON. All of them iterate over the same
// list of reflected knobs. Order of precedence: defaults, then --preset, then --config, then flags (the last one
// given counts). A preset is a TOML file that came with the library: it says which nine policies it is for
// ([pipeline]), as any file may, and what of its original no knob expresses (not_expressed). Every mistake is a
// ConfigError of one line that names the source (flag, or file and line), the field, the value and what is allowed;
// an unknown name says what it may have meant.
//
// A flag is the knob's name, `--group 8` or `--group=8`, as long as only one section has a knob of that name;
// `--algorithm.group 8` always works. Dashes and underscores are the same. A bool may come without a value. A
// value may begin with one dash; one that begins with two needs the `=`. CLI11 reads the arguments and lays
// out --help; it knows every value as text only, which is checked here as a file's values are. The only
// header that includes CLI11 and toml++. No environment variables.
#pragma once

#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <utility>

#include "dvla/core/json.hpp"
#include "dvla/pipeline/describe.hpp"
#if __has_include("dvla/pipeline/presets.hpp")
#include "dvla/pipeline/presets.hpp"  // CMake makes it of examples/presets
#endif
#include "dvla/pipeline/validate.hpp"

namespace dvla {

namespace detail {

inline std::string did_you_mean(const std::string& suggestion) {
  return suggestion.empty() ? "" : "; did you mean " + suggestion + "?";
}

/// Command-line text as the kind of value that the knob wants, if it is one.
inline Given given(const KnobRef& knob, std::string_view text) {
  Given given{{}, "'" + std::string(text) + "'"};
  const auto read = [&](auto number) {
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    if (error == std::errc{} && stop == end) given.value = number;
  };
  if (knob.is<bool*>()) {
    if (text == "true" || text == "1" || text == "on") given.value = true;
    if (text == "false" || text == "0" || text == "off") given.value = false;
  } else if (knob.is_whole()) {
    read(std::int64_t{});
  } else if (knob.is_real()) {
    read(double{});
  } else {
    given.value = std::string(text);
  }
  return given;
}
inline Given given(const toml::node& node) {
  if (const auto boolean = node.value_exact<bool>()) return {*boolean, *boolean ? "true" : "false"};
  if (const auto whole = node.value_exact<std::int64_t>()) return {*whole, number_text(*whole)};
  if (const auto real = node.value_exact<double>()) return {*real, number_text(*real)};
  if (const auto text = node.value_exact<std::string>()) return {*text, "'" + *text + "'"};
  return {{}, node.is_table() ? "a table" : node.is_array() ? "an array" : "a date or time"};
}
inline Given given(const nlohmann::ordered_json& node) {
  Given given{{}, shown(node)};
  if (node.is_boolean()) given.value = node.get<bool>();
  if (node.is_string()) given.value = node.get<std::string>();
  if (node.is_number_float()) given.value = node.get<double>();
  if (node.is_number_unsigned() ? std::in_range<std::int64_t>(node.get<std::uint64_t>())
                                : node.is_number_integer())
    given.value = node.get<std::int64_t>();
  return given;
}

/// The sections that a file may have, also those of policies without knobs.
inline std::vector<std::string> section_names() {
  return []<class... Slots>(list<Slots...>) {
    return std::vector<std::string>{std::string(Slots::name)..., "run"};
  }(all_slots{});
}

/// Finds a knob in a section of a file, or says what is wrong with the name.
inline const KnobRef& file_knob(const std::vector<KnobRef>& knobs, std::string_view section,
                                std::string_view name, const std::string& source) {
  std::vector<std::string> here;
  for (const KnobRef& knob : knobs) {
    if (knob.section != section) continue;
    if (knob.name == name) return knob;
    here.emplace_back(knob.name);
  }
  std::string hint = nearest(name, here);
  for (const KnobRef& knob : knobs) {
    if (knob.name == name) hint = knob.path();
  }
  throw ConfigError(source, "[", section, "] has no knob '", one_line(name), "'", did_you_mean(hint));
}

/// Throws ConfigError unless `name` is a section, and a section stands there.
inline void check_section(const std::vector<KnobRef>& knobs, std::string_view name, bool is_section,
                          const std::string& source) {
  const std::vector<std::string> sections = section_names();
  const bool known = std::find(sections.begin(), sections.end(), name) != sections.end();
  if (known && is_section) return;
  if (!is_section)
    for (const KnobRef& knob : knobs)
      if (knob.name == name)
        throw ConfigError(source, "'", one_line(name), "' stands outside its section; put it under [",
                          knob.section, "]");
  if (known)
    throw ConfigError(source, "'", one_line(name), "' must be a section with knobs, [", one_line(name),
                      "], not a value");
  throw ConfigError(source, "there is no section '", one_line(name), "'",
                    did_you_mean(nearest(name, sections)));
}

/// The slots, and the policies that a pipeline has in them.
using PolicyNames = std::vector<std::pair<std::string_view, std::string_view>>;

template <class Pipeline, class... Slots>
PolicyNames policy_names(list<Slots...>) {
  return {{Slots::name, policy_name<typename Pipeline::template policy<Slots>>()}...};
}
template <class Pipeline>
PolicyNames policy_names() {
  return policy_names<Pipeline>(all_slots{});
}

/// Throws ConfigError where a file names another policy than the one that is `here`.
inline void check_policy(std::string_view slot, std::string_view here, const Given& there,
                         const std::string& source) {
  const auto* const name = std::get_if<std::string>(&there.value);
  if (name == nullptr || *name != here)
    throw ConfigError(source, "written by another pipeline: its ", slot, " is ",
                      name == nullptr ? there.shown : "\"" + one_line(*name) + "\"", ", here it is \"", here,
                      "\"");
}

/// `flag` opens the sentence of the ConfigError where it cannot be read.
inline std::string read_config_file(const std::string& path, const std::string& flag) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    throw ConfigError(flag, ": '", one_line(path), "' is a folder; name a TOML file");
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad())
    throw ConfigError(flag, ": cannot read '", one_line(path), "'; check that it exists and is readable");
  return text;
}

/// What a TOML file says besides values.
struct FileNotes {
  std::vector<std::string> not_expressed{};  ///< sentences: what of the original no knob has
  std::size_t policies = 0;                  ///< how many slots' it names
};

inline FileNotes read_toml(const std::vector<KnobRef>& knobs, const PolicyNames& policies,
                           std::string_view text, const std::string& name) {
  const auto at = [&name](const toml::source_region& source) {
    return one_line(name) + ":" + std::to_string(source.begin.line) + ": ";
  };
  toml::table root;
  try {
    root = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    throw ConfigError(at(error.source()) + one_line(error.description(), 240));
  }
  FileNotes notes;
  if (const toml::node* const pipeline = root.get("pipeline")) {  // first: another's knobs are others
    if (!pipeline->is_table())
      throw ConfigError(at(pipeline->source()), "'pipeline' must be a section of policy names, [pipeline]");
    const toml::table& named = *pipeline->as_table();
    for (const auto& [slot, here] : policies)
      if (const toml::node* const there = named.get(slot))
        check_policy(slot, here, given(*there), at(there->source())), ++notes.policies;
    std::vector<std::string> slots;
    for (const auto& each : policies) slots.emplace_back(each.first);
    for (const auto& [slot, policy] : named)
      if (std::ranges::find(slots, slot.str()) == slots.end())
        throw ConfigError(at(slot.source()), "[pipeline] has no slot '", one_line(slot.str()), "'",
                          did_you_mean(nearest(slot.str(), slots)));
  }
  for (const auto& [section, body] : root) {
    if (section == "pipeline") continue;
    if (section == "not_expressed") {
      const toml::array* const sentences = body.as_array();
      if (sentences == nullptr || !sentences->is_homogeneous<std::string>())
        throw ConfigError(at(body.source()), "not_expressed must be an array of sentences");
      for (const toml::node& sentence : *sentences)
        notes.not_expressed.push_back(one_line(*sentence.value<std::string>(), 240));
      continue;
    }
    check_section(knobs, section.str(), body.is_table(), at(section.source()));
    for (const auto& [key, node] : *body.as_table())
      assign_knob(file_knob(knobs, section.str(), key.str(), at(key.source())), given(node),
                  at(node.source()));
  }
  return notes;
}

inline void read_json(const std::vector<KnobRef>& knobs, const nlohmann::ordered_json& root,
                      const std::string& source) {
  if (!root.is_object()) throw ConfigError(source, "a configuration must be a JSON object of sections");
  for (const auto& [section, body] : root.items()) {
    if (section == "pipeline") continue;
    check_section(knobs, section, body.is_object(), source);
    for (const auto& [key, node] : body.items())
      assign_knob(file_knob(knobs, section, key, source), given(node), source);
  }
}

/// "--" and a knob's name or path, with dashes.
inline std::string as_flag(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

/// --help shows the first of an option's names.
struct HelpLayout : CLI::Formatter {
  HelpLayout() { column_width(36); }
  std::string make_option_name(const CLI::Option* option, bool) const override { return option->get_name(); }
};

/// Adds the program's own flags, then an option for each knob, which are returned in the order of `knobs`. An
/// option's type name is what a missing value should have been.
template <class Title>
std::vector<const CLI::Option*> add_options(CLI::App& app, const std::vector<KnobRef>& knobs, Title title) {
  app.allow_extras()->formatter(std::make_shared<HelpLayout>());
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_help_flag("-h,--help", "print this, and stop");
  app.add_flag("--print-config")->description("print the configuration as a TOML file, and stop");
  app.add_option("--config")
      ->description("a TOML file with [section]s of knobs, or a run's config.json; flags override it")
      ->type_name("(a TOML file, or a run's config.json)")
      ->option_text("FILE");
  app.add_option("--preset")
      ->description("published settings by their name, of examples/presets, or such a file")
      ->type_name("(the name of a preset)")
      ->option_text("NAME");
  std::vector<const CLI::Option*> options;
  for (const KnobRef& knob : knobs) {
    const bool is_bool = knob.is<bool*>();
    const char* const kind = is_bool             ? "BOOL"
                             : knob.is_whole()   ? "INT"
                             : knob.is_real()    ? "REAL"
                             : knob.is<Choice>() ? "NAME"
                                                 : "TEXT";
    const std::string flag = as_flag(std::string(knob.name)), path = as_flag(knob.path());
    const auto same = std::count_if(knobs.begin(), knobs.end(),
                                    [&](const KnobRef& other) { return other.name == knob.name; });
    const bool taken = same > 1 || app.get_option_no_throw(flag) != nullptr;
    CLI::Option* const option = app.add_option(taken ? path : flag + "," + path);
    option->description(std::string(knob.doc.text) +
                        (is_bool || allowed(knob).empty() ? "" : "; " + allowed(knob)) + " (default " +
                        knob_text(knob) + ")");
    option->type_name(allowed(knob))->option_text(kind);
    option->group(title(knob.section));
    if (is_bool) option->expected(0, 1)->default_str("true");
    options.push_back(option);
  }
  return options;
}

[[noreturn]] inline void refuse_argument(const CLI::App& app, const std::vector<KnobRef>& knobs,
                                         const std::string& argument) {
  if (argument.substr(0, 2) != "--" || argument.size() == 2)
    throw ConfigError("'", one_line(argument),
                      "' on the command line belongs to no flag; write --knob value (--help lists them)");
  const std::string flag = argument.substr(0, argument.find('='));
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) flags.push_back(option->get_name());
  std::string all;
  for (const KnobRef& knob : knobs) {
    if (as_flag(std::string(knob.name)) == flag) all += (all.empty() ? "" : " or ") + as_flag(knob.path());
  }
  throw ConfigError(all.empty() ? one_line(flag) + " is not a flag" + did_you_mean(nearest(flag, flags)) +
                                      " (--help lists them)"
                                : flag + " is in more than one section; write " + all);
}

/// Parses argv without argv[0] and refuses what belongs to no flag or lacks a value. True if --help is asked
/// for.
inline bool read_arguments(CLI::App& app, const std::vector<KnobRef>& knobs,
                           std::span<const char* const> arguments) {
  const auto needs_value = [](const CLI::Option& option) {
    const std::string expected = option.get_type_name();
    throw ConfigError(option.get_name(), " needs a value", expected.empty() ? "" : " " + expected);
  };
  std::vector<std::string> reversed;  // as CLI11 wants it, with dashes, and "--name=" as "--name", ""
  for (std::string argument : arguments) {
    if (argument.substr(0, 2) == "--") {
      const std::size_t equals = std::min(argument.find('='), argument.size());
      std::replace(argument.begin(), argument.begin() + static_cast<std::ptrdiff_t>(equals), '_', '-');
      if (equals + 1 == argument.size()) reversed.push_back(std::exchange(argument, "").substr(0, equals));
    }
    reversed.push_back(argument);
  }
  std::reverse(reversed.begin(), reversed.end());
  bool help = false;
  try {
    app.parse(std::vector<std::string>(reversed));
  } catch (const CLI::CallForHelp&) {
    help = true;
  } catch (const CLI::ArgumentMismatch&) {  // arguments ran out after the last flag
    needs_value(*app.get_option(reversed.front()));
  }
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& text : option->results()) {
      if (option->get_items_expected_max() == 0 && text != "true")
        throw ConfigError(option->get_name(), " takes no value");
      if (text.substr(0, 2) == "--" && std::find(reversed.begin(), reversed.end(), text) != reversed.end())
        needs_value(*option);  // CLI11 took the next flag for it
    }
  }
  if (const auto extras = app.remaining(); !extras.empty()) refuse_argument(app, knobs, extras.front());
  return help;
}

/// A section's heading: "algorithm: GRPO<...>", or "run".
template <class Pipeline>
std::string section_title(std::string_view section) {
  std::string title(section);
  [&]<class... Policies>(list<Policies...>) {
    ((section == Policies::slot::name ? void(title += ": " + std::string(policy_name<Policies>())) : void()),
     ...);
  }(typename Pipeline::policies{});
  return title;
}

}  // namespace detail

/// What a run keeps of its settings, to be given to --config or read again: without what acts once.
template <class Pipeline>
Config<Pipeline> kept(Config<Pipeline> config) {
  config.run = config.run.kept();
  return config;
}

/// All that --config accepts, with the values of `config`; comments name the policies.
template <class Pipeline>
std::string to_toml(const Config<Pipeline>& config) {
  Config<Pipeline> copy = config;
  std::string text;
  std::string_view section;
  for (const KnobRef& knob : list_knobs(copy)) {
    if (knob.section != section) {
      section = knob.section;
      text += (text.empty() ? "" : "\n") + ("[" + std::string(section) + "]  # ") +
              detail::section_title<Pipeline>(section) + "\n";
    }
    text += std::string(knob.name) + " = " + detail::knob_text(knob) + "\n";
  }
  return text;
}

/// {"pipeline": {slot: policy name}, section: {knob: value}}. Read back with from_json: the same values, bit
/// for bit.
template <class Pipeline>
nlohmann::ordered_json to_json(const Config<Pipeline>& config) {
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  for (const auto& [slot, policy] : detail::policy_names<Pipeline>())
    root["pipeline"][std::string(slot)] = std::string(policy);
  for_each_section(config, [&](std::string_view section, const auto& knobs) {
    if (auto values = json_of<nlohmann::ordered_json>(knobs); !values.empty())
      root[std::string(section)] = std::move(values);
  });
  return root;
}

namespace detail {

/// JSON text; `source` opens the sentence of the ConfigError for any other.
inline nlohmann::ordered_json parse_config(std::string_view text, const std::string& source) {
  try {
    return nlohmann::ordered_json::parse(text);
  } catch (const nlohmann::ordered_json::exception& error) {
    throw ConfigError(source, "not valid JSON: ", one_line(error.what(), 240));
  }
}

/// The same for the JSON of a configuration, which may leave `Slots` unsaid.
template <class Pipeline, class... Slots>
void check_policies(const nlohmann::ordered_json& root, const std::string& source, list<Slots...> slots) {
  if (!root.is_object() || !root.contains("pipeline")) return;
  const auto& pipeline = root["pipeline"];
  if (!pipeline.is_object()) throw ConfigError(source, "'pipeline' must be an object of policy names");
  for (const auto& [slot, here] : policy_names<Pipeline>(slots))
    if (const auto there = pipeline.find(std::string(slot)); there != pipeline.end())
      check_policy(slot, here, given(*there), source);
}

/// Values over those in `config`. Another pipeline's file is refused.
template <class Pipeline>
void read_json_text(Config<Pipeline>& config, std::string_view text, const std::string& name) {
  const std::string source = one_line(name) + ": ";
  const nlohmann::ordered_json root = parse_config(text, source);
  check_policies<Pipeline>(root, source, all_slots{});
  read_json(list_knobs(config), root, source);
}

template <class Pipeline>
FileNotes read_file(Config<Pipeline>& config, const std::string& path, const std::string& flag) {
  const std::string text = read_config_file(path, flag);
  if (!path.ends_with(".json")) return read_toml(list_knobs(config), policy_names<Pipeline>(), text, path);
  read_json_text(config, text, path);
  return {};
}

/// The presets that came with the library: name and text.
inline std::span<const std::pair<std::string_view, std::string_view>> presets() {
#if __has_include("dvla/pipeline/presets.hpp")
  return preset_texts;
#else
  return {};
#endif
}

/// Of one of those, or of a file whose path has a slash or ends in .toml: values over those in `config`. Throws
/// ConfigError where there is none, and where it leaves a policy unsaid.
template <class Pipeline>
FileNotes read_preset(Config<Pipeline>& config, const std::string& name) {
  const PolicyNames policies = policy_names<Pipeline>();
  FileNotes notes;
  if (name.find('/') != name.npos || name.ends_with(".toml")) {
    notes = read_file(config, name, "--preset");
  } else {
    std::string all;
    for (const auto& each : presets()) all += (all.empty() ? "" : ", ") + std::string(each.first);
    const auto found =
        std::ranges::find(presets(), name, [](const auto& each) { return std::string(each.first); });
    if (found == presets().end())
      throw ConfigError("--preset: there is no '", one_line(name), "'; ",
                        all.empty() ? "this program was built without presets" : "there are " + all,
                        "; a TOML file's path may be given too");
    notes = read_toml(list_knobs(config), policies, found->second, name + ".toml");
  }
  if (notes.policies != policies.size())
    throw ConfigError(one_line(name), ": a preset names its ", policies.size(),
                      " policies under [pipeline], and this one ", notes.policies);
  return notes;
}

}  // namespace detail

/// The configuration in TOML text over `defaults`, validated. `name` opens error sentences.
template <class Pipeline>
Config<Pipeline> from_toml(std::string_view text, Config<Pipeline> defaults = {},
                           const std::string& name = "config.toml") {
  detail::read_toml(list_knobs(defaults), detail::policy_names<Pipeline>(), text, name);
  validate(defaults);
  return defaults;
}

/// The configuration in JSON text (to_json(config).dump()) over `defaults`, validated.
template <class Pipeline>
Config<Pipeline> from_json(std::string_view text, Config<Pipeline> defaults = {},
                           const std::string& name = "config.json") {
  detail::read_json_text(defaults, text, name);
  validate(defaults);
  return defaults;
}

/// Defaults, --preset, --config, flags, in this order; validated. Empty if --help or --print-config was answered
/// on `out`: the program then ends with 0. What a file says that it does not express is said on `out`. Throws
/// ConfigError.
template <class Pipeline>
std::optional<Config<Pipeline>> parse_command_line(int argc, const char* const* argv,
                                                   Config<Pipeline> defaults = {},
                                                   std::ostream& out = std::cout) {
  const std::span<const char* const> all(argv, argc > 0 ? static_cast<std::size_t>(argc) : 0);
  CLI::App app("", all.empty() ? "program" : std::filesystem::path(all.front()).filename().string());
  Config<Pipeline> config = defaults;
  const std::vector<KnobRef> knobs = list_knobs(config);
  const auto options = detail::add_options(app, knobs, detail::section_title<Pipeline>);
  if (detail::read_arguments(app, knobs, all.empty() ? all : all.subspan(1))) {
    out << app.help();
    return std::nullopt;
  }
  std::vector<std::string> not_expressed;
  const auto note = [&](const detail::FileNotes& notes, const std::string& name) {
    for (const std::string& each : notes.not_expressed)
      not_expressed.push_back("not expressed by " + detail::one_line(name) + ": " + each + "\n");
  };
  for (const std::string& name : app.get_option("--preset")->results())
    note(detail::read_preset(config, name), name);
  for (const std::string& file : app.get_option("--config")->results())
    note(detail::read_file(config, file, "--config"), file);
  for (std::size_t i = 0; i < knobs.size(); ++i) {
    if (options[i]->count() > 0)
      detail::assign_knob(knobs[i], detail::given(knobs[i], options[i]->results().back()),
                          options[i]->get_name() + ": ");
  }
  validate(config);
  const bool prints = app.count("--print-config") > 0;
  if (prints || !config.run.quiet)
    for (const std::string& each : not_expressed) out << (prints ? "# " : "") << each;
  if (prints) {
    out << to_toml(kept(config));
    return std::nullopt;
  }
  return config;
}

}  // namespace dvla
