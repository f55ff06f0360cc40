// dvla-test: asan
#include <doctest/doctest.h>

#include "dvla/io/safetensors_header.hpp"
#include "temporary_folder.hpp"

using namespace dvla_test;

namespace {

std::string image(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + std::string(data_bytes, 'd');
}
dvla::io::SafetensorsHeader parse(const std::string& file) {
  return dvla::io::parse_safetensors(std::as_bytes(std::span(file)), "file.safetensors");
}
std::string refusal(const std::string& file) {
  return message_of<dvla::FormatError>([&] { parse(file); });
}
std::string refusal(const std::string& header, std::size_t data_bytes) {
  return refusal(image(header, data_bytes));
}

/// A one-tensor header.
std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

}  // namespace

TEST_CASE("a sound header gives names, types, shapes and metadata in the order of the data") {
  const auto header = parse(image(
      R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]},"__metadata__":{"k":"v"},"a":{"data_offsets":[0,8],"shape":[2,1],"dtype":"F32"}}   )",
      12));
  REQUIRE(header.tensors.size() == 2);
  CHECK(header.tensors[0].name == "a");
  CHECK(header.tensors[0].dtype == dvla::io::Dtype::F32);
  CHECK(header.tensors[0].shape == std::vector<std::int64_t>{2, 1});
  CHECK(header.tensors[1].begin == 8);
  CHECK(header.metadata.at("k") == "v");
}

TEST_CASE("no tensors, scalars and empty tensors are sound") {
  CHECK(parse(image("{}", 0)).tensors.empty());
  CHECK(parse(image(tensor("\"I64\"", "[]", "[0,8]"), 8)).tensors.size() == 1);
  CHECK(parse(image(tensor("\"I64\"", "[0,5]", "[0,0]"), 0)).tensors.size() == 1);
}

TEST_CASE("every dtype is known by its name and has its size") {
  for (const auto& known : dvla::io::dtype_table) {
    CHECK(dvla::io::dtype_name(known.dtype) == known.name);
    CHECK(dvla::io::dtype_bytes(known.dtype) == known.bytes);
    const std::string bytes = std::to_string(known.bytes);
    CHECK(parse(image(tensor("\"" + std::string(known.name) + "\"", "[1]", "[0," + bytes + "]"), known.bytes))
              .tensors[0]
              .dtype == known.dtype);
  }
}

TEST_CASE("bad lengths are refused") {
  CHECK(contains(refusal(""), "it has 0 bytes"));
  CHECK(contains(refusal("1234567"), "it has 7 bytes"));
  CHECK(contains(refusal(std::string(8, '\0')), "does not begin with '{'"));
  CHECK(contains(refusal(std::string(8, '\xff')), "more than the allowed"));
  std::string longer = image("{}", 0);
  longer[0] = 3;
  CHECK(contains(refusal(longer), "only 2 follow"));
}

TEST_CASE("text that is no JSON, or not the JSON of a header, is refused with its place") {
  CHECK(contains(refusal("[]", 0), "does not begin with '{'"));
  CHECK(contains(refusal(" {}", 0), "does not begin with '{'"));
  CHECK(contains(refusal("{", 0), "not valid JSON at byte"));
  CHECK(contains(refusal("{}x", 0), "not valid JSON at byte"));
  CHECK(contains(refusal("{\"\xff\":{}}", 0), "not valid JSON at byte"));
  CHECK(contains(refusal(std::string("{}\0{", 4), 0), "zero byte"));
  CHECK(contains(refusal(R"({"w":1})", 0), "the entry 'w' is a number instead of an object"));
  CHECK(contains(refusal(R"({"w":[]})", 0), "the entry 'w' is an array instead of an object"));
  CHECK(contains(refusal(R"({"w":null})", 0), "the entry 'w' is null instead of an object"));
  CHECK(contains(refusal(R"({"w":{}})", 0), "tensor 'w' lacks one of"));
  CHECK(contains(refusal(R"({"w":{"dtype":"F32","shape":[]}})", 0), "tensor 'w' lacks one of"));
  CHECK(contains(refusal(R"({"w":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":1}})", 4),
                 "unknown key 'more'"));
  CHECK(contains(refusal(R"({"__metadata__":{"k":1}})", 0), "the entry 'k' of __metadata__ is a number"));
  CHECK(contains(refusal(R"({"__metadata__":"x"})", 0), "'__metadata__' is a string instead of an object"));
}

