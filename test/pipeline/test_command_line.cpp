// dvla-test: asan
// Command line, TOML and JSON: one list of knobs, one line for every mistake.
#include <doctest/doctest.h>

#include <dvla/dvla.hpp>
#include <sstream>

#include "dvla/pipeline/command_line.hpp"

using namespace dvla;

namespace {

struct TwinKnobs {
  int group = 3;    // also the algorithm's
  int width_2 = 5;  // nobody else's
  bool config = false;
};
void check(const TwinKnobs& knobs) {
  if (knobs.width_2 == 6) throw ConfigError("environment.width_2 is 6; it must not be");
}
struct Twin {
  using slot = environment_slot;
  using knobs = TwinKnobs;
  static constexpr std::string_view name = "Twin";
};

using P = Pipeline<Sampler<MuJoCo<Push>>, Trainer<GRPO>>;
using Twins = Pipeline<Sampler<Twin>, Trainer<GRPO>>;

/// A file in the folder for temporary files, gone at the end of its scope.
struct TemporaryFile {
  TemporaryFile(const std::string& name, std::string_view text)
      : path((std::filesystem::temp_directory_path() / name).string()) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  std::string path;
};

template <class Pipeline = P>
std::optional<Config<Pipeline>> parse(std::vector<std::string> arguments, std::ostream& out = std::cout,
                                      Config<Pipeline> defaults = {}) {
  std::vector<const char*> argv{"/bin/program"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return parse_command_line<Pipeline>(static_cast<int>(argv.size()), argv.data(), defaults, out);
}

template <class Call>
std::string complaint_of(Call call) {
  try {
    call();
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    CHECK(text.find('\n') == text.npos);
    return text;
  }
  return "none";
}
template <class Pipeline = P>
std::string complaint(std::vector<std::string> arguments) {
  return complaint_of([&] { parse<Pipeline>(std::move(arguments)); });
}
std::string toml_complaint(std::string_view text) {
  return complaint_of([&] { from_toml<P>(text, {}, "run.toml"); });
}
std::string json_complaint(std::string_view text) {
  return complaint_of([&] { from_json<P>(text); });
}

}  // namespace

BOOST_HANA_ADAPT_STRUCT(TwinKnobs, group, width_2, config);
template <>
inline constexpr auto dvla::knob_docs<TwinKnobs> = std::to_array<dvla::KnobDoc>(
    {{"group", "another group", 1, 9}, {"width_2", "a width", 1, 9}, {"config", "a reserved name"}});

TEST_CASE("flags set knobs of any slot, by name, dashed or not, with or without =") {
  const auto config =
      parse({"--group", "4", "--learning-rate=1e-4", "--checkpoint_every", "5", "--quiet", "--name", "a",
             "--log-prob-level", "chunk", "--trace", "false", "--seed", "77", "--algorithm.epochs", "3"});
  REQUIRE(config);
  CHECK(config->algorithm.group == 4);
  CHECK(config->algorithm.learning_rate == 1e-4);
  CHECK(config->algorithm.epochs == 3);
  CHECK(config->algorithm.log_prob_level == LogProbLevel::chunk);
  CHECK(config->run.checkpoint_every == 5);
  CHECK(config->run.quiet);
  CHECK_FALSE(config->run.trace);
  CHECK(config->run.name == "a");
  CHECK(config->run.seed == 77);
}

TEST_CASE("the last of several flags counts, and flags override the file wherever they stand") {
  const TemporaryFile file("dvla_command_line.toml", "[algorithm]\ngroup = 16\nepochs = 9\n");
  const auto config = parse({"--group", "2", "--config", file.path, "--group", "4"});
  CHECK(config->algorithm.group == 4);
  CHECK(config->algorithm.epochs == 9);
  const TemporaryFile second("dvla_command_line_2.toml", "[algorithm]\nepochs = 8\n");
  const auto both = parse({"--config", file.path, "--config", second.path});
  CHECK(both->algorithm.group == 16);
  CHECK(both->algorithm.epochs == 8);
  Config<P> defaults;
  defaults.algorithm.epochs = 5;
  defaults.run.name = "push";
  const auto over = parse({"--group", "4"}, std::cout, defaults);
  CHECK(over->algorithm.epochs == 5);
  CHECK(over->run.name == "push");
}

TEST_CASE("mistakes on the command line are one line with field, value and range") {
  CHECK(
      complaint({"--group", "1"}) ==
      "--group: algorithm.group is '1'; it must be a whole number in [2, 4096] (episodes that share a reset "
      "state)");
  CHECK(complaint({"--group", "9999999999999"}) ==
        "--group: algorithm.group is '9999999999999'; it must be a whole number in [2, 4096] (episodes that "
        "share a reset state)");
  CHECK(complaint({"--grup", "8"}) == "--grup is not a flag; did you mean --group? (--help lists them)");
  CHECK(complaint({"--group"}) == "--group needs a value in [2, 4096]");
  CHECK(complaint({"--group", "--seed", "1"}) == "--group needs a value in [2, 4096]");
  CHECK(complaint({"push"}) ==
        "'push' on the command line belongs to no flag; write --knob value (--help lists them)");
  CHECK(complaint({"--log-prob-level", "tokens"}) ==
        "--log-prob-level: algorithm.log_prob_level is 'tokens'; it must be one of token, action, chunk, "
        "sequence (what "
        "one ratio covers)");
  CHECK(complaint({"--trace", "maybe"}) ==
        "--trace: run.trace is 'maybe'; it must be true or false (write trace.json)");
  for (const char* wrong : {"nan", "inf", "-inf", "1e400", "", "0.1x", " 0.1", "-0.1", "2"})
    CHECK(complaint({"--learning-rate", wrong}).find("--learning-rate: algorithm.learning_rate is '") == 0);
  for (const char* wrong : {"8.0", "0x8", "+8", "8 ", "", "99999999999999999999"})
    CHECK(complaint({"--group", wrong}).find("--group: algorithm.group is '") == 0);
  CHECK(complaint({"--name", "a\nb"}).find("--name: run.name is 'a?b'") == 0);
  CHECK(complaint({"--name", "a b"}).find("run.name is 'a b'; it must be 1 to 100 letters") == 0);
  CHECK(complaint({"--" + std::string(1000, 'x'), "1"}).size() < 200);
  CHECK(complaint({"--\xff", "1"}).find("--? is not a flag") == 0);
  CHECK(complaint({"--"}).find("'--' on the command line") == 0);
  CHECK(complaint({"--help=1"}) == "--help takes no value");
  CHECK(complaint({"--config"}) == "--config needs a value (a TOML file, or a run's config.json)");
  CHECK(complaint({"--config", "/nowhere.toml"}) ==
        "--config: cannot read '/nowhere.toml'; check that it exists and is readable");
  CHECK(complaint({"--config", "/"}) == "--config: '/' is a folder; name a TOML file");
}

TEST_CASE("every number is read whole or refused in one sentence that shows it as it must be written") {
  for (const char* wrong : {"1e3", "3.5", "-1", "1000000001", "1,000", "0x10", "+5", " 5", "5 ", "five",
                            "nan", "inf", "", "٣", "\xff"}) {
    CAPTURE(wrong);
    const std::string shown = std::string(wrong) == "\xff" ? "?" : wrong;
    CHECK(complaint({"--iterations", wrong}) ==
          "--iterations: run.iterations is '" + shown +
              "'; it must be a whole number in [0, 1000000000] (batches to train on)");
    CHECK(complaint({"--iterations=" + std::string(wrong)}) == complaint({"--iterations", wrong}));
  }
  for (const char* wrong : {"-1", "1e3", "9300000000000000000", "18446744073709551616", ""})
    CHECK(complaint({"--seed", wrong}) ==
          "--seed: run.seed is '" + std::string(wrong) +
              "'; it must be a whole number in [0, 9200000000000000000] (everything random follows from it)");
  CHECK(parse({"--seed", "9200000000000000000"})->run.seed == 9200000000000000000);
  for (const char* wrong : {"nan", "-nan", "inf", "-inf", "infinity", "0", "-5", "1e7", "1e999", "1e-999",
                            "0x1p3", "+1", "1,5", ""}) {
    CAPTURE(wrong);
    CHECK(complaint({"--deadline-s", wrong}) ==
          "--deadline-s: schedule.deadline_s is '" + std::string(wrong) +
              "'; it must be a number in [0.001, 1e+06] seconds (longest wait of one lane for another)");
  }
  for (const char* wrong : {"inf", "nan", "-0.1", "1.5", "", "1e-3x"})
    CHECK(complaint({"--learning-rate", wrong}) ==
          "--learning-rate: algorithm.learning_rate is '" + std::string(wrong) +
              "'; it must be a number in [0, 1] (of AdamW; 0 changes nothing)");
  CHECK(parse({"--learning-rate", "1e-3", "--deadline-s", "5"})->schedule.deadline_s == 5);
  CHECK(complaint({"--iterations"}) == "--iterations needs a value in [0, 1000000000]");
}

TEST_CASE("the largest staleness is what this pipeline allows, in --help, on the command line and in files") {
  std::ostringstream help;
  CHECK_FALSE(parse({"--help"}, help));
  CHECK(help.str().find("in [0, 1] (default 1)") != std::string::npos);
  const std::size_t at = help.str().find("--staleness");
  REQUIRE(at != std::string::npos);
  CHECK(help.str().substr(at, 300).find("[0, 1024] (default 1)") == std::string::npos);
  CHECK(complaint({"--staleness", "2"})
            .find("--staleness: schedule.staleness is '2'; it must be a whole number in [0, 1] (K") == 0);
  CHECK(toml_complaint("[schedule]\nstaleness = 2").find("run.toml:2: schedule.staleness is 2; it must") ==
        0);
  using Four = P::replace<Swimlane<4>>;
  CHECK(parse<Four>({"--staleness", "4"})->schedule.staleness == 4);
  CHECK(complaint<Four>({"--staleness", "5"}).find("whole number in [0, 4] (K") != std::string::npos);
}

TEST_CASE("text that is no UTF-8 is refused wherever it comes from, in one sentence that names the field") {
  CHECK(complaint({"--folder", "a\xff"}) ==
        "--folder: run.folder is 'a?'; it must be text in UTF-8 without control characters (where runs are "
        "written)");
  CHECK(complaint({"--resume=\xc3"}).find("--resume: run.resume is '?'; it must be text in UTF-8") == 0);
  CHECK(complaint({"--name", "\xc3\xa4"}).find("run.name is '\xc3\xa4'; it must be 1 to 100 letters") == 0);
  CHECK(complaint({"--trace", "\xff"}).find("--trace: run.trace is '?'; it must be true or false") == 0);
  CHECK(complaint({"--config", "/no\xff.toml"}).find("--config: cannot read '/no?.toml'") == 0);
  CHECK(toml_complaint("[run]\nfolder = '\xff'").find("run.toml:") == 0);
  CHECK(json_complaint("{\"run\":{\"folder\":\"\xff\"}}").find("config.json: not valid JSON") == 0);
  Config<P> config;
  config.run.resume = "\xff";
  CHECK(complaint_of([&] { validate(config); }).find("run.resume is \"?\"; it must be text in UTF-8") == 0);
}

TEST_CASE("values may be empty or begin with a dash; a flag is never taken for a value") {
  const auto config =
      parse({"--folder", "-x", "--quiet=false", "--quiet", "--algorithm.log-prob_level", "chunk"});
  CHECK(config->run.folder == "-x");
  CHECK(config->run.quiet);
  CHECK(config->algorithm.log_prob_level == LogProbLevel::chunk);
  CHECK(parse({"--folder=--x=_"})->run.folder == "--x=_");
  CHECK(parse({"--folder=[a,b]"})->run.folder == "[a,b]");
  CHECK(parse({"--resume", "x", "--resume=", "--quiet"})->run.resume.empty());
  CHECK(complaint({"--quiet="}).find("--quiet: run.quiet is ''") == 0);
  CHECK(complaint({"--name", "--quiet"}) == "--name needs a value");
  CHECK(complaint({"--config", "--group", "4"}).find("--config needs a value (a TOML") == 0);
  CHECK(complaint({"--algorithm.group"}) == "--group needs a value in [2, 4096]");
  CHECK(complaint({"--print_config=1"}) == "--print-config takes no value");
  CHECK(complaint({"-x"}).find("'-x' on the command line belongs to no flag") == 0);
  std::ostringstream help;
  CHECK_FALSE(parse({"--group", "1", "-h"}, help));
  CHECK(help.str().find("Usage: program ") == 0);
}

TEST_CASE("a knob name that two sections share, or that is reserved, takes its section in front") {
  CHECK(complaint<Twins>({"--group", "4"}) ==
        "--group is in more than one section; write --environment.group or --algorithm.group");
  const auto config =
      parse<Twins>({"--environment.group", "4", "--width-2", "7", "--environment.config", "--chunk", "2"});
  CHECK(config->environment.group == 4);
  CHECK(config->environment.width_2 == 7);
  CHECK(config->environment.config);
  CHECK(config->algorithm.group == 8);
  std::ostringstream help;
  CHECK_FALSE(parse<Twins>({"--help"}, help));
  CHECK(help.str().find("--environment.group INT") != std::string::npos);
  CHECK(help.str().find("--width-2 INT") != std::string::npos);
  CHECK(complaint<Twins>({"--width-2", "6"}) == "environment.width_2 is 6; it must not be");
}

TEST_CASE("help is grouped by slot, with ranges and defaults") {
  std::ostringstream help;
  CHECK_FALSE(parse({"--help", "--group", "not looked at"}, help));
  for (const char* expected :
       {"Usage: program ", "\nenvironment: MuJoCo<Push>:\n", "\nalgorithm: GRPO<", "\nrun:\n", "--group INT",
        "episodes that share a reset state; in [2, 4096] (default 8)",
        "one of token, action, chunk, sequence (default \"token\")"})
    CHECK(help.str().find(expected) != std::string::npos);
}

TEST_CASE(
    "only knobs that act are shown: a head's own, and the weight limit of a correction that has weights") {
  const auto shows = []<class Of>(std::type_identity<Of>, const char* flag) {
    std::ostringstream help;
    CHECK_FALSE(parse<Of>({"--help"}, help));
    return help.str().find(flag) != std::string::npos;
  };
  using Flow = Pipeline<Toy, TinyVLA<FlowHead>, BasicGRPO<Uncorrected>>;
  for (const char* flag : {"--bins ", "--temperature ", "--weight-limit "}) {
    CHECK(shows(std::type_identity<P>{}, flag));
    CHECK_FALSE(shows(std::type_identity<Flow>{}, flag));
  }
  for (const char* flag : {"--denoise-steps ", "--noise-level "}) {
    CHECK(shows(std::type_identity<Flow>{}, flag));
    CHECK_FALSE(shows(std::type_identity<P>{}, flag));
  }
}

TEST_CASE("what --print-config prints, --config reads") {
  std::ostringstream printed;
  CHECK_FALSE(parse({"--print-config", "--folder", "a\"b\\c", "--learning-rate", "0.1", "--quiet"}, printed));
  const auto config = from_toml<P>(printed.str());
  CHECK(config.run.folder == "a\"b\\c");
  CHECK(config.algorithm.learning_rate == 0.1);
  CHECK(config.run.quiet);
  CHECK(to_toml(config) == printed.str());
}

TEST_CASE("config.json comes back bit for bit") {
  Config<P> config;
  config.algorithm.learning_rate = 0.1 + 0.2;
  config.algorithm.filter_lower = 1.0 / 3;
  config.algorithm.filter_upper = 4.5;
  config.model.temperature = 0.1F;
  config.run.seed = 9007199254740993;
  config.run.folder = "ümlaut \"quoted\" \\";
  config.algorithm.aggregation = Aggregation::masked_mean;
  config.run.trace = false;
  const std::string text = to_json(config).dump(2);
  const auto back = from_json<P>(text);
  CHECK(back.algorithm.learning_rate == config.algorithm.learning_rate);
  CHECK(back.algorithm.filter_lower == config.algorithm.filter_lower);
  CHECK(back.model.temperature == config.model.temperature);
  CHECK(back.run.seed == config.run.seed);
  CHECK(back.run.folder == config.run.folder);
  CHECK(back.algorithm.aggregation == Aggregation::masked_mean);
  CHECK(to_json(back).dump(2) == text);
  const TemporaryFile file("dvla_command_line.json", text);
  CHECK(to_json(*parse({"--config", file.path})).dump(2) == text);
  CHECK(to_json(config)["pipeline"]["environment"] == "MuJoCo<Push>");
}

TEST_CASE("mistakes in a TOML file are named with file and line") {
  CHECK(
      toml_complaint("[algorithm]\n\ngroup = 1\n") ==
      "run.toml:3: algorithm.group is 1; it must be a whole number in [2, 4096] (episodes that share a reset "
      "state)");
  CHECK(toml_complaint("[algorithm]\ngrup = 8") ==
        "run.toml:2: [algorithm] has no knob 'grup'; did you mean group?");
  CHECK(toml_complaint("[run]\ngroup = 8") ==
        "run.toml:2: [run] has no knob 'group'; did you mean algorithm.group?");
  CHECK(toml_complaint("[algoritm]\ngroup = 8") ==
        "run.toml:1: there is no section 'algoritm'; did you mean algorithm?");
  CHECK(toml_complaint("group = 8") ==
        "run.toml:1: 'group' stands outside its section; put it under [algorithm]");
  CHECK(toml_complaint("algorithm = 3") ==
        "run.toml:1: 'algorithm' must be a section with knobs, [algorithm], not a value");
  CHECK(toml_complaint("[algorithm]\nepochs = 2.0")
            .find("run.toml:2: algorithm.epochs is 2; it must be a whole") == 0);
  CHECK(toml_complaint("[algorithm]\nlearning_rate = nan")
            .find("run.toml:2: algorithm.learning_rate is nan;") == 0);
  CHECK(toml_complaint("[algorithm]\nlearning_rate = \"x\"")
            .find("run.toml:2: algorithm.learning_rate is 'x';") == 0);
  CHECK(toml_complaint("[algorithm]\nepochs = [1]").find("run.toml:2: algorithm.epochs is an array;") == 0);
  CHECK(toml_complaint("[run]\ntrace = 1").find("run.toml:2: run.trace is 1; it must be true or false") == 0);
  CHECK(toml_complaint("[run]\nname = 2026-01-01").find("run.toml:2: run.name is a date or time;") == 0);
  for (const char* broken : {"[algorithm", "[algorithm]\ngroup = 99999999999999999999", "\xff\xfe", "a = 'b",
                             "[algorithm]\ngroup = 8\ngroup = 9"})
    CHECK(toml_complaint(broken).find("run.toml:") == 0);
  CHECK(toml_complaint("[algorithm]\nlearning_rate = 1") == "none");  // a whole number is a number
  CHECK(toml_complaint("") == "none");
}

TEST_CASE("mistakes in JSON are one line") {
  CHECK(json_complaint("[]") == "config.json: a configuration must be a JSON object of sections");
  CHECK(json_complaint("{\"algorithm\":{\"group\":8.5}}").find("config.json: algorithm.group is 8.5;") == 0);
  CHECK(json_complaint("{\"algorithm\":{\"group\":18446744073709551615}}")
            .find("config.json: algorithm.group is 18446744073709551615;") == 0);
  CHECK(json_complaint("{\"run\":{\"name\":null}}").find("config.json: run.name is null;") == 0);
  CHECK(json_complaint("{\"pipeline\":{\"model\":\"Pi05\"}}") ==
        "config.json: written by another pipeline: its model is \"Pi05\", here it is \"TinyVLA<TokenHead>\"");
  CHECK(json_complaint("{\"pipeline\":3}") == "config.json: 'pipeline' must be an object of policy names");
  for (const char* broken : {"", "{", "{\"algorithm\":{\"learning_rate\":1e999}}", "\xff", "{}x"})
    CHECK(json_complaint(broken).find("config.json: not valid JSON") == 0);
  CHECK(json_complaint(std::string(100000, '[')).find("config.json: not valid JSON") == 0);
  CHECK(json_complaint("{}") == "none");
}
