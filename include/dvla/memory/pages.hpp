// Memory that is not needed for a while goes back to the system and keeps its address: how a unit's values are
// released and gathered again without a tensor, or a span, that moves.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace dvla::detail {

/// Afterwards all of it is 0; whole pages are the system's again until they are next written. Of pages that
/// the system does not take back (locked ones) only the first holds. Not for pages that a device copies from or
/// to, which would go on with the old ones, and not for a private view of a file, whose contents came back.
inline void drop_pages(std::span<std::byte> bytes) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data()), end = begin + bytes.size();
  const std::uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  void* const whole = reinterpret_cast<void*>(first);
  // A shared mapping keeps its contents under MADV_DONTNEED, a private one has no MADV_REMOVE.
  if (first >= last || (::madvise(whole, last - first, MADV_REMOVE) != 0 &&
                        ::madvise(whole, last - first, MADV_DONTNEED) != 0)) {
    std::fill(bytes.begin(), bytes.end(), std::byte{});
    return;
  }
  std::memset(bytes.data(), 0, first - begin);
  std::memset(reinterpret_cast<void*>(last), 0, end - last);
}

}  // namespace dvla::detail
