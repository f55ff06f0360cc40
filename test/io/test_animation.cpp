// dvla-test: link=gif
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdlib>

#include "dvla/io/animation.hpp"
#include "temporary_folder.hpp"

using dvla::io::GifWriter;
using namespace dvla_test;

namespace {

using Pixels = std::vector<std::uint8_t>;

struct Decoded {
  int width = 0, height = 0;
  std::vector<Pixels> frames;  // as shown: each drawn over the last
  std::vector<int> delays;
  bool loops_for_ever = false;
};

Decoded decode(const std::filesystem::path& path) {
  int code = 0;
  GifFileType* gif = DGifOpenFileName(path.c_str(), &code);
  REQUIRE(gif != nullptr);
  REQUIRE(DGifSlurp(gif) == GIF_OK);
  Decoded out{gif->SWidth, gif->SHeight, {}, {}, false};
  Pixels screen(static_cast<std::size_t>(out.width * out.height * 3));
  for (int i = 0; i < gif->ImageCount; ++i) {
    const SavedImage& image = gif->SavedImages[i];
    const GifImageDesc& desc = image.ImageDesc;
    const GifByteType* index = image.RasterBits;
    REQUIRE(desc.ColorMap != nullptr);
    for (int y = desc.Top; y < desc.Top + desc.Height; ++y)
      for (int x = desc.Left; x < desc.Left + desc.Width; ++x) {
        const GifColorType color = desc.ColorMap->Colors[*index++];
        std::uint8_t* pixel = &screen[static_cast<std::size_t>((y * out.width + x) * 3)];
        pixel[0] = color.Red, pixel[1] = color.Green, pixel[2] = color.Blue;
      }
    out.frames.push_back(screen);
    GraphicsControlBlock control{};
    REQUIRE(DGifSavedExtensionToGCB(gif, i, &control) == GIF_OK);
    CHECK(control.DisposalMode == DISPOSE_DO_NOT);
    CHECK(control.TransparentColor == NO_TRANSPARENT_COLOR);
    out.delays.push_back(control.DelayTime);
    for (int e = 0; e < image.ExtensionBlockCount; ++e)
      if (image.ExtensionBlocks[e].Function == APPLICATION_EXT_FUNC_CODE) out.loops_for_ever = true;
  }
  DGifCloseFile(gif, &code);
  return out;
}

int largest_difference(const Pixels& a, const Pixels& b) {
  int largest = 0;
  for (std::size_t i = 0; i < b.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace

TEST_CASE("an animation of few colours decodes exactly, frame by frame, and loops") {
  TemporaryFolder folder;
  constexpr int n = 6, height = 20, width = 30;
  std::vector<Pixels> frames(n, Pixels(height * width * 3, 255));
  for (int f = 0; f < n; ++f)  // a red square that wanders over white; the last two frames are equal
    for (int y = 4; y < 9; ++y)
      for (int x = 4 * std::min(f, 4); x < 4 * std::min(f, 4) + 5; ++x) {
        std::uint8_t* const pixel =
            &frames[static_cast<std::size_t>(f)][static_cast<std::size_t>((y * width + x) * 3)];
        pixel[0] = 200, pixel[1] = 10, pixel[2] = 30;
      }
  GifWriter gif(folder / "a.gif", height, width);
  for (int f = 0; f < n; ++f) gif.add(frames[static_cast<std::size_t>(f)], f == n - 1 ? 500 : 7);
  gif.commit();
  const Decoded decoded = decode(folder / "a.gif");
  CHECK(decoded.width == width);
  CHECK(decoded.height == height);
  CHECK(decoded.loops_for_ever);
  CHECK(decoded.delays == std::vector<int>{7, 7, 7, 7, 7, 500});
  REQUIRE(decoded.frames.size() == n);
  for (std::size_t f = 0; f < n; ++f) CHECK(largest_difference(frames[f], decoded.frames[f]) == 0);
}

TEST_CASE("smooth colours stay close") {
  TemporaryFolder folder;
  constexpr int n = 8, side = 96;
  std::vector<Pixels> frames;
  GifWriter gif(folder / "a.gif", side, side);
  for (int f = 0; f < n; ++f) {
    Pixels pixels;
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x)
        for (const int value : {x * 255 / side, y * 255 / side, f * 30})
          pixels.push_back(static_cast<std::uint8_t>(value));
    gif.add(pixels, 5);
    frames.push_back(pixels);
  }
  gif.commit();
  const Decoded decoded = decode(folder / "a.gif");
  REQUIRE(decoded.frames.size() == n);
  double sum = 0, count = 0;
  for (std::size_t f = 0; f < n; ++f)
    for (std::size_t i = 0; i < frames[f].size(); ++i, ++count)
      sum += std::abs(frames[f][i] - decoded.frames[f][i]);
  MESSAGE("mean absolute error of a channel: " << sum / count);
  CHECK(sum / count < 8);
}

TEST_CASE("one pixel, one colour, and a single pixel that changes all work") {
  TemporaryFolder folder;
  const Pixels one{12, 34, 56};
  GifWriter single(folder / "one.gif", 1, 1);
  single.add(one, 5);
  single.commit();
  CHECK(largest_difference(one, decode(folder / "one.gif").frames[0]) == 0);
  Pixels flat(900 * 900 * 3, 99);
  GifWriter gif(folder / "flat.gif", 900, 900);
  for (int f = 0; f < 3; ++f) {
    if (f == 2) flat[900 * 900 * 3 - 2] = 7;
    gif.add(flat, 5);
  }
  gif.commit();
  const Decoded decoded = decode(folder / "flat.gif");
  REQUIRE(decoded.frames.size() == 3);
  CHECK(largest_difference(flat, decoded.frames[2]) == 0);
}

TEST_CASE("a disk that is full is reported, and what was there stays") {
  TemporaryFolder folder;
  write_text(folder / "a.gif", "old");
  Pixels noise(100 * 100 * 3);
  for (std::size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<std::uint8_t>(i * i * 31);
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{1024, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string why = message_of<dvla::Error>([&] {
    GifWriter gif(folder / "a.gif", 100, 100);
    gif.add(noise, 5);
    gif.commit();
  });
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK(contains(why, (folder / "a.gif").string()));
  CHECK(contains(why, "File too large"));
  CHECK(read_text(folder / "a.gif") == "old");
  CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("bad extents and options are refused, a bad folder is reported, and nothing is left behind") {
  TemporaryFolder folder;
  const auto why = [&](int height, int width, std::size_t bytes, int delay, int loops, bool frame) {
    return message_of<dvla::Error>([&] {
      GifWriter gif(folder / "a.gif", height, width, loops);
      if (frame) gif.add(Pixels(bytes), delay);
      gif.commit();
    });
  };
  CHECK(contains(why(0, 2, 12, 5, 0, true), "sides must lie in 1..65535"));
  CHECK(contains(why(2, 65536, 12, 5, 0, true), "sides must lie in 1..65535"));
  CHECK(contains(why(2, 2, 12, 5, 65536, true), "loops in 0..65535"));
  CHECK(contains(why(2, 2, 11, 5, 0, true), "11 bytes of pixels are not [2, 2, 3]"));
  CHECK(contains(why(2, 2, 12, -1, 0, true), "a delay of -1"));
  CHECK(contains(why(2, 2, 12, 5, 0, false), "needs a frame"));
  CHECK(contains(message_of<dvla::Error>([&] { GifWriter(folder / "no/a.gif", 2, 2); }), "No such file"));
  { GifWriter(folder / "b.gif", 2, 2).add(Pixels(12), 5); }  // never committed
  CHECK(files_in(folder.path()) == 0);
  CHECK(why(2, 2, 12, 5, 0, true).empty());
  CHECK(files_in(folder.path()) == 1);
}
