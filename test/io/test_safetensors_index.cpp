// dvla-test: asan
#include <doctest/doctest.h>

#include <bit>
#include <random>

#include "dvla/io/checkpoint.hpp"
#include "temporary_folder.hpp"

using namespace dvla::io;
using namespace dvla_test;

namespace {
namespace fs = std::filesystem;
const fs::path golden = DVLA_TEST_DIR "/golden/io/hub";
constexpr const char* index_name = "model.safetensors.index.json";

template <class T>
std::vector<T> values(const SafetensorsFile& file, const std::string& name) {
  const auto span = file.span<T>(name);
  return {span.begin(), span.end()};
}
std::vector<std::uint16_t> halves(const SafetensorsFile& file, const std::string& name) {
  const auto bytes = file.tensor(name).bytes;
  std::vector<std::uint16_t> out(bytes.size() / 2);
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

/// The golden folder with another index, or with a file more.
struct Hub {
  Hub() { fs::copy(golden, folder.path()); }
  std::string refusal() const {
    const std::string said = message_of<dvla::FormatError>([&] { SafetensorsFile file(folder.path()); });
    CHECK(!contains(said, "\n"));
    const std::string begins =
        "'" + (folder / index_name).string() + "' is not a sound index of safetensors files: ";
    return said.starts_with(begins) ? said.substr(begins.size()) : said;
  }
  std::string refusal(const std::string& index) const {
    write_text(folder / index_name, index);
    return refusal();
  }
  TemporaryFolder folder;
};

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}
}  // namespace

TEST_CASE("files with an index, made by independent code, read as one, by folder, index or stood-in name") {
  for (const fs::path& path : {golden, golden / index_name, golden / "model.safetensors"}) {
    const SafetensorsFile file(path);
    CHECK(file.path() == golden / index_name);
    CHECK(file.names() == std::vector<std::string>{"embed.weight", "blocks.0.weight", "blocks.0.bias",
                                                   "head.steps", "blocks.1.weight"});
    CHECK(file.metadata().at("format") == "pt");
    CHECK(file.tensor("embed.weight").shape[1] == 3);
    CHECK(values<float>(file, "embed.weight")[11] == 1.375F);
    CHECK(file.tensor("blocks.0.weight").dtype == Dtype::BF16);
    CHECK(halves(file, "blocks.0.weight") == std::vector<std::uint16_t>{0x3f80, 0xc020, 0x3e20, 0});
    CHECK(file.tensor("blocks.0.bias").dtype == Dtype::F16);
    CHECK(halves(file, "blocks.0.bias") == std::vector<std::uint16_t>{0x3800, 0x7bff, 0x8001});
    CHECK(values<float>(file, "blocks.1.weight")[8] == -8.0F);
    CHECK(values<std::int64_t>(file, "head.steps") == std::vector<std::int64_t>{-7, std::int64_t{1} << 40});
    CHECK(contains(message_of<dvla::FormatError>([&] { file.tensor("head"); }),
                   "has no tensor 'head' among its 5"));
  }
}

TEST_CASE("a view of one of several files outlives a move") {
  SafetensorsFile file(golden);
  const auto before = file.span<float>("blocks.1.weight");
  const SafetensorsFile moved = std::move(file);
  CHECK(moved.span<float>("blocks.1.weight").data() == before.data());
  CHECK(moved.tensor("blocks.1.weight").shape[0] == 3);
}

