// The header of a safetensors file: element types, and a strict parser of its bytes into a checked table.
// Reference: the format text and the `validate` rules of huggingface/safetensors (offsets in order, no hole,
// no overlap, nothing after the last tensor). Stricter than it, and never looser (test/fuzz/test_fuzz_safetensors.cpp,
// against safetensors 0.8.0): duplicate and unknown keys are refused too, blanks before the header, metadata of null, a
// tensor's fields as an array, a type as an object, extents beyond 2^63 - 1. Does not open files (safetensors.hpp
// does) and knows no complex, sub-byte or 8-bit float types.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/core/text.hpp"

namespace dvla::io {

static_assert(std::endian::native == std::endian::little,
              "safetensors are little-endian; so must this machine be");

enum class Dtype { F64, I64, U64, F32, I32, U32, F16, BF16, I16, U16, I8, U8, BOOL };
}  // namespace dvla::io

template <>
inline constexpr auto dvla::enum_names<dvla::io::Dtype> = std::to_array<std::string_view>(
    {"F64", "I64", "U64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16", "I8", "U8", "BOOL"});

namespace dvla::io {

constexpr std::string_view dtype_name(Dtype dtype) {
  return enum_names<Dtype>[static_cast<std::size_t>(dtype)];
}
constexpr std::size_t dtype_bytes(Dtype dtype) {
  return dtype <= Dtype::U64 ? 8 : dtype <= Dtype::U32 ? 4 : dtype <= Dtype::U16 ? 2 : 1;
}

/// One tensor of a file. begin and end are bytes from the end of the header.
struct TensorInfo {
  std::string name;
  Dtype dtype{};
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// What a checked header says. `tensors` is in the order of the data.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_offset = 0;  // of the first data byte, from the start of the file
};

/// The reference implementation's cap on the JSON text.
inline constexpr std::uint64_t max_safetensors_header_bytes = 100'000'000;

namespace detail {

/// A name from a file, safe to put into a message.
inline std::string printable(std::string_view text) { return "'" + dvla::detail::one_line(text) + "'"; }

/// Bytes of a tensor, or nothing when a dimension is negative or the size does not fit in 64 bits. Elements are counted first,
/// as the reference does: where they are none, the type does not matter.
inline std::optional<std::uint64_t> tensor_bytes(Dtype dtype, std::span<const std::int64_t> shape) {
  std::uint64_t product = 1;
  for (const std::int64_t extent : shape)
    if (extent < 0 || __builtin_mul_overflow(product, static_cast<std::uint64_t>(extent), &product))
      return std::nullopt;
  if (__builtin_mul_overflow(product, std::uint64_t{dtype_bytes(dtype)}, &product)) return std::nullopt;
  return product;
}

/// JSON whose objects must not have a key twice; nothing is built of what goes deeper than `deepest` levels, those
/// of a header or an index. `refuse` throws what is said to it.
template <class Refuse>
nlohmann::json parse_strictly(std::string_view text, Refuse refuse, int deepest = 3) {
  using Json = nlohmann::json;
  // nlohmann takes a zero byte for the end of the text and would not look at what follows.
  if (text.find('\0') != text.npos) refuse("it contains a zero byte");
  std::vector<std::set<std::string>> keys(static_cast<std::size_t>(deepest) + 1);
  const auto look = [&](int depth, Json::parse_event_t event, Json& parsed) {
    const bool opens =
        event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= deepest) refuse("its JSON nests too deep");
    if (opens) keys[static_cast<std::size_t>(depth) + 1].clear();
    if (event == Json::parse_event_t::key &&
        !keys[static_cast<std::size_t>(depth)].insert(parsed.get<std::string>()).second)
      refuse("the key " + printable(parsed.get<std::string>()) + " stands twice");
    if (event == Json::parse_event_t::value && parsed.is_number_integer() && !parsed.is_number_unsigned() &&
        parsed == 0)
      refuse("it has the number -0");  // which nlohmann takes for 0, and the reference for no whole number
    return true;
  };
  try {
    return Json::parse(text, look);
  } catch (const Json::parse_error& error) {
    refuse("it is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const Json::exception&) {
    refuse("it is not valid JSON: a number in it is too large");
  }
  return {};
}

/// A tensor as a header has it.
struct TensorEntry {
  Dtype dtype{};
  std::vector<std::int64_t> shape;
  std::array<std::uint64_t, 2> data_offsets{};
};

}  // namespace detail
}  // namespace dvla::io

