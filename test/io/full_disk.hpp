// A disk that is full for some files, and a file system that maps none, for anybody: the program's own write(2),
// writev(2) and mmap(2) stand before the C library's. To be included by one file of a program.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>

namespace dvla_test {

/// Whether a file of that path takes no more bytes. Set it while no other thread runs.
inline std::function<bool(const std::string&)> is_full;
inline bool maps_files = true;

/// While it lives.
struct FullDisk {
  explicit FullDisk(std::function<bool(const std::string&)> full) { is_full = std::move(full); }
  ~FullDisk() { is_full = {}; }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;
};

inline bool refuses(int descriptor) {
  if (!is_full) return false;
  std::error_code none;
  const auto path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(descriptor), none);
  if (none || !is_full(path.string())) return false;
  errno = ENOSPC;
  return true;
}

}  // namespace dvla_test

extern "C" {
ssize_t write(int descriptor, const void* bytes, size_t count) {
  return dvla_test::refuses(descriptor) ? -1 : ::syscall(SYS_write, descriptor, bytes, count);
}
ssize_t writev(int descriptor, const iovec* parts, int count) {
  return dvla_test::refuses(descriptor) ? -1 : ::syscall(SYS_writev, descriptor, parts, count);
}
void* mmap(void* address, size_t size, int protection, int flags, int descriptor, off_t offset) noexcept {
  if (descriptor >= 0 && !dvla_test::maps_files) {
    errno = ENODEV;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, size, protection, flags, descriptor, offset));
}
}
