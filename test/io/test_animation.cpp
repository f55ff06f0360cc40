// dvla-test: link=gif
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cstdlib>

#include "dvla/io/animation.hpp"
#include "temporary_folder.hpp"

using dvla::io::write_gif;
using namespace dvla_test;

namespace {

struct Decoded {
  int width = 0, height = 0;
  std::vector<std::vector<std::uint8_t>> frames;  // as shown: each drawn over the last
  std::vector<int> delays;
  bool loops_for_ever = false;
};

Decoded decode(const std::filesystem::path& path) {
  int code = 0;
  GifFileType* gif = DGifOpenFileName(path.c_str(), &code);
  REQUIRE(gif != nullptr);
  REQUIRE(DGifSlurp(gif) == GIF_OK);
  Decoded out{gif->SWidth, gif->SHeight, {}, {}, false};
  std::vector<std::uint8_t> screen(static_cast<std::size_t>(out.width * out.height * 3));
  for (int i = 0; i < gif->ImageCount; ++i) {
    const SavedImage& image = gif->SavedImages[i];
    const GifImageDesc& desc = image.ImageDesc;
    const GifByteType* index = image.RasterBits;
    for (int y = desc.Top; y < desc.Top + desc.Height; ++y)
      for (int x = desc.Left; x < desc.Left + desc.Width; ++x) {
        const GifColorType color = gif->SColorMap->Colors[*index++];
        std::uint8_t* pixel = &screen[static_cast<std::size_t>((y * out.width + x) * 3)];
        pixel[0] = color.Red, pixel[1] = color.Green, pixel[2] = color.Blue;
      }
    out.frames.push_back(screen);
    GraphicsControlBlock control{};
    REQUIRE(DGifSavedExtensionToGCB(gif, i, &control) == GIF_OK);
    out.delays.push_back(control.DelayTime);
    for (int e = 0; e < image.ExtensionBlockCount; ++e)
      if (image.ExtensionBlocks[e].Function == APPLICATION_EXT_FUNC_CODE) out.loops_for_ever = true;
  }
  DGifCloseFile(gif, &code);
  return out;
}

int largest_difference(const std::uint8_t* a, const std::vector<std::uint8_t>& b) {
  int largest = 0;
  for (std::size_t i = 0; i < b.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("an animation of few colours decodes exactly, frame by frame, and loops") {
  TemporaryFolder folder;
  constexpr int n = 6, height = 20, width = 30;
  std::vector<std::uint8_t> pixels(n * height * width * 3, 255);
  for (int f = 0; f < n; ++f)  // a red square that wanders over white; the last two frames are equal
    for (int y = 4; y < 9; ++y)
      for (int x = 4 * std::min(f, 4); x < 4 * std::min(f, 4) + 5; ++x) {
        const auto at = static_cast<std::size_t>(((f * height + y) * width + x) * 3);
        pixels[at] = 200, pixels[at + 1] = 10, pixels[at + 2] = 30;
      }
  write_gif(folder / "a.gif", {pixels, n, height, width}, {.delay_centiseconds = 7, .loops = 0});
  const Decoded decoded = decode(folder / "a.gif");
  CHECK(decoded.width == width);
  CHECK(decoded.height == height);
  CHECK(decoded.loops_for_ever);
  REQUIRE(decoded.frames.size() == n);
  for (int f = 0; f < n; ++f) {
    const auto i = static_cast<std::size_t>(f);
    CHECK(decoded.delays[i] == 7);
    CHECK(largest_difference(&pixels[i * height * width * 3], decoded.frames[i]) == 0);
  }
}

TEST_CASE("smooth colours stay close") {
  TemporaryFolder folder;
  constexpr int n = 8, side = 96;
  std::vector<std::uint8_t> pixels;
  for (int f = 0; f < n; ++f)
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x)
        for (const int value : {x * 255 / side, y * 255 / side, f * 30})
          pixels.push_back(static_cast<std::uint8_t>(value));
  write_gif(folder / "a.gif", {pixels, n, side, side});
  const Decoded decoded = decode(folder / "a.gif");
  REQUIRE(decoded.frames.size() == n);
  double sum = 0;
  for (int f = 0; f < n; ++f)
    for (std::size_t i = 0; i < decoded.frames[0].size(); ++i)
      sum += std::abs(pixels[static_cast<std::size_t>(f) * decoded.frames[0].size() + i] -
                      decoded.frames[static_cast<std::size_t>(f)][i]);
  const double mean = sum / static_cast<double>(pixels.size());
  MESSAGE("mean absolute error of a channel: " << mean);
  CHECK(mean < 16);
}

TEST_CASE("more pixels than the palette looks at, one pixel, and one colour all work") {
  TemporaryFolder folder;
  std::vector<std::uint8_t> many(static_cast<std::size_t>(3 * 900 * 900 * 3), 255);
  many[3 * 900 * 451 + 1] = 0;  // a rare colour that the even sample may miss
  write_gif(folder / "many.gif", {many, 3, 900, 900});
  CHECK(decode(folder / "many.gif").frames.size() == 3);
  const std::vector<std::uint8_t> one{12, 34, 56};
  write_gif(folder / "one.gif", {one, 1, 1, 1});
  CHECK(largest_difference(one.data(), decode(folder / "one.gif").frames[0]) == 0);
  const std::vector<std::uint8_t> flat(10 * 16 * 16 * 3, 99);
  write_gif(folder / "flat.gif", {flat, 10, 16, 16});
  CHECK(largest_difference(flat.data(), decode(folder / "flat.gif").frames[9]) == 0);
}

TEST_CASE("bad extents and options are refused, a bad folder is reported") {
  TemporaryFolder folder;
  const std::vector<std::uint8_t> pixels(12);
  const dvla::io::RgbFrames sound{pixels, 1, 2, 2};
  CHECK_THROWS_AS(write_gif(folder / "a.gif", {pixels, 2, 2, 2}), dvla::Error);
  CHECK_THROWS_AS(write_gif(folder / "a.gif", {pixels, 0, 2, 2}), dvla::Error);
  CHECK_THROWS_AS(write_gif(folder / "a.gif", sound, {.delay_centiseconds = -1}), dvla::Error);
  CHECK_THROWS_AS(write_gif(folder / "a.gif", sound, {.loops = 65536}), dvla::Error);
  CHECK(contains(message_of<dvla::Error>([&] { write_gif(folder / "no/a.gif", sound); }), "No such file"));
  CHECK(files_in(folder.path()) == 0);
}
