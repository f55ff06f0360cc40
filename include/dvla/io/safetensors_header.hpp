// The header of a safetensors file: element types, and a strict parser of its bytes into a checked table.
// Reference: the format text and the `validate` rules of huggingface/safetensors (offsets in order, no hole,
// no overlap, nothing after the last tensor). Stricter than it: duplicate and unknown keys are refused too.
// Does not open files (safetensors.hpp does) and knows no sub-byte or 8-bit float types.
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

namespace dvla::io {

static_assert(std::endian::native == std::endian::little,
              "safetensors are little-endian; so must this machine be");

enum class Dtype { F64, I64, U64, F32, I32, U32, F16, BF16, I16, U16, I8, U8, BOOL };

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  std::size_t bytes;
};
inline constexpr std::array<DtypeInfo, 13> dtype_table{{{Dtype::F64, "F64", 8},
                                                        {Dtype::I64, "I64", 8},
                                                        {Dtype::U64, "U64", 8},
                                                        {Dtype::F32, "F32", 4},
                                                        {Dtype::I32, "I32", 4},
                                                        {Dtype::U32, "U32", 4},
                                                        {Dtype::F16, "F16", 2},
                                                        {Dtype::BF16, "BF16", 2},
                                                        {Dtype::I16, "I16", 2},
                                                        {Dtype::U16, "U16", 2},
                                                        {Dtype::I8, "I8", 1},
                                                        {Dtype::U8, "U8", 1},
                                                        {Dtype::BOOL, "BOOL", 1}}};
constexpr std::string_view dtype_name(Dtype dtype) {
  return dtype_table[static_cast<std::size_t>(dtype)].name;
}
constexpr std::size_t dtype_bytes(Dtype dtype) { return dtype_table[static_cast<std::size_t>(dtype)].bytes; }

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

/// A name from a file, safe to put into a message: control characters and bytes outside ASCII as '?', at
/// most 80.
inline std::string printable(std::string_view text) {
  std::string out(text.substr(0, 80));
  for (char& c : out)
    if (c < ' ' || c > '~') c = '?';
  return "'" + out + (text.size() > 80 ? "...'" : "'");
}

/// a*b, or nothing when it does not fit.
inline std::optional<std::uint64_t> checked_multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

/// Bytes of a tensor, or nothing when a dimension is negative or the size does not fit in 64 bits.
inline std::optional<std::uint64_t> tensor_bytes(Dtype dtype, std::span<const std::int64_t> shape) {
  std::optional<std::uint64_t> product = dtype_bytes(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    product = checked_multiply(*product, static_cast<std::uint64_t>(extent));
    if (!product) return std::nullopt;
  }
  return product;
}

/// Reads the one JSON shape that a header may have, event by event: nothing nests deeper than it should,
/// duplicates are seen, and nothing is built for text that is refused. The interface is nlohmann's SAX.
class SafetensorsHeaderReader {
 public:
  explicit SafetensorsHeaderReader(SafetensorsHeader& header) : header_(header) {}
  const std::string& why() const { return why_; }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(std::int64_t) {
    return unexpected("a negative number");
  }  // nlohmann: only the negative ones
  bool number_float(double, const std::string&) {
    return unexpected("a number that is not a 64-bit integer");
  }
  bool number_unsigned(std::uint64_t value) {
    if (place_ == Place::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        return unexpected("a number above 2^63-1");
      current().shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (place_ == Place::offsets) {
      if (offsets_ == 2) return refuse(where() + " has more than two data_offsets");
      (offsets_++ == 0 ? current().begin : current().end) = value;
      return true;
    }
    return unexpected("a number");
  }
  bool string(std::string& value) {
    if (place_ == Place::metadata) {
      header_.metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::tensor || key_ != "dtype") return unexpected("a string");
    for (const DtypeInfo& known : dtype_table)
      if (known.name == value) {
        current().dtype = known.dtype;
        return true;
      }
    return refuse(where() + " has dtype " + printable(value) +
                  ", which is not one of F64 F32 F16 BF16 I64 I32 I16 I8 " + "U64 U32 U16 U8 BOOL");
  }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }
  bool key(std::string& value) {
    if (place_ == Place::tensor && value != "dtype" && value != "shape" && value != "data_offsets")
      return refuse(where() + " has the unknown key " + printable(value));
    auto& seen = place_ == Place::root ? names_ : fields_;
    if (!seen.insert(value).second)
      return refuse((place_ == Place::root ? "" : where() + " has ") + "the key " + printable(value) +
                    (place_ == Place::root ? " stands twice" : " twice"));
    key_ = std::move(value);
    return true;
  }
  bool start_object(std::size_t) {
    if (place_ == Place::before) {
      place_ = Place::root;
    } else if (place_ == Place::root) {
      fields_.clear();
      place_ = key_ == "__metadata__" ? Place::metadata : Place::tensor;
      offsets_ = 0;
      if (place_ == Place::tensor) header_.tensors.push_back({key_, {}, {}, 0, 0});
    } else {
      return unexpected("an object");
    }
    return true;
  }
  bool end_object() {
    if (place_ == Place::tensor && fields_.size() != 3)
      return refuse(where() + " lacks one of dtype, shape and data_offsets");
    place_ = place_ == Place::root ? Place::before : Place::root;
    return true;
  }
  bool start_array(std::size_t) {
    if (place_ != Place::tensor || key_ == "dtype") return unexpected("an array");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }
  bool end_array() {
    if (place_ == Place::offsets && offsets_ != 2)
      return refuse(where() + " has fewer than two data_offsets");
    place_ = Place::tensor;
    return true;
  }
  template <class Exception>
  bool parse_error(std::size_t position, const std::string&, const Exception&) {
    return refuse("its header is not valid JSON at byte " + std::to_string(position));
  }

