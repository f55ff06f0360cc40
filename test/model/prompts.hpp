// Prompts under a tokeniser's file, against those of the models' own Python (test/golden/model/tokenizers/make_golden.py).
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dvla/model/prompts.hpp"

namespace dvla_test {

inline const std::string tokenizers = DVLA_TEST_DIR "/golden/model/tokenizers/";

/// Each task's, in rows of `length`.
template <class Wording>
void check_prompts(const std::string& model, const std::string& file, std::int64_t length) {
  std::ifstream in(tokenizers + "golden.json");
  const nlohmann::json golden = nlohmann::json::parse(in)["prompts"][model];
  REQUIRE_GE(golden.size(), 9);
  for (const nlohmann::json& each : golden) {
    const std::string task = each["task"], text = each["text"];
    const std::vector<float> state = each["state"];
    const std::vector<std::int64_t> own = each["tokens"];
    CAPTURE(text);
    dvla::ObservationSpec spec;
    spec.instructions = {task};
    spec.proprioception = std::ssize(state);
    constexpr std::int64_t padding = 999;
    const dvla::detail::Prompts<Wording> prompts(spec, {tokenizers + file, 1000, padding, length});
    CHECK_EQ(prompts.text(0, state), text);
    CHECK(prompts.note().ends_with("'" + tokenizers + file + "'"));
    REQUIRE_EQ(prompts.length(), length == 0 ? std::ssize(own) : length);
    std::vector<std::int64_t> row(static_cast<std::size_t>(prompts.length()), -1), expected = own;
    const auto valid = std::make_unique<bool[]>(row.size());
    prompts.write(0, state, row.data(), valid.get());
    expected.resize(row.size(), padding);  // of one instruction alone nothing stands before
    CHECK_EQ(nlohmann::json(row), nlohmann::json(expected));
    for (std::size_t i = 0; i < row.size(); ++i) CHECK_EQ(valid[i], i < own.size());
  }
}

}  // namespace dvla_test
