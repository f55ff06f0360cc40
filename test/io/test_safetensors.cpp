// dvla-test: asan
#include <doctest/doctest.h>

#include "dvla/io/safetensors.hpp"
#include "temporary_folder.hpp"

using namespace dvla::io;
using namespace dvla_test;

namespace {
const std::filesystem::path golden = DVLA_TEST_DIR "/golden/io/golden.safetensors";

template <class T>
std::vector<T> values(const SafetensorsFile& file, const std::string& name) {
  const auto span = file.span<T>(name);
  return {span.begin(), span.end()};
}
}  // namespace

TEST_CASE("a file made by independent code reads back value for value") {
  const SafetensorsFile file(golden);
  CHECK(file.names().size() == 15);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.metadata().at("note") == "line\nbreak");
  CHECK(values<float>(file, "weight") == std::vector<float>{0.0F, 1.5F, -2.25F, 1e-30F, 3.0e38F, -0.0F});
  CHECK(values<double>(file, "double") == std::vector<double>{3.141592653589793, -1e300});
  CHECK(values<std::int64_t>(file, "counter") == std::vector<std::int64_t>{-(std::int64_t{1} << 62)});
  CHECK(file.tensor("counter").shape.empty());
  CHECK(values<std::uint64_t>(file, "rng") == std::vector<std::uint64_t>{~std::uint64_t{0}, 12345});
  CHECK(values<std::int32_t>(file, "int32") == std::vector<std::int32_t>{-7});
  CHECK(values<std::uint32_t>(file, "uint32") == std::vector<std::uint32_t>{4000000000U});
  CHECK(values<std::int16_t>(file, "int16") == std::vector<std::int16_t>{-300, 300});
  CHECK(values<std::uint16_t>(file, "uint16") == std::vector<std::uint16_t>{65535});
  CHECK(values<std::int8_t>(file, "int8") == std::vector<std::int8_t>{-128, 0, 127});
  CHECK(values<std::uint8_t>(file, "frame") == std::vector<std::uint8_t>{0, 1, 254, 255});
  CHECK(values<std::uint8_t>(file, "näme/with \"quotes\"") == std::vector<std::uint8_t>{42});
  CHECK(file.tensor("half").dtype == Dtype::F16);
  CHECK(file.tensor("brain").bytes[1] == std::byte{0x3f});
  CHECK(file.tensor("mask").elements() == 3);
  CHECK(file.tensor("frame").shape[1] == 2);
  CHECK(file.span<float>("nothing").empty());
}

