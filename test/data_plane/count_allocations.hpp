// Counts what this program takes from the heap, by any road: operator new and the C functions are both
// replaced (operator new calls malloc in libstdc++, and is counted once, there). For one source file of a
// test program; glibc only; not under sanitizers, which replace the same functions.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#if __has_include(<mm_malloc.h>)
#include <mm_malloc.h>  // declares posix_memalign too, and clang wants that to come first
#endif

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
}

namespace allocation_count {
inline std::atomic<std::int64_t> by_new{0};
inline std::atomic<std::int64_t> by_malloc{0};  ///< all of the C functions, those under operator new included
}  // namespace allocation_count

extern "C" {
void* malloc(std::size_t bytes) noexcept {
  allocation_count::by_malloc.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) noexcept {
  allocation_count::by_malloc.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, bytes);
}
void* realloc(void* pointer, std::size_t bytes) noexcept {
  allocation_count::by_malloc.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(pointer, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
  allocation_count::by_malloc.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept { return memalign(alignment, bytes); }
int posix_memalign(void** pointer, std::size_t alignment, std::size_t bytes) noexcept {
  *pointer = memalign(alignment, bytes);
  return *pointer == nullptr ? ENOMEM : 0;
}
}

// The array and nothrow forms of libstdc++ call these two.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  allocation_count::by_new.fetch_add(1, std::memory_order_relaxed);
  if (void* pointer = std::malloc(bytes == 0 ? 1 : bytes)) return pointer;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  allocation_count::by_new.fetch_add(1, std::memory_order_relaxed);
  if (void* pointer = memalign(static_cast<std::size_t>(alignment), bytes)) return pointer;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* pointer) noexcept { std::free(pointer); }
[[gnu::noinline]] void operator delete(void* pointer, std::size_t) noexcept { std::free(pointer); }
[[gnu::noinline]] void operator delete(void* pointer, std::align_val_t) noexcept { std::free(pointer); }
[[gnu::noinline]] void operator delete(void* pointer, std::size_t, std::align_val_t) noexcept {
  std::free(pointer);
}
