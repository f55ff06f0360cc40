// The ways into and out of a configuration: command line, TOML file, JSON. All of them iterate over the same
// list of reflected knobs. Order of precedence: defaults, then --config, then flags (the last one given
// counts). Every mistake is a ConfigError of one line that names the source (flag, or file and line), the
// field, the value and what is allowed; an unknown name says what it may have meant.
//
// A flag is the knob's name, `--group 8` or `--group=8`, as long as only one section has a knob of that name;
// `--algorithm.group 8` always works. Dashes and underscores are the same. A bool may come without a value.
// The only header that includes toml++ and nlohmann/json. No flags of one letter, no environment variables.
#pragma once

#include <toml++/toml.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>

#include "dvla/pipeline/describe.hpp"
#include "dvla/pipeline/validate.hpp"

namespace dvla {

namespace detail {

inline constexpr std::string_view own_flags[] = {"help", "config", "print_config"};

/// How a knob is called on the command line, with underscores: its name, or "section.name" where another
/// section has a knob of that name too.
inline std::string flag_name(const KnobRef& knob, const std::vector<KnobRef>& knobs) {
  const auto same = std::count_if(knobs.begin(), knobs.end(),
                                  [&](const KnobRef& other) { return other.name == knob.name; });
  const bool taken = std::find(std::begin(own_flags), std::end(own_flags), knob.name) != std::end(own_flags);
  return same > 1 || taken ? knob.path() : std::string(knob.name);
}

inline std::string as_flag(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

inline std::string did_you_mean(const std::string& suggestion) {
  return suggestion.empty() ? "" : "; did you mean " + suggestion + "?";
}

/// Command-line text as the kind of value that the knob wants; `other` if it is none.
inline Given given_text(const KnobRef& knob, std::string_view text) {
  Given given;
  given.shown = "'" + std::string(text) + "'";
  given.text = text;
  const char* const end = text.data() + text.size();
  if (knob.kind == KnobKind::boolean) {
    given.boolean = text == "true" || text == "1" || text == "on";
    if (given.boolean || text == "false" || text == "0" || text == "off") given.kind = Given::Kind::boolean;
  } else if (knob.is_whole()) {
    const auto [stop, error] = std::from_chars(text.data(), end, given.whole);
    if (error == std::errc{} && stop == end) given.kind = Given::Kind::whole;
  } else if (knob.is_real()) {
    const auto [stop, error] = std::from_chars(text.data(), end, given.real);
    if (error == std::errc{} && stop == end) given.kind = Given::Kind::real;
  } else {
    given.kind = Given::Kind::text;
  }
  return given;
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
  throw ConfigError(source + "[" + std::string(section) + "] has no knob '" + one_line(name) + "'" +
                    did_you_mean(hint));
}

[[noreturn]] inline void refuse_section(const std::vector<KnobRef>& knobs,
                                        const std::vector<std::string>& sections, std::string_view name,
                                        bool is_section, const std::string& source) {
  if (!is_section) {
    for (const KnobRef& knob : knobs) {
      if (knob.name == name)
        throw ConfigError(source + "'" + one_line(name) + "' stands outside its section; put it under [" +
                          std::string(knob.section) + "]");
    }
    if (std::find(sections.begin(), sections.end(), name) != sections.end())
      throw ConfigError(source + "'" + one_line(name) + "' must be a section with knobs, [" + one_line(name) +
                        "], not a value");
  }
  throw ConfigError(source + "there is no section '" + one_line(name) + "'" +
                    did_you_mean(nearest(name, sections)));
}

inline std::string read_config_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    throw ConfigError("--config: '" + one_line(path) + "' is a folder; name a TOML file");
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad())
    throw ConfigError("--config: cannot read '" + one_line(path) + "'; check that it exists and is readable");
  return text;
}

inline void read_toml(const std::vector<KnobRef>& knobs, const std::vector<std::string>& sections,
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
  for (const auto& [section, body] : root) {
    const std::string source = at(section.source());
    const bool known = std::find(sections.begin(), sections.end(), section.str()) != sections.end();
    if (!known || !body.is_table()) refuse_section(knobs, sections, section.str(), body.is_table(), source);
    for (const auto& [key, node] : *body.as_table()) {
      const KnobRef& knob = file_knob(knobs, section.str(), key.str(), at(key.source()));
      Given given;
      if (const auto* boolean = node.as_boolean()) {
        given = {Given::Kind::boolean, boolean->get(), 0, 0, {}, boolean->get() ? "true" : "false"};
      } else if (const auto* whole = node.as_integer()) {
        given = {Given::Kind::whole, false, whole->get(), 0, {}, number_text(whole->get())};
      } else if (const auto* real = node.as_floating_point()) {
        given = {Given::Kind::real, false, 0, real->get(), {}, number_text(real->get())};
      } else if (const auto* string = node.as_string()) {
        given = {Given::Kind::text, false, 0, 0, string->get(), "'" + string->get() + "'"};
      } else {
        given.shown = node.is_table() ? "a table" : node.is_array() ? "an array" : "a date or time";
      }
      assign_knob(knob, given, at(node.source()));
    }
  }
}

inline void read_json(const std::vector<KnobRef>& knobs, const std::vector<std::string>& sections,
                      const nlohmann::ordered_json& root, const std::string& source) {
  if (!root.is_object()) throw ConfigError(source + "a configuration must be a JSON object of sections");
  for (const auto& [section, body] : root.items()) {
    if (section == "pipeline") continue;
    const bool known = std::find(sections.begin(), sections.end(), section) != sections.end();
    if (!known || !body.is_object()) refuse_section(knobs, sections, section, body.is_object(), source);
    for (const auto& [key, node] : body.items()) {
      const KnobRef& knob = file_knob(knobs, section, key, source);
      Given given;
      given.shown = one_line(node.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
      if (node.is_boolean()) {
        given.kind = Given::Kind::boolean;
        given.boolean = node.get<bool>();
      } else if (node.is_number_float()) {
        given.kind = Given::Kind::real;
        given.real = node.get<double>();
      } else if (node.is_number_unsigned() &&
                 node.get<std::uint64_t>() >
                     static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        given.kind = Given::Kind::other;
      } else if (node.is_number_integer()) {
        given.kind = Given::Kind::whole;
        given.whole = node.get<std::int64_t>();
      } else if (node.is_string()) {
        given.kind = Given::Kind::text;
        given.text = node.get<std::string>();
      }
      assign_knob(knob, given, source);
    }
  }
}

/// argv without argv[0]. Returns which of --help, --print-config was asked for; empty if none.
template <class ReadFile>
std::string read_arguments(const std::vector<KnobRef>& knobs, std::span<const char* const> arguments,
                           ReadFile read_file) {
  std::vector<std::string> flags;
  for (const KnobRef& knob : knobs) flags.push_back(as_flag(flag_name(knob, knobs)));
  for (std::string_view own : own_flags) flags.push_back(as_flag(std::string(own)));

  struct Assignment {
    const KnobRef* knob;
    Given given;
    std::string source;
  };
  std::vector<Assignment> assignments;
  std::vector<std::string> files;
  std::string asked;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "-h") {
      asked = "help";
      continue;
    }
    if (argument.substr(0, 2) != "--" || argument.size() == 2)
      throw ConfigError("'" + one_line(argument) +
                        "' on the command line belongs to no flag; write --knob value (--help lists them)");
    const std::size_t equals = argument.find('=');
    std::string name(argument.substr(2, equals == argument.npos ? argument.npos : equals - 2));
    std::replace(name.begin(), name.end(), '-', '_');
    std::optional<std::string_view> value;
    if (equals != argument.npos) value = argument.substr(equals + 1);
    const auto next = [&](const std::string& flag, const std::string& expected) {
      if (value) return *value;
      if (i + 1 == arguments.size() || std::string_view(arguments[i + 1]).substr(0, 2) == "--")
        throw ConfigError(flag + " needs a value" + (expected.empty() ? "" : " " + expected));
      return std::string_view(arguments[++i]);
    };
    if (name == "help" || name == "print_config") {
      if (value) throw ConfigError(as_flag(name) + " takes no value");
      if (asked != "help") asked = name;
      continue;
    }
    if (name == "config") {
      files.emplace_back(next("--config", "(a TOML file, or a run's config.json)"));
      continue;
    }
    std::vector<const KnobRef*> meant;
    for (const KnobRef& knob : knobs) {
      if (knob.path() == name || knob.name == name) meant.push_back(&knob);
    }
    if (meant.empty())
      throw ConfigError(one_line(as_flag(name)) + " is not a flag" +
                        did_you_mean(nearest(as_flag(name), flags)) + " (--help lists them)");
    if (meant.size() > 1) {
      std::string all;
      for (const KnobRef* knob : meant) all += (all.empty() ? "" : " or ") + as_flag(knob->path());
      throw ConfigError(as_flag(name) + " is in more than one section; write " + all);
    }
    const KnobRef& knob = *meant.front();
    std::string_view text;
    if (knob.kind == KnobKind::boolean && !value) {
      const std::string_view after = i + 1 < arguments.size() ? arguments[i + 1] : "--";
      text = after.substr(0, 2) == "--" || after == "-h" ? "true" : std::string_view(arguments[++i]);
    } else {
      text = next(as_flag(name), allowed(knob));
    }
    assignments.push_back({&knob, given_text(knob, text), as_flag(name) + ": "});
  }
  if (asked == "help") return asked;
  for (const std::string& file : files) read_file(file);
  for (const Assignment& one : assignments) assign_knob(*one.knob, one.given, one.source);
  return asked;
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
  [&]<class... Policies>(detail::list<Policies...>) {
    ((root["pipeline"][std::string(Policies::slot::name)] = std::string(detail::policy_name<Policies>())),
     ...);
  }(typename Pipeline::policies{});
  Config<Pipeline> copy = config;
  for (const KnobRef& knob : list_knobs(copy)) {
    auto& value = root[std::string(knob.section)][std::string(knob.name)];
    switch (knob.kind) {
      case KnobKind::boolean:
        value = *static_cast<const bool*>(knob.value);
        break;
      case KnobKind::whole32:
        value = *static_cast<const int*>(knob.value);
        break;
      case KnobKind::whole64:
        value = *static_cast<const std::int64_t*>(knob.value);
        break;
      case KnobKind::real32:
      case KnobKind::real64:
        value = detail::knob_number(knob);
        break;
      case KnobKind::text:
        value = *static_cast<const std::string*>(knob.value);
        break;
      case KnobKind::choice:
        value = std::string(knob.names[static_cast<std::size_t>(knob.get_choice(knob.value))]);
        break;
    }
  }
  return root;
}

