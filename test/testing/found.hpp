// For tests of the conformance suites: a policy that is broken by a switch must be accused of just that.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

/// A suite's sentences, a line each.
inline std::string lines(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& sentence : sentences) text += sentence + "\n";
  return text;
}

/// `said(how)` is what the suite says of a policy broken that way; the sentence must be in it.
template <class Break, class Said>
void check_each_is_found(const std::vector<std::pair<Break, const char*>>& all, Said said) {
  for (const auto& one : all) {
    const std::string sentence = one.second, found = said(one.first);
    CAPTURE(sentence);
    CAPTURE(found);
    CHECK(found.find(sentence) != std::string::npos);
  }
}
