// dvla-test: link=png
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "dvla/io/image.hpp"
#include "temporary_folder.hpp"

using namespace dvla_test;

TEST_CASE("a picture decodes to the same pixels") {
  TemporaryFolder folder;
  std::vector<std::uint8_t> pixels(5 * 7 * 3);
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<std::uint8_t>(i * 37);
  dvla::io::write_png(folder / "a.png", {pixels, 1, 5, 7});

  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  REQUIRE(png_image_begin_read_from_file(&image, (folder / "a.png").c_str()) != 0);
  CHECK(image.width == 7);
  CHECK(image.height == 5);
  image.format = PNG_FORMAT_RGB;
  std::vector<std::uint8_t> read(PNG_IMAGE_SIZE(image));
  REQUIRE(png_image_finish_read(&image, nullptr, read.data(), 0, nullptr) != 0);
  CHECK(read == pixels);
}

TEST_CASE("pixels that do not fit the extents are refused") {
  TemporaryFolder folder;
  const std::vector<std::uint8_t> pixels(12);
  const auto why = [&](int frames, int height, int width) {
    return message_of<dvla::Error>([&] {
      dvla::io::write_png(folder / "a.png", {pixels, frames, height, width});
    });
  };
  CHECK(contains(why(1, 2, 3), "12 bytes of pixels are not [1, 2, 3, 3] frames"));
  CHECK(contains(why(1, 0, 2), "sides of 1 to 65535"));
  CHECK(contains(why(1, -2, -2), "sides of 1 to 65535"));
  CHECK(contains(why(2, 1, 2), "one frame"));
  CHECK(contains(why(1, 70000, 1), "sides of 1 to 65535"));
  CHECK(files_in(folder.path()) == 0);
}
