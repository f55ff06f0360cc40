// The few POSIX file calls that the io headers share: an owning descriptor, errors that name path and cause,
// and writes that finish. Not a general file layer; not thread-safe per object.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "dvla/core/error.hpp"

namespace dvla::io::detail {

/// Throws Error "cannot <what> '<path>': <text of errno>".
[[noreturn]] inline void throw_errno(const std::string& what, const std::filesystem::path& path,
                                     int code = errno) {
  throw Error("cannot " + what + " '" + path.string() + "': " + std::generic_category().message(code));
}

/// Owns one descriptor; -1 means none. Close errors are ignored here: whoever cares calls close() first.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int descriptor) : descriptor_(descriptor) {}
  FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      close();
      descriptor_ = std::exchange(other.descriptor_, -1);
    }
    return *this;
  }
  ~FileDescriptor() { close(); }

  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  /// 0, or the errno of close(2). The descriptor is gone either way.
  int close() {
    if (descriptor_ < 0) return 0;
    return ::close(std::exchange(descriptor_, -1)) == 0 ? 0 : errno;
  }

 private:
  int descriptor_ = -1;
};

/// open(2) with O_CLOEXEC, repeated on EINTR. Returns a closed descriptor on failure, errno set.
inline FileDescriptor open_file(const std::filesystem::path& path, int flags, mode_t mode = 0666) {
  int descriptor = -1;
  do descriptor = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  while (descriptor < 0 && errno == EINTR);
  return FileDescriptor(descriptor);
}

/// Writes a first part of `bytes` and returns its size (> 0 unless bytes is empty), or -1 with errno set.
inline std::ptrdiff_t write_some(int descriptor, std::span<const std::byte> bytes) {
  constexpr std::size_t at_most = std::size_t{1} << 30;  // Linux takes no more than 2 GiB a call.
  if (bytes.empty()) return 0;
  ssize_t written = -1;
  do written = ::write(descriptor, bytes.data(), std::min(bytes.size(), at_most));
  while (written < 0 && errno == EINTR);
  if (written == 0) errno = EIO;  // Not a thing a regular file does; never loop on it.
  return written == 0 ? -1 : written;
}

}  // namespace dvla::io::detail
