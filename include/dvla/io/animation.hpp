// RGB frames as a looping GIF, through giflib 5 (link -lgif): one palette of at most 256 colours for all
// frames (giflib's median cut, then the mean of what each colour stands for), each frame cropped to what
// changed since the last. No dithering (it flickers), no transparency, no reading.
#pragma once

#include <gif_lib.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dvla/io/image.hpp"

namespace dvla::io {

struct GifOptions {
  int delay_centiseconds = 5;  ///< 0..65535; browsers stretch less than 2
  int loops = 0;               ///< 0..65535; 0 = for ever
};

namespace detail {

/// A palette for all frames, and the palette index for every colour cut to 5 bits a channel.
struct GifPalette {
  std::array<GifColorType, 256> colors{};
  std::vector<std::uint8_t> index = std::vector<std::uint8_t>(32 * 32 * 32);

  static std::size_t cell(const std::uint8_t* pixel) {
    return (static_cast<std::size_t>(pixel[0] >> 3) << 10) | (static_cast<std::size_t>(pixel[1] >> 3) << 5) |
           static_cast<std::size_t>(pixel[2] >> 3);
  }

  GifPalette(std::span<const std::uint8_t> pixels, const std::filesystem::path& path) {
    // At most about a million pixels, evenly spread, decide.
    const std::size_t count = pixels.size() / 3;
    const std::size_t stride = count / 1'000'000 + 1;
    std::vector<GifByteType> red, green, blue;
    for (std::size_t i = 0; i < count; i += stride) {
      red.push_back(pixels[3 * i]);
      green.push_back(pixels[3 * i + 1]);
      blue.push_back(pixels[3 * i + 2]);
    }
    int size = static_cast<int>(colors.size());
    std::vector<GifByteType> assigned(red.size());
    {
      static std::mutex giflib_sorts_through_a_global;
      const std::lock_guard lock(giflib_sorts_through_a_global);
      if (GifQuantizeBuffer(static_cast<unsigned>(red.size()), 1, &size, red.data(), green.data(),
                            blue.data(), assigned.data(), colors.data()) != GIF_OK)
        throw Error("cannot write '" + path.string() +
                    "': giflib could not choose a palette (out of memory?)");
    }
    // giflib works on 5 bits a channel, so its white is 248: take the mean of the true colours instead.
    std::array<std::array<std::uint64_t, 4>, 256> sums{};
    std::array<bool, 32 * 32 * 32> used{};
    for (std::size_t i = 0; i < assigned.size(); ++i) {
      const std::array<std::uint8_t, 3> pixel{red[i], green[i], blue[i]};
      auto& sum = sums[assigned[i]];
      for (std::size_t c = 0; c < 3; ++c) sum[c] += pixel[c];
      ++sum[3];
      index[cell(pixel.data())] = assigned[i];
      used[cell(pixel.data())] = true;
    }
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const std::uint64_t n = sums[i][3];
      if (n == 0) continue;
      const auto mean = [&](std::size_t c) { return static_cast<GifByteType>((sums[i][c] + n / 2) / n); };
      colors[i] = {mean(0), mean(1), mean(2)};
    }
    for (std::size_t c = 0; stride > 1 && c < index.size();
         ++c)  // Colours that the sample missed: the nearest.
      if (!used[c]) index[c] = nearest(c, sums);
  }

 private:
  std::uint8_t nearest(std::size_t cell, const std::array<std::array<std::uint64_t, 4>, 256>& sums) const {
    const auto middle = [&](int shift) { return static_cast<int>((cell >> shift & 31) * 8 + 4); };
    int best = 0, best_distance = 4 * 256 * 256;
    for (int i = 0; i < 256; ++i) {
      if (sums[static_cast<std::size_t>(i)][3] == 0) continue;
      const GifColorType& color = colors[static_cast<std::size_t>(i)];
      const int red = color.Red - middle(10), green = color.Green - middle(5), blue = color.Blue - middle(0);
      const int distance = red * red + green * green + blue * blue;
      if (distance < best_distance) best = i, best_distance = distance;
    }
    return static_cast<std::uint8_t>(best);
  }
};

}  // namespace detail

