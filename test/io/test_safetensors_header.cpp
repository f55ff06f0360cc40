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
  CHECK(parse(image(tensor("\"I64\"", "[4611686018427387904,0]", "[0,0]"), 0)).tensors.size() == 1);
}

TEST_CASE("every dtype is known by its name and has its size") {
  const std::pair<const char*, std::size_t> known[] = {
      {"F64", 8},  {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4}, {"F16", 2},
      {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};
  for (const auto& [name, bytes] : known) {
    const auto header = parse(
        image(tensor("\"" + std::string(name) + "\"", "[1]", "[0," + std::to_string(bytes) + "]"), bytes));
    CHECK(dvla::io::dtype_name(header.tensors[0].dtype) == name);
    CHECK(dvla::io::dtype_bytes(header.tensors[0].dtype) == bytes);
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
  CHECK(contains(refusal(R"({"w":1})", 0), "the entry 'w': it is 1; it must be an object"));
  CHECK(contains(refusal(R"({"w":[]})", 0), "the entry 'w': it is an array; it must be an object"));
  CHECK(contains(refusal(R"({"w":null})", 0), "the entry 'w': it is null; it must be an object"));
  CHECK(contains(refusal(R"({"w":{}})", 0), "the entry 'w': its field 'dtype' is missing"));
  CHECK(contains(refusal(R"({"w":{"dtype":"F32","shape":[]}})", 0),
                 "the entry 'w': its field 'data_offsets' is missing"));
  CHECK(contains(refusal(R"({"w":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":1}})", 4),
                 "the entry 'w': it has \"more\", which is not known"));
  CHECK(contains(refusal(R"({"__metadata__":{"k":1}})", 0),
                 "the entry '__metadata__': its entry 'k' is 1; it must be text"));
  CHECK(contains(refusal(R"({"__metadata__":"x"})", 0),
                 "the entry '__metadata__': it is \"x\"; it must be an object"));
}

TEST_CASE("deep nesting is refused at the first wrong level, however long") {
  std::string deep = "{\"w\":";
  for (int i = 0; i < 1'000'000; ++i) deep += "{\"a\":";
  CHECK(contains(refusal(deep, 0), "nests too deep"));
  CHECK(contains(refusal("{\"w\":" + std::string(1'000'000, '['), 0), "nests too deep"));
  CHECK(contains(refusal("{\"w\":{\"shape\":" + std::string(1'000'000, '['), 0), "nests too deep"));
}

TEST_CASE("duplicate keys are refused on every level") {
  const std::string one = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  CHECK(contains(refusal("{\"w\":" + one + ",\"w\":" + one + "}", 0), "the key 'w' stands twice"));
  CHECK(contains(refusal(R"({"__metadata__":{},"__metadata__":{}})", 0),
                 "the key '__metadata__' stands twice"));
  CHECK(contains(refusal(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "the key 'k' stands twice"));
  CHECK(contains(refusal(R"({"w":{"dtype":"U8","dtype":"U8"}})", 0), "the key 'dtype' stands twice"));
}

TEST_CASE("bad types, shapes and offsets are refused by name") {
  CHECK(contains(refusal(tensor("\"F31\"", "[1]", "[0,4]"), 4),
                 "the entry 'w': its field 'dtype' is \"F31\"; it must be one of F64 I64"));
  CHECK(contains(refusal(tensor("4", "[1]", "[0,4]"), 4), "its field 'dtype' is 4; it must be one of"));
  CHECK(contains(refusal(tensor("\"F32\"", "[-1]", "[0,4]"), 4), "a negative dimension"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1.5]", "[0,4]"), 4),
                 "its field 'shape[0]' is 1.5; it must be a whole number"));
  CHECK(contains(refusal(tensor("\"F32\"", "[NaN]", "[0,4]"), 4), "not valid JSON"));
  CHECK(contains(refusal(tensor("\"F32\"", "[-0]", "[0,0]"), 0), "it has the number -0"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[-0,4]"), 4), "it has the number -0"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1e999]", "[0,4]"), 4), "not valid JSON"));
  CHECK(contains(refusal(tensor("\"F32\"", "[18446744073709551616]", "[0,4]"), 4),
                 "its field 'shape[0]' is 1.8"));
  CHECK(contains(refusal(tensor("\"F32\"", "[9223372036854775808]", "[0,4]"), 4),
                 "its field 'shape[0]' is 9223372036854775808"));
  CHECK(contains(refusal(tensor("\"F32\"", "[\"1\"]", "[0,4]"), 4),
                 "its field 'shape[0]' is \"1\"; it must be a whole number"));
  CHECK(contains(refusal(tensor("\"F32\"", "1", "[0,4]"), 4), "its field 'shape' is 1; it must be an array"));
  CHECK(
      contains(refusal(tensor("\"F32\"", "[4294967296,4294967296]", "[0,4]"), 4), "does not fit in 64 bits"));
  CHECK(contains(refusal(tensor("\"F32\"", "[2]", "[0,4]"), 4), "needs 8 bytes"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[0]"), 4),
                 "its field 'data_offsets' is an array; it must be an array of 2"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[0,4,8]"), 4),
                 "its field 'data_offsets' is an array; it must be an array of 2"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[4,0]"), 4), "ends before it begins"));
  CHECK(contains(refusal(tensor("\"F32\"", "[1]", "[-4,0]"), 4),
                 "its field 'data_offsets[0]' is -4; it must be a whole number in [0,"));
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