BOOST_HANA_ADAPT_STRUCT(dvla::io::detail::TensorEntry, dtype, shape, data_offsets);

namespace dvla::io {

/// Parses and checks a whole file image. `label` names it in messages. Throws FormatError, and nothing else
/// but std::bad_alloc; memory use is in proportion to the header. Reads the header only, never the data.
inline SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& label) {
  const auto refuse = [&](const std::string& why) -> void {
    throw FormatError("'" + label + "' is not a sound safetensors file: " + why);
  };
  std::uint64_t length = 0;
  if (file.size() < sizeof length)
    refuse("it has " + std::to_string(file.size()) + " bytes, fewer than the 8 of the header's length");
  std::memcpy(&length, file.data(), sizeof length);
  if (length > max_safetensors_header_bytes)
    refuse("its header claims " + std::to_string(length) + " bytes, more than the allowed " +
           std::to_string(max_safetensors_header_bytes));
  if (length > file.size() - sizeof length)
    refuse("its header claims " + std::to_string(length) + " bytes, but only " +
           std::to_string(file.size() - sizeof length) + " follow (truncated?)");
  const char* text = reinterpret_cast<const char*>(file.data()) + sizeof length;
  if (length == 0 || *text != '{') refuse("its header does not begin with '{'");

  SafetensorsHeader header;
  header.data_offset = sizeof length + length;
  const nlohmann::json root = detail::parse_strictly(
      {text, length}, [&](const std::string& why) { refuse("its header is refused: " + why); });
  for (const auto& [name, entry] : root.items()) {
    detail::TensorEntry tensor;
    try {
      if (name == "__metadata__") {
        if (!entry.is_object())
          throw FormatError("it is " + dvla::detail::shown(entry) + "; it must be an object");
        for (const auto& [key, value] : entry.items()) {
          if (!value.is_string())
            throw FormatError("its entry " + detail::printable(key) + " is " + dvla::detail::shown(value) +
                              "; it must be text");
          header.metadata[key] = value;
        }
        continue;
      }
      dvla::detail::read_json_value(entry, {}, tensor);
    } catch (const FormatError& error) {
      refuse("the entry " + detail::printable(name) + ": " + error.what());
    }
    header.tensors.push_back(
        {name, tensor.dtype, std::move(tensor.shape), tensor.data_offsets[0], tensor.data_offsets[1]});
  }

  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  const std::uint64_t data_bytes = file.size() - header.data_offset;
  std::uint64_t expected = 0;
  for (const TensorInfo& tensor : header.tensors) {
    const auto refuse_tensor = [&](const std::string& why) {
      refuse("tensor " + detail::printable(tensor.name) + " " + why);
    };
    const std::string range =
        std::string("[").append(std::to_string(tensor.begin)) + ", " + std::to_string(tensor.end) + ")";
    if (tensor.end < tensor.begin) refuse_tensor("ends before it begins: data_offsets " + range);
    if (tensor.end > data_bytes)
      refuse_tensor("has data_offsets " + range + ", but the file has only " + std::to_string(data_bytes) +
                    " bytes of data (truncated?)");
    if (tensor.begin < expected) refuse_tensor("overlaps its predecessor: data_offsets " + range);
    if (tensor.begin > expected) refuse_tensor("leaves a hole before it: data_offsets " + range);
    const std::optional<std::uint64_t> bytes = detail::tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes) refuse_tensor("has a shape with a negative dimension, or whose size does not fit in 64 bits");
    if (*bytes != tensor.end - tensor.begin)
      refuse_tensor("needs " + std::to_string(*bytes) +
                    " bytes by dtype and shape, but its data_offsets hold " +
                    std::to_string(tensor.end - tensor.begin));
    expected = tensor.end;
  }
  if (expected != data_bytes)
    refuse("its tensors end at byte " + std::to_string(expected) + " of the data, but the file has " +
           std::to_string(data_bytes));
  return header;
}

}  // namespace dvla::io
