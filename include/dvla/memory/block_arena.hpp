// The block store under every pool: one mapping of fixed size, handed out in 64-byte granules, coalescing.
// Paper: "dual-pool VRAM", here its host form. Segregated free lists with boundary tags (Knuth 1973, 2.5;
// TLSF, Masmano 2004, for the two-level bins): allocate takes the smallest bin that fits, first fit inside
// it. The tags stand beside the memory, not in it, so blocks are 64-byte aligned without waste and a wrong or
// second free is found exactly. Not thread-safe and no policy: host_pool.hpp adds both.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/core/process_limits.hpp"

namespace dvla::detail {

/// Zeroed memory, 2 MiB aligned so that huge pages can back it. Pages come on first use; `prefault` brings
/// the first ones at once, so that no later touch costs a fault (5 to 14 times a copy). `shared`: a file in
/// memory without a name (memfd), which a child process can map too. Throws Error.
class Mapping {
 public:
  static constexpr std::size_t huge_page = std::size_t{2} << 20;

  Mapping(std::size_t bytes, bool shared, std::string what)
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
    if (bytes >= huge_page) (void)::madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: may be refused
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
    throw Error(what_ + ": the system refused " + std::to_string(bytes) + " bytes of memory (" +
                std::strerror(errno) + "); make the pool smaller or free memory");
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

class BlockArena {
 public:
  static constexpr std::size_t granule = 64;

  BlockArena(std::size_t bytes, bool shared, const std::string& what)
      : count_(bytes / granule),
        memory_(bytes, shared, what),
        tags_((count_ + 1) * sizeof(Tag), false, what) {
    if (count_ > 0) set_free(0, count_);
    free_ = count_;
  }

  /// The pages of the first so many bytes, which are given out first.
  void prefault(std::size_t bytes) {
    memory_.prefault(bytes);
    tags_.prefault((bytes / granule + 1) * sizeof(Tag));
  }
  int descriptor() const { return memory_.descriptor(); }
  std::size_t capacity() const { return count_ * granule; }
  std::size_t free_bytes() const { return free_ * granule; }
  std::byte* data() const { return memory_.data(); }
  bool contains(const void* pointer) const {
    const auto* byte = static_cast<const std::byte*>(pointer);
    return byte >= data() && byte < data() + capacity();
  }

  static std::size_t granules(std::size_t bytes) {
    return bytes == 0 ? 1 : bytes / granule + (bytes % granule != 0);
  }

  /// `size` granules aligned to `alignment` bytes, or nullptr when no free block holds them.
  void* allocate(std::size_t size, std::size_t alignment = granule) {
    const std::size_t step = std::max<std::size_t>(alignment / granule, 1);
    if (size > count_ || step > count_) return nullptr;
    Node* node = find(size + step - 1);
    if (node == nullptr) return nullptr;
    const std::size_t found = index_of(node);
    const std::size_t length = tag(found).size();
    unlink(node, length);
    const auto address = reinterpret_cast<std::uintptr_t>(node);
    const std::size_t front =
        ((address + step * granule - 1) / (step * granule) * (step * granule) - address) / granule;
    if (front > 0) set_free(found, front);
    const std::size_t start = found + front;
    tag(start) = Tag(size, true, front > 0);
    if (const std::size_t rest = length - front - size; rest > 0) {
      set_free(start + size, rest);
    } else {
      set_previous_free(start + size, false);
    }
    free_ -= size;
    return data() + start * granule;
  }

  /// Granules of the block that starts at `pointer`, or 0 if no block in use starts there.
  std::size_t size_of(const void* pointer) const {
    if (!contains(pointer)) return 0;
    const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(pointer) - data());
    if (offset % granule != 0) return 0;
    const Tag found = tag(offset / granule);
    return found.used() ? found.size() : 0;
  }

  /// `pointer` starts a block in use. Neighbours that are free become one block with it.
  void deallocate(void* pointer) {
    std::size_t start = static_cast<std::size_t>(static_cast<std::byte*>(pointer) - data()) / granule;
    const Tag freed = tag(start);
    std::size_t length = freed.size();
    free_ += length;
    if (const std::size_t next = start + length; next < count_ && !tag(next).used()) {
      const std::size_t more = tag(next).size();
      unlink(node_at(next), more);
      tag(next) = Tag();
      length += more;
    }
    if (freed.previous_free()) {
      const std::size_t more = length_before(start);
      tag(start) = Tag();
      start -= more;
      unlink(node_at(start), more);
      length += more;
    }
    set_free(start, length);
  }