TEST_CASE("a bad index is one sentence") {
  const Hub hub;
  CHECK(hub.refusal().empty());
  const std::string good = read_text(hub.folder / index_name);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = good;
    REQUIRE(contains(good, from));
    return changed.replace(changed.find(from), from.size(), to);
  };
  CHECK(hub.refusal("") == "it is not valid JSON at byte 1");
  CHECK(hub.refusal(good.substr(0, good.size() - 3)).starts_with("it is not valid JSON at byte "));
  CHECK(hub.refusal(good + "{}").starts_with("it is not valid JSON at byte "));
  CHECK(hub.refusal(good + std::string("\0{", 2)) == "it contains a zero byte");
  CHECK(hub.refusal("[]") == "it has no weight_map from tensors to files");
  CHECK(hub.refusal("{}") == "it has no weight_map from tensors to files");
  CHECK(hub.refusal(R"({"weight_map": ["a"]})") == "it has no weight_map from tensors to files");
  CHECK(hub.refusal(R"({"weight_map": {}})") == "it has no weight_map from tensors to files");
  CHECK(hub.refusal(R"({"weight_map": {"w": 1}})") == "tensor 'w' has no file's name");
  CHECK(hub.refusal(with("\"model-00001", "\"model-00004")) ==
        "the file 'model-00004-of-00003.safetensors' is missing");
  CHECK(hub.refusal(with("embed.weight", "embed.bias")) ==
        "tensor 'embed.bias' is not in the file 'model-00001-of-00003.safetensors'");
  CHECK(hub.refusal(with("\"blocks.0.bias\": \"model-00002", "\"blocks.0.bias\": \"model-00001")) ==
        "tensor 'blocks.0.bias' lies in the file 'model-00002-of-00003.safetensors', and by the index in "
        "'model-00001-of-00003.safetensors'");
  CHECK(hub.refusal(with("\"head.steps\"",
                         "\"embed.weight\": \"model-00003-of-00003.safetensors\", \"head.steps\"")) ==
        "the key 'embed.weight' stands twice");
  for (const char* file :
       {"../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\\u0000b"}) {
    CAPTURE(file);
    CHECK(contains(hub.refusal(with("model-00001-of-00003.safetensors", file)),
                   "which is none of the index's folder"));
  }
  write_text(hub.folder / index_name, good);
  const std::string data = read_text(hub.folder / "model-00002-of-00003.safetensors");
  write_text(hub.folder / "model-00002-of-00003.safetensors", data.substr(0, data.size() - 1));
  CHECK(contains(hub.refusal(), "model-00002-of-00003.safetensors' is not a sound safetensors file"));
}

TEST_CASE("a tensor in two files is refused, one that the index leaves out is left out") {
  const Hub hub;
  const float number = 1;
  const auto add = [&](const std::string& name) {
    const std::vector<TensorToWrite> tensors{tensor_to_write<float>(name, {}, std::span(&number, 1)),
                                             tensor_to_write<float>("more", {}, std::span(&number, 1))};
    write_safetensors(hub.folder / "model-00004.safetensors", tensors);
    std::string index = read_text(golden / index_name);
    const std::string map = "\"weight_map\": {";
    index.insert(index.find(map) + map.size(), "\"more\": \"model-00004.safetensors\",");
    return hub.refusal(index);
  };
  CHECK(add("embed.weight") ==
        "tensor 'embed.weight' lies in the file 'model-00004.safetensors', and by the index in "
        "'model-00001-of-00003.safetensors'");
  CHECK(add("unknown").empty());
  const SafetensorsFile file(hub.folder.path());
  CHECK(file.contains("more"));
  CHECK_FALSE(file.contains("unknown"));
  CHECK(file.names().size() == 6);
}

TEST_CASE("an index with any byte changed or cut off is read or refused, never worse") {
  const Hub hub;
  const std::string good = read_text(golden / index_name);
  std::mt19937 random(1);
  int refused = 0;
  for (std::size_t i = 0; i < 3000; ++i) {
    std::string bad = good;
    if (i < good.size())
      bad.resize(i);
    else
      for (int k = 0; k < 3; ++k) bad[random() % bad.size()] = static_cast<char>(random());
    try {
      parse_safetensors_index(bad, "index");
    } catch (const dvla::FormatError&) {
      ++refused;
    }
  }
  CHECK(refused > 2000);
  CHECK_THROWS_AS(parse_safetensors_index(std::string(1000000, '['), "index"), dvla::FormatError);
}

