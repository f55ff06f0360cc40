// RGB frames as PNG, through libpng's simplified interface (link -lpng). Eight bits a channel, no alpha, no
// reading.
#pragma once

#include <png.h>

#include <cstdint>
#include <vector>

#include "dvla/io/atomic_file.hpp"

namespace dvla::io {

/// Frames of one size: pixels [frames, height, width, 3], uint8, row-major, red first. A view.
struct RgbFrames {
  std::span<const std::uint8_t> pixels;
  int frames = 1;
  int height = 0;
  int width = 0;

  std::size_t frame_bytes() const {
    return static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3;
  }
  /// Throws Error unless every extent is 1..65535 (frames: 1..2^31-1) and `pixels` has just the bytes they
  /// need.
  void check(const std::filesystem::path& path) const {
    if (frames < 1 || height < 1 || width < 1 || height > 65535 || width > 65535 ||
        pixels.size() / frame_bytes() != static_cast<std::size_t>(frames) ||
        pixels.size() % frame_bytes() != 0)
      throw Error("cannot write '" + path.string() + "': " + std::to_string(pixels.size()) +
                  " bytes of pixels are not [" + std::to_string(frames) + ", " + std::to_string(height) +
                  ", " + std::to_string(width) + ", 3] frames with sides of 1 to 65535");
  }
};

/// Writes the picture atomically. `picture` must hold one frame. Throws Error.
inline void write_png(const std::filesystem::path& path, const RgbFrames& picture) {
  picture.check(path);
  if (picture.frames != 1)
    throw Error("cannot write '" + path.string() + "': a PNG holds one frame, not several");
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(picture.width);
  image.height = static_cast<png_uint_32>(picture.height);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::vector<std::byte> encoded(size);
  if (png_image_write_to_memory(&image, encoded.data(), &size, 0, picture.pixels.data(), 0, nullptr) == 0)
    throw Error("cannot write '" + path.string() + "': libpng says " + image.message);
  write_file(path, std::span(encoded).first(size));
}

}  // namespace dvla::io
