// dvla-test: asan
// The same check as fuzz_safetensors.cpp, on a fixed sequence of mutations of sound files; and mutants that Python's safetensors
// has judged (make_mutants.py).
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "check_safetensors.hpp"

namespace {

std::string with_header(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + data;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// What was read, as make_mutants.py hashes it.
std::uint32_t digest(dvla::io::SafetensorsHeader header, std::string_view file) {
  std::uint32_t hash = 2166136261U;
  const auto add = [&](std::string_view bytes) {
    for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 16777619U;
  };
  std::ranges::sort(header.tensors, {}, &dvla::io::TensorInfo::name);
  for (const auto& tensor : header.tensors) {
    std::string extents;
    for (const std::int64_t extent : tensor.shape)
      extents += (extents.empty() ? "" : ",") + std::to_string(extent);
    for (const std::string_view part :
         {std::string_view(tensor.name), dvla::io::dtype_name(tensor.dtype), std::string_view(extents)}) {
      add(part);
      add(std::string_view("\0", 1));
    }
    add(file.substr(header.data_offset + tensor.begin, tensor.end - tensor.begin));
  }
  return hash | 1;
}

/// Only the raw engine is used: distributions differ between standard libraries.
class Mutator {
 public:
  explicit Mutator(std::vector<std::string> seeds) : seeds_(std::move(seeds)) {}

  std::string next() {
    std::string file = seeds_[below(seeds_.size())];
    for (std::size_t rounds = 1 + below(4); rounds > 0; --rounds) mutate(file);
    if (below(2) == 0) dvla_test::repair_length(file);  // else most cases would end at the header's length
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

  std::vector<std::string> seeds_;
  std::mt19937_64 engine_{20261121};
};

}  // namespace

TEST_CASE("twenty thousand mutated files are refused cleanly or read within their bounds") {
  const std::string whole = read_file(DVLA_TEST_DIR "/golden/io/golden.safetensors");
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

TEST_CASE(
    "mutants are refused or read as Python's safetensors does, or refused for what this reader is stricter "
    "in") {
  // What stands in the refusals of what the reference takes: safetensors_header.hpp lists the same.
  constexpr auto stricter = std::to_array<std::string_view>({
      "stands twice",                          // the last one counts there
      "which is not known",                    // a field more is passed over there,
      "nests too deep",                        // and what stands in it
      "does not begin with '{'",               // blanks before it
      "'__metadata__': it is null",            // as if there were none
      "it is an array; it must be an object",  // a tensor's three fields in their order
      "'dtype' is an object",                  // {"F32": null}
      "'dtype' is \"F8_E4M3\"",                // types that no C++ here computes with
      "'dtype' is \"F8_E5M2\"", "'dtype' is \"F8_E8M0\"", "'dtype' is \"F6_E2M3\"", "'dtype' is \"F6_E3M2\"",
      "'dtype' is \"F4\"", "'dtype' is \"C64\"",
      "it must be a whole number in [-9223372036854775808, 9223372036854775807]",  // extents of 2^63 and more
  });
  const char* const given = std::getenv("DVLA_MUTANTS");
  const std::string all = read_file(given ? given : DVLA_TEST_DIR "/golden/io/mutants.bin");
  std::map<std::string_view, int> refused_alone;
  int mutants = 0, read_by_both = 0;
  for (std::size_t at = 0; at < all.size(); ++mutants) {
    std::array<std::uint32_t, 2> begins{};  // what the reference read, and the file's length
    REQUIRE(all.size() - at >= sizeof begins);
    std::memcpy(begins.data(), all.data() + at, sizeof begins);
    at += sizeof begins;
    const auto [expected, length] = begins;
    REQUIRE(all.size() - at >= length);
    const std::string_view file(all.data() + at, length);
    at += length;
    CAPTURE(mutants);
    CAPTURE(dvla::detail::one_line(file, 1000));
    std::string why;
    std::uint32_t read = 0;
    try {
      read = digest(dvla::io::parse_safetensors(std::as_bytes(std::span(file)), "mutant"), file);
    } catch (const dvla::FormatError& error) {
      why = error.what();
    }
    CAPTURE(why);
    if (read == expected) {
      read_by_both += read != 0 ? 1 : 0;
      continue;
    }
    CHECK(read == 0);
    const auto said =
        std::ranges::find_if(stricter, [&](std::string_view each) { return why.find(each) != why.npos; });
    CHECK(said != stricter.end());
    if (said != stricter.end()) ++refused_alone[*said];
  }
  CHECK(mutants >= 500);
  CHECK(read_by_both > mutants / 20);
  for (const auto& [said, count] : refused_alone)
    MESSAGE(count << " of " << mutants << " are refused here alone: " << said);
}