TEST_CASE("what is written reads back, aligned, whatever the order and the types") {
  TemporaryFolder folder;
  const std::vector<std::uint8_t> odd{1, 2, 3};
  const std::vector<float> floats{1.0F, -2.0F};
  const std::vector<double> doubles{0.1};
  const std::vector<TensorToWrite> tensors{tensor_to_write<std::uint8_t>("odd", {3}, odd),
                                           tensor_to_write<float>("floats", {1, 2}, floats),
                                           {"empty", Dtype::BF16, {0}, {}},
                                           tensor_to_write<double>("doubles", {}, doubles)};
  write_safetensors(folder / "a", tensors, {{"config", "{\"x\": \"ä\"}"}});
  const SafetensorsFile file(folder / "a");
  CHECK(file.names() == std::vector<std::string>{"doubles", "floats", "empty", "odd"});
  CHECK(values<double>(file, "doubles") == doubles);
  CHECK(values<float>(file, "floats") == floats);
  CHECK(values<std::uint8_t>(file, "odd") == odd);
  CHECK(file.metadata().at("config") == "{\"x\": \"ä\"}");
  CHECK(file.contains("odd"));
  CHECK_FALSE(file.contains("even"));
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("a tensor that lies in several places is one in the file, and its pieces count against its shape") {
  TemporaryFolder folder;
  const std::vector<float> data{1, 2, 3, 4, 5};
  const auto bytes = std::as_bytes(std::span(data));
  TensorToWrite tensor = tensor_to_write<float>("scattered", {4}, std::span(data).first(1));
  tensor.rest = {bytes.subspan(16, 4), {}, bytes.subspan(4, 8)};
  const std::vector<TensorToWrite> tensors{tensor, tensor_to_write<float>("behind", {5}, data)};
  write_safetensors(folder / "a", tensors);
  const SafetensorsFile file(folder / "a");
  CHECK(values<float>(file, "scattered") == std::vector<float>{1, 5, 2, 3});
  CHECK(values<float>(file, "behind") == data);
  tensor.rest.pop_back();
  CHECK(contains(message_of<dvla::Error>([&] { write_safetensors(folder / "a", std::span(&tensor, 1)); }),
                 "needs 16 bytes by dtype and shape, but 8 are given"));
}

TEST_CASE("a view outlives a move of its file") {
  SafetensorsFile file(golden);
  const auto before = file.span<float>("weight");
  const SafetensorsFile moved = std::move(file);
  CHECK(moved.span<float>("weight").data() == before.data());
  CHECK(before[1] == 1.5F);
  CHECK(moved.tensor("weight").shape[1] == 3);
}

TEST_CASE("a wrong name or type is one clear sentence") {
  const SafetensorsFile file(golden);
  CHECK(contains(message_of<dvla::FormatError>([&] { file.tensor("wieght"); }), "has no tensor 'wieght'"));
  const std::string why = message_of<dvla::FormatError>([&] { file.span<double>("weight"); });
  CHECK(contains(why, "tensor 'weight' of"));
  CHECK(contains(why, "is F32, not F64"));
}

TEST_CASE("data that is not aligned is refused as typed data, but readable as bytes") {
  TemporaryFolder folder;
  const std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  std::string text(8, '\0');
  text[0] = static_cast<char>(header.size() + 1);
  write_text(folder / "a", text + header + " " + std::string(4, '\0'));
  REQUIRE((8 + header.size() + 1) % 4 != 0);
  const SafetensorsFile file(folder / "a");
  CHECK(contains(message_of<dvla::FormatError>([&] { file.span<float>("w"); }), "not aligned to 4 bytes"));
  CHECK(file.tensor("w").bytes.size() == 4);
}

TEST_CASE("folders, pipes, empty and missing files are refused, never waited for") {
  TemporaryFolder folder;
  CHECK(contains(message_of<dvla::FormatError>([&] { SafetensorsFile file(folder.path()); }),
                 "it is a folder"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(contains(message_of<dvla::FormatError>([&] { SafetensorsFile file(folder / "pipe"); }),
                 "not a regular file"));
  write_text(folder / "empty", "");
  CHECK(contains(message_of<dvla::FormatError>([&] { SafetensorsFile file(folder / "empty"); }),
                 "it has 0 bytes"));
  CHECK(contains(message_of<dvla::Error>([&] { SafetensorsFile file(folder / "none"); }), "No such file"));
}

TEST_CASE("a file cut at any byte is refused") {
  TemporaryFolder folder;
  const std::string whole = read_text(golden);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_text(folder / "cut", whole.substr(0, size));
    CHECK_THROWS_AS(SafetensorsFile{folder / "cut"}, dvla::FormatError);
  }
}

TEST_CASE("the writer refuses what it could not read back, and leaves the old file") {
  TemporaryFolder folder;
  write_text(folder / "a", "old");
  const std::vector<float> data{1.0F, 2.0F};
  const auto why = [&](std::vector<TensorToWrite> tensors, std::map<std::string, std::string> metadata = {}) {
    return message_of<dvla::Error>([&] { write_safetensors(folder / "a", tensors, metadata); });
  };
  const auto good = tensor_to_write<float>("w", {2}, data);
  CHECK(contains(why({tensor_to_write<float>("w", {3}, data)}),
                 "needs 12 bytes by dtype and shape, but 8 are given"));
  CHECK(contains(why({tensor_to_write<float>("w", {-2}, data)}), "negative dimension"));
  CHECK(contains(why({good, good}), "tensor 'w' is given twice"));
  CHECK(contains(why({tensor_to_write<float>("__metadata__", {2}, data)}), "reserved"));
  CHECK(contains(why({tensor_to_write<float>("\xff", {2}, data)}), "not UTF-8"));
  CHECK(contains(why({good}, {{"k", "\xff"}}), "not UTF-8"));
  CHECK(read_text(folder / "a") == "old");
  CHECK(files_in(folder.path()) == 1);
}