 private:
  enum class Place { before, root, metadata, tensor, shape, offsets };

  TensorInfo& current() { return header_.tensors.back(); }
  std::string where() const {
    if (place_ == Place::before) return "its header";
    if (place_ == Place::metadata) return "__metadata__";
    return place_ == Place::root ? "the entry " + printable(key_)
                                 : "tensor " + printable(header_.tensors.back().name);
  }
  bool unexpected(const char* what) {
    if (place_ == Place::before)
      return refuse(std::string("its header is ") + what + " instead of an object");
    if (place_ == Place::root) return refuse(where() + " is " + what + " instead of an object");
    if (place_ == Place::metadata)
      return refuse("the entry " + printable(key_) + " of __metadata__ is " + what + " instead of a string");
    return refuse(where() + " has " + what + " in its " + key_);
  }
  bool refuse(std::string why) {
    why_ = std::move(why);
    return false;
  }

  SafetensorsHeader& header_;
  Place place_ = Place::before;
  std::string key_;
  int offsets_ = 0;
  std::set<std::string> names_;
  std::set<std::string> fields_;
  std::string why_;
};

}  // namespace detail

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
  // nlohmann takes a zero byte for the end of the text and would not look at what follows.
  if (std::memchr(text, 0, length) != nullptr) refuse("its header contains a zero byte");

  SafetensorsHeader header;
  header.data_offset = sizeof length + length;
  detail::SafetensorsHeaderReader reader(header);
  if (!nlohmann::json::sax_parse(text, text + length, &reader)) refuse(reader.why());

  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  const std::uint64_t data_bytes = file.size() - header.data_offset;
  std::uint64_t expected = 0;
  for (const TensorInfo& tensor : header.tensors) {
    const auto blame = [&](const std::string& why) {
      refuse("tensor " + detail::printable(tensor.name) + " " + why);
    };
    const std::string range =
        std::string("[").append(std::to_string(tensor.begin)) + ", " + std::to_string(tensor.end) + ")";
    if (tensor.end < tensor.begin) blame("ends before it begins: data_offsets " + range);
    if (tensor.end > data_bytes)
      blame("has data_offsets " + range + ", but the file has only " + std::to_string(data_bytes) +
            " bytes of data (truncated?)");
    if (tensor.begin < expected) blame("overlaps its predecessor: data_offsets " + range);
    if (tensor.begin > expected) blame("leaves a hole before it: data_offsets " + range);
    const std::optional<std::uint64_t> bytes = detail::tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes) blame("has a shape whose size does not fit in 64 bits");
    if (*bytes != tensor.end - tensor.begin)
      blame("needs " + std::to_string(*bytes) + " bytes by dtype and shape, but its data_offsets hold " +
            std::to_string(tensor.end - tensor.begin));
    expected = tensor.end;
  }
  if (expected != data_bytes)
    refuse("its tensors end at byte " + std::to_string(expected) + " of the data, but the file has " +
           std::to_string(data_bytes));
  return header;
}

}  // namespace dvla::io
