// Mapping: a range of memory of fixed size from the system, of this process alone or to be shared with a child.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/core/process_limits.hpp"

namespace dvla::detail {

/// Zeroed memory, 2 MiB aligned; `huge`: so that huge pages back it, which what is written to sparsely does
/// without. Pages come on first use; `prefault` brings the first ones at once, so that no later touch costs a
/// fault (5 to 14 times a copy). `shared`: a file in memory without a name (memfd), which a child process can
/// map too. Throws Error.
class Mapping {
 public:
  static constexpr std::size_t huge_page = std::size_t{2} << 20;

  Mapping(std::size_t bytes, bool shared, std::string what, bool huge = true)
      : what_(std::move(what)), bytes_(round_up(bytes)), mapped_(bytes_ + huge_page) {
    if (shared) {
      descriptor_ = ::memfd_create("dvla", MFD_CLOEXEC);
      if (descriptor_ < 0 || ::ftruncate(descriptor_, static_cast<off_t>(bytes_)) != 0) fail(bytes);
    }
    base_ =
        ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) fail(bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    data_ = reinterpret_cast<std::byte*>((address + huge_page - 1) / huge_page * huge_page);
    if (shared && bytes_ > 0 &&
        ::mmap(data_, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, descriptor_,
               0) == MAP_FAILED)
      fail(bytes);
    if (huge && bytes >= huge_page) (void)::madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: may be refused
  }
  ~Mapping() { release(); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }
  /// Of the file that is mapped, offset 0 at data(); -1 unless `shared`.
  int descriptor() const { return descriptor_; }

  void prefault(std::size_t bytes) {
    bytes = std::min(bytes, bytes_);
    if (bytes > usable_memory_bytes()) {  // Linux would promise the pages and kill whoever touches them
      errno = ENOMEM;
      refuse(bytes);
    }
    if (bytes > 0 && !populate(bytes)) refuse(bytes);
  }

 private:
  static std::size_t round_up(std::size_t bytes) { return (bytes + huge_page - 1) / huge_page * huge_page; }
  [[noreturn]] void refuse(std::size_t bytes) const {
    throw Error(what_, ": the system refused ", bytes, " bytes of memory (", std::strerror(errno),
                "); make the pool smaller or free memory");
  }
  [[noreturn]] void fail(std::size_t bytes) {
    const int reason = errno;
    release();
    errno = reason;
    refuse(bytes);
  }
  void release() {
    if (base_ != MAP_FAILED) ::munmap(base_, mapped_);
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  bool populate(std::size_t bytes) {
#ifdef MADV_POPULATE_WRITE
    if (::madvise(data_, bytes, MADV_POPULATE_WRITE) == 0) return true;
    if (errno != EINVAL) return false;  // EINVAL: a kernel before 5.14, so touch the pages by hand
#endif
    for (std::size_t i = 0; i < bytes; i += 4096) {
      auto* const page = const_cast<volatile std::byte*>(data_ + i);
      *page = *page;
    }
    return true;
  }

  const std::string what_;
  std::size_t bytes_, mapped_;
  int descriptor_ = -1;
  void* base_ = MAP_FAILED;
  std::byte* data_ = nullptr;
};

}  // namespace dvla::detail
