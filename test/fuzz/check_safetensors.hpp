// One fuzz case: parse any bytes as a safetensors file, or as an index of such files; whatever is accepted must keep its
// promises.
#pragma once

#include <cstdlib>

#include "dvla/io/safetensors_header.hpp"
#include "dvla/io/safetensors_index.hpp"

namespace dvla_test {

inline void require(bool holds) {
  if (!holds) std::abort();
}

/// Writes the length that the header has if the last '}' ends it: else most mutants would be refused for that alone.
inline void repair_length(std::span<char> file) {
  const std::size_t end = std::string_view(file.data(), file.size()).rfind('}');
  if (end == std::string_view::npos || end < sizeof(std::uint64_t)) return;
  const std::uint64_t length = end + 1 - sizeof length;
  std::memcpy(file.data(), &length, sizeof length);
}

/// True when the bytes were accepted. Aborts when an accepted header breaks a promise; only FormatError may
/// be thrown.
inline bool check_safetensors(std::span<const std::byte> file) {
  dvla::io::SafetensorsHeader header;
  try {
    header = dvla::io::parse_safetensors(file, "fuzz");
  } catch (const dvla::FormatError& error) {
    require(std::string_view(error.what()).size() <= 1000);
    return false;
  }
  require(header.data_offset <= file.size());
  const std::span<const std::byte> data = file.subspan(header.data_offset);
  std::uint64_t end = 0;
  unsigned sum = 0;
  for (const auto& tensor : header.tensors) {
    require(tensor.begin == end && tensor.begin <= tensor.end && tensor.end <= data.size());
    end = tensor.end;
    std::uint64_t elements = 1;
    for (const std::int64_t extent : tensor.shape) {
      require(extent >= 0);
      elements *= static_cast<std::uint64_t>(extent);
    }
    require(elements * dvla::io::dtype_bytes(tensor.dtype) == tensor.end - tensor.begin);
    for (const std::byte byte : data.subspan(tensor.begin, tensor.end - tensor.begin))
      sum += static_cast<unsigned>(byte);  // under AddressSanitizer: the data is really there
  }
  require(end == data.size());
  volatile unsigned keep = sum;
  (void)keep;
  return true;
}

/// The same of an index.
inline bool check_safetensors_index(std::string_view text) {
  try {
    const auto files = dvla::io::parse_safetensors_index(text, "fuzz");
    require(!files.empty());
    for (const auto& [tensor, file] : files)  // each lies in the index's folder
      require(!file.empty() && file != "." && file != ".." && file.find('/') == file.npos);
    return true;
  } catch (const dvla::FormatError& error) {
    require(std::string_view(error.what()).size() <= 1000);
    return false;
  }
}

}  // namespace dvla_test
