// dvla-test: asan
// Reflected structs as JSON: every kind of member comes back as it was, and no text at all crashes the
// reader: it is read, or refused in one sentence that names the field.
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "dvla/core/json.hpp"

namespace {

enum class Colour : std::uint8_t { red, green };

struct Inner {
  std::string name;
  std::optional<double> weight;
  bool operator==(const Inner&) const = default;
};
struct Outer {
  bool on = false;
  int small = 0;
  std::int64_t large = 0;
  std::uint64_t sum = 0;
  float real = 0;
  double precise = 0;
  Colour colour = Colour::red;
  std::vector<Inner> inner;
  std::array<std::int64_t, 2> pair{};
  bool operator==(const Outer&) const = default;
};

}  // namespace

template <>
inline constexpr auto dvla::enum_names<Colour> = std::to_array<std::string_view>({"red", "green"});

BOOST_HANA_ADAPT_STRUCT(Inner, name, weight);
BOOST_HANA_ADAPT_STRUCT(Outer, on, small, large, sum, real, precise, colour, inner, pair);

namespace {

using dvla::json_text;

Outer example() {
  return {true,
          -7,
          std::numeric_limits<std::int64_t>::min(),
          std::numeric_limits<std::uint64_t>::max(),
          0.1F,
          0.1,
          Colour::green,
          {{"a \"quoted\"\nname \xc3\xa9", 1.0 / 3}, {"", std::nullopt}},
          {1, -2}};
}
std::string said(const std::string& text) {
  try {
    (void)dvla::parse_json<Outer>(text, "message");
  } catch (const dvla::FormatError& error) {
    return error.what();
  }
  return "(nothing is refused)";
}
std::string with(const std::string& from, const std::string& to) {
  std::string text = json_text(example());
  REQUIRE(text.find(from) != text.npos);
  return said(text.replace(text.find(from), from.size(), to));
}

}  // namespace

TEST_CASE("What is written is one line, and is read back as it was") {
  const std::string text = json_text(example());
  CHECK(text.find('\n') == text.npos);
  CHECK(dvla::parse_json<Outer>(text, "message") == example());
  CHECK(dvla::parse_json<Outer>(json_text(Outer{}), "message") == Outer{});
  CHECK(json_text(Inner{"n", std::nullopt}) == R"({"name":"n","weight":null})");
  CHECK(dvla::json_of<nlohmann::ordered_json>(Outer{}).items().begin().key() == "on");
  CHECK(dvla::parse_json<Inner>(json_text(Inner{"\xff", 1}), "m").name == "\xef\xbf\xbd");
}

TEST_CASE("What does not fit is refused in a sentence that names the field") {
  CHECK(said("") == "message: it is no JSON, or was cut off");
  CHECK(said("{} {}") == "message: it is no JSON, or was cut off");
  CHECK(said("[]") == "message: it is an array; it must be an object");
  CHECK(with("\"on\":true,", "") == "message: its field 'on' is missing");
  CHECK(with("\"on\"", "\"off\"") == "message: it has \"off\", which is not known");
  CHECK(with("\"on\":true", "\"on\":1") == "message: its field 'on' is 1; it must be true or false");
  CHECK(with("\"small\":-7", "\"small\":2147483648") ==
        "message: its field 'small' is 2147483648; it must be a whole number in [-2147483648, 2147483647]");
  CHECK(with("\"small\":-7", "\"small\":7.5").find("'small' is 7.5; it must be a whole number") !=
        std::string::npos);
  CHECK(with("18446744073709551615", "-1").find("'sum' is -1; it must be a whole number in [0, ") !=
        std::string::npos);
  CHECK(with("-9223372036854775808", "-9223372036854775809").find("'large' is -9.2") != std::string::npos);
  CHECK(with("\"precise\":0.1", "\"precise\":null") ==
        "message: its field 'precise' is null; it must be a number");
  CHECK(with("\"precise\":0.1", "\"precise\":1e999") == "message: it is no JSON, or was cut off");
  CHECK(with("\"real\":0.10000000149011612", "\"real\":1e99") ==
        "message: its field 'real' is 1e+99; it must be a number");
  CHECK(with("\"green\"", "\"blue\"") ==
        "message: its field 'colour' is \"blue\"; it must be one of red green");
  CHECK(with("\"green\"", "1") == "message: its field 'colour' is 1; it must be one of red green");
  CHECK(with("\"name\":\"\"", "\"name\":{}") ==
        "message: its field 'inner[1].name' is an object; it must be text");
  CHECK(with("[1,-2]", "[1]") == "message: its field 'pair' is an array; it must be an array of 2");
  CHECK(with("[1,-2]", "[1,true]").find("message: its field 'pair[1]' is true; it must be a whole") == 0);
  CHECK(with("\"green\"", "\"" + std::string(10000, 'x') + "\"").size() < 200);
}

TEST_CASE("No text crashes the reader or is refused in more than a line") {
  const std::string text = json_text(example());
  std::mt19937_64 random(1);
  std::size_t refused = 0;
  const auto hand = [&](const std::string& wrong) {
    const std::string answer = said(wrong);  // anything but FormatError ends the test
    if (answer.find('\n') != answer.npos || answer.size() > 400) FAIL_CHECK(answer);
    refused += answer != "(nothing is refused)";
  };
  for (std::size_t length = 0; length < text.size(); ++length) hand(text.substr(0, length));
  CHECK(refused == text.size());
  const std::string pieces[] = {"{", "}", "[", "]",   "\"",   "null", "1e308",
                                "-", ",", ":", "\\u", "\xff", "\0"};
  for (int i = 0; i < 20000; ++i) {
    std::string wrong = text;
    for (std::uint64_t edits = 1 + random() % 4; edits-- > 0 && !wrong.empty();) {
      const std::size_t at = random() % wrong.size();
      switch (random() % 4) {
        case 0:
          wrong[at] = static_cast<char>(random());
          break;
        case 1:
          wrong.erase(at, 1 + random() % 8);
          break;
        case 2:
          wrong.insert(at, pieces[random() % std::size(pieces)]);
          break;
        default:
          wrong.insert(at, wrong.substr(random() % wrong.size(), random() % 40));
      }
    }
    hand(wrong);
  }
  CHECK(refused > text.size() + 15000);
  for (const char* deep : {"[", "{\"a\":", "{\"inner\":["}) {
    std::string wrong;
    for (int i = 0; i < 200000; ++i) wrong += deep;
    hand(wrong);
  }
  hand(std::string(200000, '[') + std::string(200000, ']'));
  hand(R"({"on":)" + std::string(200000, '[') + std::string(200000, ']') + "}");
}