/// Writes the animation atomically; thread-safe. Memory: the encoded file plus three frames of indices.
/// Throws Error.
inline void write_gif(const std::filesystem::path& path, const RgbFrames& frames,
                      const GifOptions& options = {}) {
  frames.check(path);
  const auto outside = [](int value) { return value < 0 || value > 65535; };
  if (outside(options.delay_centiseconds) || outside(options.loops))
    throw Error("cannot write '" + path.string() + "': delay_centiseconds and loops must lie in 0..65535");
  const detail::GifPalette palette(frames.pixels, path);

  std::vector<std::byte> encoded;
  const OutputFunc collect = [](GifFileType* gif, const GifByteType* bytes, int count) -> int {
    try {
      auto& out = *static_cast<std::vector<std::byte>*>(gif->UserData);
      const auto* first = reinterpret_cast<const std::byte*>(bytes);
      out.insert(out.end(), first, first + count);
      return count;
    } catch (const std::bad_alloc&) {
      return 0;  // giflib is C: it reports a failed write.
    }
  };
  int code = 0;
  const auto fail = [&](int error) {
    const char* text = GifErrorString(error);
    throw Error("cannot write '" + path.string() + "': giflib says " + (text != nullptr ? text : "nothing"));
  };
  GifFileType* const gif = EGifOpen(&encoded, collect, &code);
  if (gif == nullptr) fail(code);
  const auto close = [](GifFileType* file) { EGifCloseFile(file, nullptr); };
  std::unique_ptr<GifFileType, decltype(close)> owner(gif, close);
  const auto check = [&](int result) {
    if (result != GIF_OK) fail(gif->Error);
  };
  const auto low = [](int value) { return static_cast<GifByteType>(value & 255); };
  const auto high = [](int value) { return static_cast<GifByteType>(value >> 8); };

  const std::unique_ptr<ColorMapObject, decltype(&GifFreeMapObject)> colors(
      GifMakeMapObject(256, palette.colors.data()), &GifFreeMapObject);
  if (!colors) throw std::bad_alloc();
  EGifSetGifVersion(gif, true);
  check(EGifPutScreenDesc(gif, frames.width, frames.height, 8, 0, colors.get()));
  const std::array<GifByteType, 3> loop{1, low(options.loops), high(options.loops)};
  check(EGifPutExtensionLeader(gif, APPLICATION_EXT_FUNC_CODE));
  check(EGifPutExtensionBlock(gif, 11, "NETSCAPE2.0"));
  check(EGifPutExtensionBlock(gif, 3, loop.data()));
  check(EGifPutExtensionTrailer(gif));

  const int width = frames.width, height = frames.height;
  const auto row_of = [&](std::vector<GifByteType>& indices, int y) {
    return indices.begin() + std::ptrdiff_t{y} * width;
  };
  std::vector<GifByteType> now(frames.frame_bytes() / 3), before;
  for (int f = 0; f < frames.frames; ++f) {
    const std::uint8_t* pixel = frames.pixels.data() + static_cast<std::size_t>(f) * frames.frame_bytes();
    for (GifByteType& out : now) {
      out = palette.index[detail::GifPalette::cell(pixel)];
      pixel += 3;
    }
    int top = 0, bottom = height, left = 0, right = width;  // Half-open; at least one pixel must remain.
    if (!before.empty()) {
      const auto same_row = [&](int y) {
        return std::equal(row_of(now, y), row_of(now, y) + width, row_of(before, y));
      };
      const auto same_column = [&](int x) {
        for (int y = top; y < bottom; ++y)
          if (row_of(now, y)[x] != row_of(before, y)[x]) return false;
        return true;
      };
      while (top + 1 < bottom && same_row(top)) ++top;
      while (top + 1 < bottom && same_row(bottom - 1)) --bottom;
      while (left + 1 < right && same_column(left)) ++left;
      while (left + 1 < right && same_column(right - 1)) --right;
    }
    const GraphicsControlBlock control{DISPOSE_DO_NOT, false, options.delay_centiseconds,
                                       NO_TRANSPARENT_COLOR};
    std::array<GifByteType, 4> control_bytes{};
    check(EGifGCBToExtension(&control, control_bytes.data()) == 4 ? GIF_OK : GIF_ERROR);
    check(EGifPutExtension(gif, GRAPHICS_EXT_FUNC_CODE, 4, control_bytes.data()));
    check(EGifPutImageDesc(gif, left, top, right - left, bottom - top, false, nullptr));
    for (int y = top; y < bottom; ++y) check(EGifPutLine(gif, &row_of(now, y)[left], right - left));
    std::swap(now, before);
    now.resize(before.size());
  }
  if (EGifCloseFile(owner.release(), &code) != GIF_OK) fail(code);
  write_file(path, encoded);
}

}  // namespace dvla::io
