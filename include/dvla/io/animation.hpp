// RGB frames as a looping GIF, through giflib 5 (link -lgif), a frame at a time: each is cropped to what
// changed since the last and has its own palette of at most 256 colours (giflib's median cut, then the mean
// of what each colour stands for). No dithering (it flickers), no transparency, no reading.
#pragma once

#include <gif_lib.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "dvla/io/atomic_file.hpp"

namespace dvla::io {

namespace detail {

/// A palette for some pixels, and each pixel's place in it.
struct GifPalette {
  std::array<GifColorType, 256> colors{};
  std::vector<GifByteType> index;

  GifPalette(std::vector<GifByteType>& red, std::vector<GifByteType>& green, std::vector<GifByteType>& blue)
      : index(red.size()) {
    int size = static_cast<int>(colors.size());
    {
      static std::mutex giflib_sorts_through_a_global;
      const std::lock_guard lock(giflib_sorts_through_a_global);
      if (GifQuantizeBuffer(static_cast<unsigned>(red.size()), 1, &size, red.data(), green.data(),
                            blue.data(), index.data(), colors.data()) != GIF_OK)
        throw std::bad_alloc();  // the only way it fails
    }
    // giflib works on 5 bits a channel, so its white is 248: take the mean of the true colours instead.
    std::array<std::array<std::uint64_t, 4>, 256> sums{};
    for (std::size_t i = 0; i < index.size(); ++i) {
      auto& sum = sums[index[i]];
      sum[0] += red[i], sum[1] += green[i], sum[2] += blue[i], ++sum[3];
    }
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const std::uint64_t n = sums[i][3];
      if (n == 0) continue;
      const auto mean = [&](std::size_t c) { return static_cast<GifByteType>((sums[i][c] + n / 2) / n); };
      colors[i] = {mean(0), mean(1), mean(2)};
    }
  }
};

}  // namespace detail

/// Writes an animation frame by frame; it appears under `path`, whole, on commit(), and without one there is
/// nothing. Memory: two frames, whatever the number. One thread at a time; writers of different files may run
/// side by side. Everything throws Error, naming the path; after a failure the writer is of no more use.
class GifWriter {
 public:
  /// Sides of 1 to 65535 pixels. `loops`: 0 to 65535; 0 = for ever. Creates a temporary file at once.
  GifWriter(const std::filesystem::path& path, int height, int width, int loops = 0)
      : height_(height), width_(width), file_(path) {
    const auto side = [](int pixels) { return pixels >= 1 && pixels <= 65535; };
    if (!side(height) || !side(width) || loops < 0 || loops > 65535)
      refuse("frames of " + std::to_string(height) + " x " + std::to_string(width) + " pixels, " +
             std::to_string(loops) + " loops; sides must lie in 1..65535, loops in 0..65535");
    int code = 0;
    gif_.reset(EGifOpen(this, &GifWriter::write, &code));
    if (!gif_) fail(code);
    EGifSetGifVersion(gif_.get(), true);
    check(EGifPutScreenDesc(gif_.get(), width, height, 8, 0, nullptr));
    const std::array<GifByteType, 3> loop{1, low(loops), high(loops)};
    check(EGifPutExtensionLeader(gif_.get(), APPLICATION_EXT_FUNC_CODE));
    check(EGifPutExtensionBlock(gif_.get(), 11, "NETSCAPE2.0"));
    check(EGifPutExtensionBlock(gif_.get(), 3, loop.data()));
    check(EGifPutExtensionTrailer(gif_.get()));
  }
  GifWriter(const GifWriter&) = delete;
  GifWriter& operator=(const GifWriter&) = delete;

