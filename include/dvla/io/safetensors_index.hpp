// The index of weights in several files, as the Hugging Face hub lays out what is too large for one:
// model-00001-of-00003.safetensors, .. and model.safetensors.index.json, whose `weight_map` names the file of
// each tensor. A parser of its bytes into a checked table; opens nothing (safetensors.hpp does). Does not
// compare `metadata.total_size`, which published models have wrong.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "dvla/core/error.hpp"
#include "dvla/io/safetensors_header.hpp"

namespace dvla::io {

/// After the name that one file would have.
inline constexpr std::string_view index_suffix = ".index.json";

/// The file of each tensor, by name; files lie in the index's folder. `label` names it in messages. Throws
/// FormatError, and nothing else but std::bad_alloc.
inline std::map<std::string, std::string> parse_safetensors_index(std::string_view text,
                                                                  const std::string& label) {
  const auto refuse = [&](const std::string& why) -> void {
    throw FormatError("'" + label + "' is not a sound index of safetensors files: " + why);
  };
  if (text.size() > max_safetensors_header_bytes) refuse("it has more than 100 MB");
  const nlohmann::json root = detail::parse_strictly(text, refuse);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object() ||
      root["weight_map"].empty())
    refuse("it has no weight_map from tensors to files");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, value] : root["weight_map"].items()) {
    if (!value.is_string()) refuse("tensor " + detail::printable(tensor) + " has no file's name");
    const auto& file = value.get_ref<const std::string&>();
    if (file.empty() || file == "." || file == ".." ||
        file.find_first_of(std::string_view("/\0", 2)) != file.npos)
      refuse("tensor " + detail::printable(tensor) + " has the file " + detail::printable(file) +
             ", which is none of the index's folder");
    files.emplace(tensor, file);
  }
  return files;
}

}  // namespace dvla::io
