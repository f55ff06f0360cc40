// Scalars for TensorBoard: an event file written by hand (TFRecord framing with masked CRC-32C around two
// tiny protobuf messages), because Debian has no library and a second protobuf beside Torch's is asking for
// trouble. Reference: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/util/event.proto and
// summary.proto. Scalars only: no images, histograms or graphs.
#pragma once

#include <array>
#include <bit>
#include <boost/crc.hpp>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

#include "dvla/io/file_descriptor.hpp"

namespace dvla::io {

/// CRC-32C (Castagnoli), as used by TFRecord, ext4 and iSCSI.
inline std::uint32_t crc32c(std::string_view bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}
/// As stored in a TFRecord, so that a checksum over checksums stays sound.
inline std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xa282ead8U;
}

/// Appends scalars to one event file. TensorBoard shows a file whose name contains "tfevents". One thread at
/// a time. Records gather in a buffer that goes out when it reaches `flush_bytes`, or with the first scalar
/// that comes `flush_after` or later after the last flush, or on flush() and close(). Failures throw Error and
/// cost the records in the buffer; the writer may be used on, for the file ends with a whole record.
class TensorBoardWriter {
 public:
  static constexpr std::size_t flush_bytes = 64 * 1024;
  static constexpr std::chrono::seconds flush_after{2};
  static constexpr std::size_t max_tag_bytes = 1024;

  /// The file must not exist yet; its folder must. `start`: the step with which a run begins or goes on; of earlier
  /// files in its folder readers leave out all from there on.
  explicit TensorBoardWriter(std::filesystem::path path, std::optional<std::int64_t> start = {})
      : path_(std::move(path)) {
    file_ = detail::open_file(path_, O_WRONLY | O_CREAT | O_EXCL | O_APPEND);
    if (!file_.is_open()) detail::throw_errno("create the event file", path_);
    append_record(double_field(1, unix_seconds()) + bytes_field(3, "brain.Event:2"));
    const std::string status_start = key(1, 0) + varint(1);  // of tensorflow.SessionLog
    if (start)
      append_record(double_field(1, unix_seconds()) + key(2, 0) + varint(static_cast<std::uint64_t>(*start)) +
                    bytes_field(7, status_start));
    try {
      flush();
    } catch (const Error&) {
      ::unlink(path_.c_str());
      throw;
    }
  }
  TensorBoardWriter(TensorBoardWriter&&) noexcept = default;
  TensorBoardWriter& operator=(TensorBoardWriter&&) = delete;
  /// Flushes what it can; call close() to hear of failures.
  ~TensorBoardWriter() {
    try {
      close();
    } catch (const Error&) {
    }
  }

  /// One point of the curve `tag`; step is any 64-bit integer, wall_time seconds since 1970.
  void scalar(std::string_view tag, std::int64_t step, float value, double wall_time = unix_seconds()) {
    if (!file_.is_open()) throw Error("cannot add a scalar to '" + path_.string() + "': it is closed");
    if (tag.empty() || tag.size() > max_tag_bytes)
      throw Error("cannot add a scalar to '" + path_.string() + "': its tag has " +
                  std::to_string(tag.size()) + " bytes, allowed are 1 to " + std::to_string(max_tag_bytes));
    const std::string summary_value = bytes_field(1, tag) + float_field(2, value);
    std::string event = double_field(1, wall_time);
    event += key(2, 0) + varint(static_cast<std::uint64_t>(step));
    event += bytes_field(5, bytes_field(1, summary_value));
    append_record(event);
    if (buffer_.size() >= flush_bytes || std::chrono::steady_clock::now() - last_flush_ >= flush_after)
      flush();
  }

  /// Hands everything to the operating system (no fsync).
  void flush() {
    last_flush_ = std::chrono::steady_clock::now();
    const std::string records = std::exchange(buffer_, {});  // else a full disk would make it grow
    for (std::span left = std::as_bytes(std::span(records)); !left.empty();) {
      const std::ptrdiff_t written = detail::write_some(file_.get(), left);
      if (written < 0) {
        const int code = errno;
        (void)::ftruncate(file_.get(), whole_);  // readers stop at a torn record
        detail::throw_errno("write the event file", path_, code);
      }
      left = left.subspan(static_cast<std::size_t>(written));
    }
    whole_ += static_cast<off_t>(records.size());
  }
  void close() {
    if (!file_.is_open()) return;
    flush();
    if (const int code = file_.close(); code != 0) detail::throw_errno("close the event file", path_, code);
  }
  const std::filesystem::path& path() const { return path_; }

  static double unix_seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }

 private:
  static_assert(std::endian::native == std::endian::little);
  template <class T>
  static std::string raw(T value) {
    const auto bytes = std::bit_cast<std::array<char, sizeof(T)>>(value);
    return std::string(bytes.data(), bytes.size());
  }
  static std::string varint(std::uint64_t value) {
    std::string out;
    for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7f) | 0x80);
    return out + static_cast<char>(value);
  }
  // Protobuf wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
  static std::string key(unsigned field, unsigned wire_type) { return varint(field << 3 | wire_type); }
  static std::string double_field(unsigned field, double value) { return key(field, 1) + raw(value); }
  static std::string float_field(unsigned field, float value) { return key(field, 5) + raw(value); }
  static std::string bytes_field(unsigned field, std::string_view bytes) {
    return key(field, 2) + varint(bytes.size()) + std::string(bytes);
  }
  void append_record(const std::string& data) {
    const std::string length = raw(static_cast<std::uint64_t>(data.size()));
    buffer_ += length + raw(masked_crc32c(length)) + data + raw(masked_crc32c(data));
  }

  std::filesystem::path path_;
  detail::FileDescriptor file_;
  std::string buffer_;
  off_t whole_ = 0;  ///< bytes of the file, up to its last whole record
  std::chrono::steady_clock::time_point last_flush_{};
};

}  // namespace dvla::io
