// One fuzz case: parse any bytes as a safetensors file; whatever is accepted must keep its promises.
#pragma once

#include <cstdlib>

#include "dvla/io/safetensors_header.hpp"

namespace dvla_test {

/// True when the bytes were accepted. Aborts when an accepted header breaks a promise; only FormatError may
/// be thrown.
inline bool check_safetensors(std::span<const std::byte> file) {
  dvla::io::SafetensorsHeader header;
  try {
    header = dvla::io::parse_safetensors(file, "fuzz");
  } catch (const dvla::FormatError& error) {
    if (std::string_view(error.what()).size() > 1000) std::abort();
    return false;
  }
  const auto require = [](bool holds) {
    if (!holds) std::abort();
  };
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

}  // namespace dvla_test
