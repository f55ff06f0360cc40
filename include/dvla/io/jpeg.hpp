// A picture through JPEG and back, in memory (libjpeg): whoever learned from pictures that were stored so expects what that loses.
// Writes and reads no files.
#pragma once

#include <array>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
// clang-format off: it wants <cstdio> before it
#include <jpeglib.h>
// clang-format on

#include "dvla/core/error.hpp"

namespace dvla::io {

namespace detail {

/// Both directions, and what was encoded. libjpeg would end the process where it fails; here it jumps back instead, over its own
/// frames alone, and the calls say false.
class JpegCoder {
 public:
  JpegCoder() {
    compress_.err = decompress_.err = jpeg_std_error(&failure_.manager);
    failure_.manager.error_exit = [](j_common_ptr codec) {
      auto* const failure = reinterpret_cast<Failure*>(codec->err);
      codec->err->format_message(codec, failure->text.data());
      std::longjmp(failure->back, 1);
    };
  }
  ~JpegCoder() {
    jpeg_destroy_compress(&compress_);
    jpeg_destroy_decompress(&decompress_);
    std::free(encoded_);
  }
  JpegCoder(const JpegCoder&) = delete;
  JpegCoder& operator=(const JpegCoder&) = delete;

  /// rgb: [height, width, 3].
  bool encode(std::uint8_t* rgb, unsigned width, unsigned height, int quality) {
    if (setjmp(failure_.back) != 0) return false;
    jpeg_create_compress(&compress_);
    jpeg_mem_dest(&compress_, &encoded_, &bytes_);
    compress_.image_width = width;
    compress_.image_height = height;
    compress_.input_components = 3;
    compress_.in_color_space = JCS_RGB;
    jpeg_set_defaults(&compress_);
    jpeg_set_quality(&compress_, quality, TRUE);
    jpeg_start_compress(&compress_, TRUE);
    while (compress_.next_scanline < height) {
      JSAMPROW row = rgb + std::size_t{3} * width * compress_.next_scanline;
      jpeg_write_scanlines(&compress_, &row, 1);
    }
    jpeg_finish_compress(&compress_);
    return true;
  }
  /// Into as many bytes as were encoded.
  bool decode(std::uint8_t* rgb) {
    if (setjmp(failure_.back) != 0) return false;
    jpeg_create_decompress(&decompress_);
    jpeg_mem_src(&decompress_, encoded_, bytes_);
    jpeg_read_header(&decompress_, TRUE);
    decompress_.out_color_space = JCS_RGB;
    decompress_.dct_method = JDCT_IFAST;
    jpeg_start_decompress(&decompress_);
    while (decompress_.output_scanline < decompress_.output_height) {
      JSAMPROW row = rgb + std::size_t{3} * decompress_.output_width * decompress_.output_scanline;
      jpeg_read_scanlines(&decompress_, &row, 1);
    }
    jpeg_finish_decompress(&decompress_);
    return true;
  }
  const char* why() const { return failure_.text.data(); }

 private:
  struct Failure {
    jpeg_error_mgr manager{};  // first: what libjpeg points to
    std::jmp_buf back{};
    std::array<char, JMSG_LENGTH_MAX> text{};
  };
  Failure failure_;
  jpeg_compress_struct compress_{};
  jpeg_decompress_struct decompress_{};
  unsigned char* encoded_ = nullptr;
  unsigned long bytes_ = 0;
};

}  // namespace detail

/// rgb: [height, width, 3], in place. As TensorFlow's encode_jpeg and decode_image do it: at this quality, with colours of half the
/// resolution and smooth upsampling; encoded by the slow integer transform, decoded by the fast one, which other decoders do not
/// take (PIL's bytes are up to 8 away). Throws Error where libjpeg fails.
inline void through_jpeg(std::span<std::uint8_t> rgb, int width, int height, int quality = 95) {
  if (width < 1 || height < 1 ||
      rgb.size() != std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height))
    throw Error("through_jpeg: ", rgb.size(), " bytes are no picture of ", width, " x ", height, " pixels");
  detail::JpegCoder coder;
  if (!coder.encode(rgb.data(), static_cast<unsigned>(width), static_cast<unsigned>(height), quality) ||
      !coder.decode(rgb.data()))
    throw Error("through_jpeg: libjpeg says: ", coder.why());
}

}  // namespace dvla::io