namespace detail {

template <class Pipeline>
std::vector<std::string> section_names(const Config<Pipeline>& config) {
  std::vector<std::string> names;
  for_each_section(config, [&](std::string_view section, const auto&) { names.emplace_back(section); });
  return names;
}

/// Values over those in `config`. Another pipeline's file is refused.
template <class Pipeline>
void read_json_text(Config<Pipeline>& config, std::string_view text, const std::string& name) {
  const std::string source = one_line(name) + ": ";
  nlohmann::ordered_json root;
  try {
    root = nlohmann::ordered_json::parse(text);
  } catch (const nlohmann::ordered_json::exception& error) {
    throw ConfigError(source + "not valid JSON: " + one_line(error.what(), 240));
  }
  if (root.is_object() && root.contains("pipeline")) {
    [&]<class... Policies>(list<Policies...>) {
      const auto compare = [&](std::string_view slot, std::string_view here) {
        const auto& pipeline = root["pipeline"];
        if (!pipeline.is_object()) throw ConfigError(source + "'pipeline' must be an object of policy names");
        const auto there = pipeline.find(std::string(slot));
        if (there != pipeline.end() && *there != std::string(here))
          throw ConfigError(
              source + "written by another pipeline: its " + std::string(slot) + " is " +
              one_line(there->dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace)) +
              ", here it is \"" + std::string(here) + "\"");
      };
      (compare(Policies::slot::name, policy_name<Policies>()), ...);
    }(typename Pipeline::policies{});
  }
  read_json(list_knobs(config), section_names(config), root, source);
}

