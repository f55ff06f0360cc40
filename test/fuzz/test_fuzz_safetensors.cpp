// dvla-test: asan
// The same check as fuzz_safetensors.cpp, on a fixed sequence of mutations of sound files.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "check_safetensors.hpp"

namespace {

std::string with_header(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + data;
}

/// Only the raw engine is used: distributions differ between standard libraries.
class Mutator {
 public:
  explicit Mutator(std::vector<std::string> seeds) : seeds_(std::move(seeds)) {}

  std::string next() {
    std::string file = seeds_[below(seeds_.size())];
    for (std::size_t rounds = 1 + below(4); rounds > 0; --rounds) mutate(file);
    if (below(2) == 0) repair_length(file);  // else most cases would end at the header's length
    return file;
  }

 private:
  std::size_t below(std::size_t bound) {
    return bound == 0 ? 0 : static_cast<std::size_t>(engine_() % bound);
  }

  void mutate(std::string& file) {
    const std::size_t at = below(file.size());
    const std::string& other = seeds_[below(seeds_.size())];
    const std::size_t from = below(other.size());
    switch (below(7)) {
      case 0:
        if (!file.empty()) file[at] = static_cast<char>(file[at] ^ (1 << below(8)));
        break;
      case 1:
        if (!file.empty()) file[at] = static_cast<char>(below(256));
        break;
      case 2:
        file.resize(at);
        break;
      case 3:
        file.erase(at, below(16));
        break;
      case 4:
        file.insert(at, other, from, below(64));
        break;
      case 5:
        file = file.substr(0, at) + other.substr(from);
        break;
      default: {  // a digit, bracket or word of the format
        static const std::array<std::string, 16> words{
            "0",    "9",       "-1",        "18446744073709551615", "1e9", "[", "]", "{", "}", "\"", ",", ":",
            "null", "\"F64\"", "\"shape\"", "\"__metadata__\""};
        const std::string& word = words[below(words.size())];
        file.replace(at, std::min(word.size(), file.size() - at), word);
      }
    }
  }
  static void repair_length(std::string& file) {
    const std::size_t end = file.rfind('}');
    if (file.size() < 9 || end == std::string::npos || end < 8) return;
    const std::uint64_t length = end + 1 - 8;
    std::memcpy(file.data(), &length, sizeof length);
  }

  std::vector<std::string> seeds_;
  std::mt19937_64 engine_{20261121};
};

}  // namespace

TEST_CASE("twenty thousand mutated files are refused cleanly or read within their bounds") {
  const auto golden = DVLA_TEST_DIR "/golden/io/golden.safetensors";
  std::ifstream in(golden, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(in), {}};
  REQUIRE(dvla_test::check_safetensors(std::as_bytes(std::span(whole))));
  Mutator mutator(
      {whole, with_header("{}", ""),
       with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", std::string(8, '\1')),
       with_header(
           R"({"a":{"dtype":"U8","shape":[1,3],"data_offsets":[0,3]},"b":{"dtype":"BOOL","shape":[],"data_offsets":[3,4]}})",
           "abc\1")});
  int accepted = 0;
  constexpr int cases = 20'000;
  for (int i = 0; i < cases; ++i) {
    const std::string file = mutator.next();
    // An exact heap copy, so that AddressSanitizer sees a read one byte too far.
    const std::vector<char> exact(file.begin(), file.end());
    accepted += dvla_test::check_safetensors(std::as_bytes(std::span(exact))) ? 1 : 0;
  }
  MESSAGE(accepted << " of " << cases << " were accepted");
  CHECK(accepted > cases / 100);  // the mutations reach past the first checks
  CHECK(accepted < cases / 2);
}
