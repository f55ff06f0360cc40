// dvla-test: asan
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "dvla/control_plane/parts.hpp"

using dvla::ByteRange;
using dvla::WeightPart;
using dvla::WeightUnit;

TEST_CASE("Equal parts cover the weights, also when there are fewer bytes than actors") {
  for (const int actors : {1, 2, 3, 7}) {
    for (const std::size_t bytes : {0, 1, 6, 1000}) {
      const auto parts = dvla::equal_parts(bytes, actors);
      CHECK_NOTHROW(dvla::check_weight_parts(bytes, parts, static_cast<std::size_t>(actors)));
      for (const auto& part : parts)
        CHECK(dvla::bytes_in(part) <= bytes / static_cast<std::size_t>(actors) + 1);
    }
  }
}

TEST_CASE("Parts that overlap, leave something out or reach beyond are refused") {
  const auto refusal = [](const std::vector<WeightPart>& parts, std::size_t actors = 2) -> std::string {
    try {
      dvla::check_weight_parts(100, parts, actors);
    } catch (const dvla::ConfigError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refusal({{{50, 10}, {0, 20}, {99, 1}}, {{20, 30}, {60, 39}}}) == "");
  CHECK(refusal({{{0, 60}}, {{50, 20}, {70, 20}}}).find("overlap at byte 50") != std::string::npos);
  CHECK(refusal({{{0, 40}}, {{50, 50}}}).find("leave out byte 40") != std::string::npos);
  CHECK(refusal({{{0, 40}}, {{40, 50}}}).find("leave out byte 90") != std::string::npos);
  CHECK(refusal({{{0, 40}}, {{40, 61}}}).find("reach beyond the weights") != std::string::npos);
  CHECK(refusal({{{0, 100}}}).find("are 1 and the actors 2") != std::string::npos);
}

TEST_CASE("Bytes across units are read and written where they lie, and never beyond them") {
  std::vector<std::byte> first(10), second(0), third(20), out(12);
  for (std::size_t i = 0; i < 10; ++i) first[i] = static_cast<std::byte>(i);
  for (std::size_t i = 0; i < 20; ++i) third[i] = static_cast<std::byte>(10 + i);
  const std::vector<WeightUnit> units{{.values = first}, {.values = second}, {.values = third}};
  CHECK(dvla::trainable_bytes(units) == 30);
  dvla::read_weights(units, 5, out);
  for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == static_cast<std::byte>(5 + i));
  std::fill(out.begin(), out.end(), std::byte{99});
  dvla::write_weights(units, 9, std::span(out).first(2));
  CHECK(first[9] == std::byte{99});
  CHECK(third[0] == std::byte{99});
  CHECK(third[1] == std::byte{11});
  CHECK_THROWS_WITH_AS(
      dvla::read_weights(units, 25, out),
      "weights: a stretch of bytes reaches 7 beyond the model's trainable weights; trainer and "
      "sampler must have the same model",
      dvla::Error);
}