template <class Pipeline>
void read_file(Config<Pipeline>& config, const std::string& path) {
  const std::string text = read_config_file(path);
  if (path.size() > 5 && path.substr(path.size() - 5) == ".json") {
    read_json_text(config, text, path);
  } else {
    read_toml(list_knobs(config), section_names(config), text, path);
  }
}

template <class Pipeline>
void print_help(const Config<Pipeline>& config, std::string_view program, std::ostream& out) {
  Config<Pipeline> copy = config;
  const std::vector<KnobRef> knobs = list_knobs(copy);
  const auto line = [&out](std::string flag, const std::string& text) {
    flag.resize(std::max<std::size_t>(flag.size() + 2, 34), ' ');
    out << "  " << flag << text << "\n";
  };
  out << "usage: " << program << " [--config FILE] [--knob VALUE]...\n\n";
  line("--config FILE", "a TOML file with [section]s of knobs, or a run's config.json; flags override it");
  line("--print-config", "print the configuration as such a file, and stop");
  line("--help", "print this, and stop");
  std::string_view section;
  for (const KnobRef& knob : knobs) {
    if (knob.section != section) out << "\n" << section_title<Pipeline>(section = knob.section) << "\n";
    const char* const kinds[] = {"BOOL", "INT", "INT", "REAL", "REAL", "TEXT", "NAME"};
    std::string text(knob.doc->text);
    if (knob.kind != KnobKind::boolean && !allowed(knob).empty()) text += "; " + allowed(knob);
    line(as_flag(flag_name(knob, knobs)) + " " + kinds[static_cast<std::size_t>(knob.kind)],
         text + " (default " + knob_text(knob) + ")");
  }
}

}  // namespace detail