TEST_CASE("weights beyond the limit are written as several files and an index, and read back") {
  const TemporaryFolder folder;
  const std::vector<float> data{1, 2, 3, 4, 5, 6};
  const std::vector<std::uint8_t> odd{7};
  const auto floats = std::span(data);
  const std::vector<TensorToWrite> tensors{
      tensor_to_write<std::uint8_t>("odd", {1}, odd), tensor_to_write<float>("a", {2}, floats.first(2)),
      tensor_to_write<float>("large", {6}, floats), tensor_to_write<float>("b", {1}, floats.first(1)),
      tensor_to_write<float>("c", {1}, floats.last(1))};
  const fs::path path = folder / "model.safetensors", index = folder / index_name;
  CHECK(write_safetensors(path, tensors, {{"k", "v"}}, 45) == path);  // all of it
  CHECK(names_in(folder.path()) == std::vector<std::string>{"model.safetensors"});
  CHECK(write_safetensors(path, tensors, {{"k", "v"}}, 10) == index);
  const std::vector<std::string> sharded{"model-00001-of-00003.safetensors",
                                         "model-00002-of-00003.safetensors",
                                         "model-00003-of-00003.safetensors", index_name};
  CHECK(names_in(folder.path()) == sharded);  // the one file is gone
  CHECK(nlohmann::json::parse(read_text(index)) ==
        nlohmann::json::parse(R"({"metadata": {"total_size": 41}, "weight_map": {
            "odd": "model-00001-of-00003.safetensors", "a": "model-00001-of-00003.safetensors",
            "large": "model-00002-of-00003.safetensors", "b": "model-00003-of-00003.safetensors",
            "c": "model-00003-of-00003.safetensors"}})"));
  const SafetensorsFile file(path);
  for (const TensorToWrite& tensor : tensors) {
    const TensorView view = file.tensor(tensor.name);
    CHECK(std::equal(view.bytes.begin(), view.bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
    CHECK(std::equal(view.shape.begin(), view.shape.end(), tensor.shape.begin(), tensor.shape.end()));
  }
  CHECK(values<float>(file, "a") == std::vector<float>{1, 2});  // aligned, behind a byte
  CHECK(file.metadata().at("k") == "v");
  for (const std::string& name : {sharded[0], sharded[1], sharded[2]})
    CHECK(SafetensorsFile(folder / name).metadata().at("k") == "v");

  std::vector<TensorToWrite> doubled = tensors;
  doubled.push_back(tensors[0]);
  CHECK(contains(message_of<dvla::Error>([&] { write_safetensors(path, doubled, {}, 10); }), "given twice"));
  CHECK(names_in(folder.path()) == sharded);
  CHECK(write_safetensors(path, tensors) == path);
  CHECK_FALSE(fs::exists(index));
}

TEST_CASE("a checkpoint of several files is found, counted and deleted as one") {
  const TemporaryFolder folder;
  const CheckpointFolder checkpoints(folder.path(), 2, 8);
  const std::vector<float> data{1, 2, 3, 4};
  const auto save = [&](std::int64_t step) {
    const std::vector<TensorToWrite> tensors{tensor_to_write<float>("a", {2}, std::span(data).first(2)),
                                             tensor_to_write<float>("b", {2}, std::span(data).last(2))};
    checkpoints.save_part(step, 0, 1, tensors);
    return checkpoints.save(step, {tensors, {{"shards", "1"}}});
  };
  CHECK(save(1) == folder / "step-1.safetensors.index.json");
  CHECK(files_in(folder.path()) == 6);
  const LoadedCheckpoint loaded = checkpoints.load(1);
  CHECK(loaded.file.span<float>("b")[1] == 4);
  CHECK(CheckpointFolder::open_parts(loaded.file).at(0).span<float>("a")[1] == 2);
  CHECK(open_checkpoint(folder.path()).contains("a"));
  CHECK(open_weights(folder.path()).contains("a"));
  for (const std::int64_t step : {2, 3}) save(step);
  CHECK(checkpoints.steps() == std::vector<std::int64_t>{3, 2});
  CHECK(files_in(folder.path()) == 12);
  // Without its second file it is none; what was its goes with the next.
  fs::remove(folder / "step-3-00002-of-00002.safetensors");
  const LatestCheckpoint latest = checkpoints.latest();
  CHECK(latest.checkpoint.value().step == 2);
  CHECK(contains(latest.warnings.at(0), "the file 'step-3-00002-of-00002.safetensors' is missing"));
  save(4);
  CHECK(checkpoints.steps() == std::vector<std::int64_t>{4, 2});
  CHECK(files_in(folder.path()) == 12);
  checkpoints.remove_after(2);
  CHECK(checkpoints.steps() == std::vector<std::int64_t>{2});
  CHECK(files_in(folder.path()) == 6);
}