  std::size_t largest_free() const {
    for (std::size_t bin = bins; bin-- > 0;) {
      std::size_t largest = 0;
      for (const Node* node = heads_[bin]; node != nullptr; node = node->next) {
        largest = std::max(largest, tag(index_of(node)).size());
      }
      if (largest > 0) return largest * granule;
    }
    return 0;
  }

 private:
  struct Node {
    Node* next;
    Node* previous;
  };
  /// At a block's first granule: its size and state. Zero everywhere else.
  class Tag {
   public:
    Tag() = default;
    Tag(std::size_t size, bool used, bool previous_free)
        : bits_(size << 2 | (previous_free ? 2U : 0U) | (used ? 1U : 0U)) {}
    std::size_t size() const { return bits_ >> 2; }
    bool used() const { return (bits_ & 1U) != 0; }
    bool previous_free() const { return (bits_ & 2U) != 0; }
    void previous_free(bool value) { bits_ = (bits_ & ~std::size_t{2}) | (value ? 2U : 0U); }

   private:
    std::size_t bits_ = 0;
  };
  static constexpr std::size_t bins = 8 + 61 * 4;

  /// Sizes below 8 have a bin each, above there are four bins to a power of two.
  static std::size_t bin_of(std::size_t size) {
    if (size < 8) return size;
    const auto exponent = static_cast<std::size_t>(std::bit_width(size) - 1);
    return 8 + (exponent - 3) * 4 + ((size >> (exponent - 2)) & 3);
  }
  Tag& tag(std::size_t index) const { return reinterpret_cast<Tag*>(tags_.data())[index]; }
  Node* node_at(std::size_t index) const { return reinterpret_cast<Node*>(data() + index * granule); }
  std::size_t index_of(const Node* node) const {
    return static_cast<std::size_t>(reinterpret_cast<const std::byte*>(node) - data()) / granule;
  }
  /// A free block says its length in its last eight bytes too: that is how its right neighbour finds its
  /// start.
  std::size_t& length_before(std::size_t index) const {
    return *reinterpret_cast<std::size_t*>(data() + index * granule - sizeof(std::size_t));
  }
  void set_previous_free(std::size_t index, bool value) {
    if (index < count_) tag(index).previous_free(value);
  }
  void set_free(std::size_t start, std::size_t length) {
    tag(start) = Tag(length, false, false);
    length_before(start + length) = length;
    set_previous_free(start + length, true);
    Node*& head = heads_[bin_of(length)];
    Node* node = node_at(start);
    node->next = head;
    node->previous = nullptr;
    if (head != nullptr) head->previous = node;
    head = node;
    mark(bin_of(length), true);
  }
  void unlink(Node* node, std::size_t length) {
    if (node->next != nullptr) node->next->previous = node->previous;
    if (node->previous != nullptr) {
      node->previous->next = node->next;
    } else {
      heads_[bin_of(length)] = node->next;
      mark(bin_of(length), node->next != nullptr);
    }
  }
  void mark(std::size_t bin, bool value) {
    const std::uint64_t bit = std::uint64_t{1} << (bin % 64);
    value ? filled_[bin / 64] |= bit : filled_[bin / 64] &= ~bit;
  }
  Node* find(std::size_t size) const {
    const std::size_t own = bin_of(size);
    for (Node* node = heads_[own]; node != nullptr; node = node->next) {
      if (tag(index_of(node)).size() >= size) return node;
    }
    for (std::size_t word = (own + 1) / 64; word < filled_.size(); ++word) {
      const unsigned skip = word == (own + 1) / 64 ? (own + 1) % 64 : 0;
      if (const std::uint64_t rest = filled_[word] >> skip << skip; rest != 0) {
        return heads_[word * 64 + static_cast<std::size_t>(std::countr_zero(rest))];
      }
    }
    return nullptr;
  }

  std::size_t count_;
  std::size_t free_ = 0;
  Mapping memory_;
  Mapping tags_;
  std::array<Node*, bins> heads_{};
  std::array<std::uint64_t, (bins + 63) / 64> filled_{};
};

}  // namespace dvla::detail
