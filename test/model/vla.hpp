// What tests of models of the pipeline share: the published ones' inputs, counts and weights by name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dvla/model/concept.hpp"

namespace dvla_test {

/// Two cameras, three numbers of state, actions of two dimensions in chunks of three.
inline dvla::ModelInputs some_inputs(const std::string& second_instruction = "push_it") {
  dvla::ModelInputs inputs;
  inputs.observation.cameras = {{"top", 32, 48}, {"wrist", 56, 56}};
  inputs.observation.proprioception = 3;
  inputs.observation.instructions = {"push the cube to the red target", second_instruction};
  inputs.action.dimensions = 2;
  inputs.chunk = 3;
  return inputs;
}
/// One a line.
inline std::string all(const std::vector<std::string>& sentences) {
  std::string text;
  for (const auto& sentence : sentences) text += sentence + "\n";
  return text;
}
/// How many parameters train whose names have `of` in them.
inline std::int64_t trainable(const std::vector<dvla::Parameter>& parameters, const std::string& of) {
  return std::ranges::count_if(parameters, [&](const dvla::Parameter& each) {
    return each.trainable && each.name.find(of) != std::string::npos;
  });
}

/// Bytes of a model's parameters, by name, but for those whose names are `left_out`.
template <class Model>
std::map<std::string, std::string> weights_but(bool (*left_out)(const std::string&), const Model& model) {
  std::map<std::string, std::string> all;
  for (const dvla::Parameter& each : model.parameters())
    if (!left_out(each.name))
      all[each.name] = std::string(reinterpret_cast<const char*>(each.data), each.bytes());
  return all;
}

}  // namespace dvla_test