TEST_CASE("deep nesting is refused at the first wrong level, however long") {
  std::string deep = "{\"w\":";
  for (int i = 0; i < 1'000'000; ++i) deep += "{\"a\":";
  CHECK(contains(refusal(deep, 0), "unknown key 'a'"));
  CHECK(contains(refusal("{\"w\":" + std::string(1'000'000, '['), 0), "is an array instead of an object"));
  CHECK(contains(refusal("{\"w\":{\"shape\":" + std::string(1'000'000, '['), 0), "an array in its shape"));
}

TEST_CASE("duplicate keys are refused on every level") {
  const std::string one = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  CHECK(contains(refusal("{\"w\":" + one + ",\"w\":" + one + "}", 0), "the key 'w' stands twice"));
  CHECK(contains(refusal(R"({"__metadata__":{},"__metadata__":{}})", 0),
                 "the key '__metadata__' stands twice"));
  CHECK(contains(refusal(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "has the key 'k' twice"));
  CHECK(contains(refusal(R"({"w":{"dtype":"U8","dtype":"U8"}})", 0), "has the key 'dtype' twice"));
}

TEST_CASE("bad types, shapes and offsets are refused by name") {
  CHECK(contains(refusal(tensor("\"F31\"", "[1]", "[0,4]"), 4), "tensor 'w' has dtype 'F31'"));
  CHECK(contains(refusal(tensor("4", "[1]", "[0,4]"), 4), "a number in its dtype"));
  CHECK(contains(refusal(tensor("\"F32\"", "[-1]", "[0,4]"), 4), "a negative number in its shape"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1.5]", "[0,4]"), 4), "not a 64-bit integer in its shape"));
  CHECK(contains(refusal(tensor("\"F32\"", "[NaN]", "[0,4]"), 4), "not valid JSON"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1e999]", "[0,4]"), 4), "not valid JSON"));
  CHECK(contains(refusal(tensor("\"F32\"", "[18446744073709551616]", "[0,4]"), 4), "not a 64-bit integer"));
  CHECK(contains(refusal(tensor("\"F32\"", "[9223372036854775808]", "[0,4]"), 4), "above 2^63-1"));
  CHECK(contains(refusal(tensor("\"F32\"", "[\"1\"]", "[0,4]"), 4), "a string in its shape"));
  CHECK(contains(refusal(tensor("\"F32\"", "1", "[0,4]"), 4), "a number in its shape"));
  CHECK(
      contains(refusal(tensor("\"F32\"", "[4294967296,4294967296]", "[0,4]"), 4), "does not fit in 64 bits"));
  CHECK(contains(refusal(tensor("\"F32\"", "[2]", "[0,4]"), 4), "needs 8 bytes"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[0]"), 4), "fewer than two"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[0,4,8]"), 4), "more than two"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[4,0]"), 4), "ends before it begins"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[-4,0]"), 4), "a negative number in its data_offsets"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[0,4]"), 3), "only 3 bytes of data"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[18446744073709551612,18446744073709551615]"), 4),
                 "truncated?"));
}

TEST_CASE("overlaps, holes and bytes after the last tensor are refused") {
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}";
  };
  CHECK(refusal(two("[0,4]", "[4,8]"), 8).empty());
  CHECK(refusal(two("[4,8]", "[0,4]"), 8).empty());
  CHECK(contains(refusal(two("[0,4]", "[2,6]"), 6), "tensor 'b' overlaps"));
  CHECK(contains(refusal(two("[0,4]", "[0,4]"), 4), "overlaps"));
  CHECK(contains(refusal(two("[0,4]", "[5,9]"), 9), "tensor 'b' leaves a hole"));
  CHECK(contains(refusal(two("[1,5]", "[5,9]"), 9), "tensor 'a' leaves a hole"));
  CHECK(contains(refusal(two("[0,4]", "[4,8]"), 9),
                 "its tensors end at byte 8 of the data, but the file has 9"));
}

TEST_CASE("names from a file cannot bring control characters or endless text into a message") {
  const std::string why = refusal("{\"\\u001b[2J" + std::string(10000, 'x') + "\":1}", 0);
  CHECK(contains(why, "'?[2Jxxx"));
  CHECK(why.size() < 300);
}