  /// One frame: pixels [height, width, 3], uint8, row-major, red first, shown for `delay` hundredths of a
  /// second (0 to 65535; browsers stretch less than 2).
  void add(std::span<const std::uint8_t> pixels, int delay) {
    if (pixels.size() != static_cast<std::size_t>(height_) * static_cast<std::size_t>(width_) * 3)
      refuse(std::to_string(pixels.size()) + " bytes of pixels are not [" + std::to_string(height_) + ", " +
             std::to_string(width_) + ", 3]");
    if (delay < 0 || delay > 65535)
      refuse("a delay of " + std::to_string(delay) + " hundredths of a second is not in 0..65535");
    const auto [left, top, right, bottom] = changed(pixels);
    std::vector<GifByteType> red, green, blue;
    for (int y = top; y < bottom; ++y)
      for (int x = left; x < right; ++x) {
        const std::uint8_t* const pixel = &pixels[at(y, x)];
        red.push_back(pixel[0]), green.push_back(pixel[1]), blue.push_back(pixel[2]);
      }
    detail::GifPalette palette(red, green, blue);
    const std::unique_ptr<ColorMapObject, decltype(&GifFreeMapObject)> colors(
        GifMakeMapObject(256, palette.colors.data()), &GifFreeMapObject);
    if (!colors) throw std::bad_alloc();
    const std::array<GifByteType, 4> control{DISPOSE_DO_NOT << 2, low(delay), high(delay), 0};
    check(EGifPutExtension(gif_.get(), GRAPHICS_EXT_FUNC_CODE, control.size(), control.data()));
    check(EGifPutImageDesc(gif_.get(), left, top, right - left, bottom - top, false, colors.get()));
    const auto columns = static_cast<std::size_t>(right - left);
    for (std::size_t i = 0; i < palette.index.size(); i += columns)
      check(EGifPutLine(gif_.get(), &palette.index[i], right - left));
    before_.assign(pixels.begin(), pixels.end());
  }

  /// Throws Error if there is no frame.
  void commit() {
    if (before_.empty()) refuse("an animation needs a frame");
    int code = 0;
    if (EGifCloseFile(gif_.release(), &code) != GIF_OK) fail(code);
    file_.commit();
  }

 private:
  struct Rectangle {
    int left, top, right, bottom;  ///< half-open
  };
  struct Close {
    void operator()(GifFileType* gif) const { EGifCloseFile(gif, nullptr); }
  };

  static GifByteType low(int value) { return static_cast<GifByteType>(value & 255); }
  static GifByteType high(int value) { return static_cast<GifByteType>(value >> 8); }
  std::size_t at(int y, int x) const {
    return (static_cast<std::size_t>(y) * static_cast<std::size_t>(width_) + static_cast<std::size_t>(x)) * 3;
  }

  /// Where `now` differs from the frame before; at least one pixel.
  Rectangle changed(std::span<const std::uint8_t> now) const {
    Rectangle all{0, 0, width_, height_};
    if (before_.empty()) return all;
    int &left = all.left, &top = all.top, &right = all.right, &bottom = all.bottom;
    const auto same = [&](int y, int x, int pixels) {
      return std::equal(&now[at(y, x)], &now[at(y, x)] + 3 * pixels, &before_[at(y, x)]);
    };
    const auto same_column = [&](int x) {
      for (int y = top; y < bottom; ++y)
        if (!same(y, x, 1)) return false;
      return true;
    };
    while (top + 1 < bottom && same(top, 0, width_)) ++top;
    while (top + 1 < bottom && same(bottom - 1, 0, width_)) --bottom;
    while (left + 1 < right && same_column(left)) ++left;
    while (left + 1 < right && same_column(right - 1)) --right;
    return all;
  }

  /// giflib's way out. It is C, so an exception waits until it is back.
  static int write(GifFileType* gif, const GifByteType* bytes, int count) {
    auto& self = *static_cast<GifWriter*>(gif->UserData);
    try {
      self.file_.write(std::as_bytes(std::span(bytes, static_cast<std::size_t>(count))));
      return count;
    } catch (...) {
      self.thrown_ = std::current_exception();
      return 0;
    }
  }
  void check(int result) {
    if (result != GIF_OK) fail(gif_->Error);
  }
  [[noreturn]] void fail(int code) {
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
    const char* const text = GifErrorString(code);
    refuse(std::string("giflib says ") + (text != nullptr ? text : "nothing"));
  }
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error("cannot write '" + file_.path().string() + "': " + why);
  }

  int height_, width_;
  AtomicFile file_;
  std::vector<std::uint8_t> before_;
  std::exception_ptr thrown_;
  std::unique_ptr<GifFileType, Close> gif_;  // before file_ goes: closing writes
};

}  // namespace dvla::io
