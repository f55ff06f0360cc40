// Files on a file system that maps none: read instead, with the same result.
#include <doctest/doctest.h>

#include "dvla/io/safetensors.hpp"
#include "full_disk.hpp"
#include "temporary_folder.hpp"

using namespace dvla::io;
using namespace dvla_test;

TEST_CASE("a file that cannot be mapped is read") {
  TemporaryFolder folder;
  std::vector<float> many(100'000);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<float>(i);
  const std::int64_t one = 7;
  const std::vector<TensorToWrite> tensors{tensor_to_write<float>("many", {100'000}, many),
                                           tensor_to_write<std::int64_t>("one", {}, std::span(&one, 1))};
  write_safetensors(folder / "whole.safetensors", tensors);
  write_safetensors(folder / "cut.safetensors", tensors, {}, 1000);
  write_text(folder / "empty.safetensors", "");
  maps_files = false;
  for (const char* name : {"whole.safetensors", "cut.safetensors"}) {
    CAPTURE(name);
    const SafetensorsFile file(folder / name);
    const auto read = file.span<float>("many");
    CHECK(std::equal(read.begin(), read.end(), many.begin(), many.end()));
    CHECK(file.span<std::int64_t>("one")[0] == 7);
  }
  CHECK_THROWS_AS(SafetensorsFile(folder / "empty.safetensors"), dvla::FormatError);
  maps_files = true;
}