/// The configuration in TOML text over `defaults`, validated. `name` opens error sentences.
template <class Pipeline>
Config<Pipeline> from_toml(std::string_view text, Config<Pipeline> defaults = {},
                           const std::string& name = "config.toml") {
  detail::read_toml(list_knobs(defaults), detail::section_names(defaults), text, name);
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

/// Defaults, --config, flags, in this order; validated. Empty if --help or --print-config was answered on
/// `out`: the program then ends with 0. Throws ConfigError.
template <class Pipeline>
std::optional<Config<Pipeline>> parse_command_line(int argc, const char* const* argv,
                                                   Config<Pipeline> defaults = {},
                                                   std::ostream& out = std::cout) {
  const std::span<const char* const> all(argv, argc > 0 ? static_cast<std::size_t>(argc) : 0);
  Config<Pipeline> config = defaults;
  const std::string asked =
      detail::read_arguments(list_knobs(config), all.empty() ? all : all.subspan(1),
                             [&config](const std::string& path) { detail::read_file(config, path); });
  if (asked == "help") {
    const std::string program =
        all.empty() ? "program" : std::filesystem::path(all.front()).filename().string();
    detail::print_help(defaults, program, out);
    return std::nullopt;
  }
  validate(config);
  if (asked == "print_config") {
    out << to_toml(config);
    return std::nullopt;
  }
  return config;
}

}  // namespace dvla
