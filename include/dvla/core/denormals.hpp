// Denormal floats (below 1.2e-38) cost processors up to a hundred times an ordinary operation, and AdamW's
// first moments come to them where a gradient stays 0. Here a thread is told to read and write them as 0.
// Results are equal between threads only if all do; whoever computes calls it first. x86 and ARM; elsewhere
// nothing is changed, and says so.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace dvla {

namespace detail {
#if defined(__SSE2__)
inline constexpr std::uint64_t denormal_flags = 0x8040;  // flush to zero, denormals are zero
inline std::uint64_t float_control() { return _mm_getcsr(); }
inline void set_float_control(std::uint64_t bits) { _mm_setcsr(static_cast<unsigned>(bits)); }
#elif defined(__aarch64__)
inline constexpr std::uint64_t denormal_flags = std::uint64_t{1} << 24;  // FZ: both, in and out
inline std::uint64_t float_control() {
  std::uint64_t bits = 0;
  asm volatile("mrs %0, fpcr" : "=r"(bits));
  return bits;
}
inline void set_float_control(std::uint64_t bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }
#else
inline constexpr std::uint64_t denormal_flags = 0;
inline std::uint64_t float_control() { return 0; }
inline void set_float_control(std::uint64_t) {}
#endif
}  // namespace detail

/// From now on the calling thread does, and on Linux the threads that it starts (OpenMP's workers are such).
inline void flush_denormals() { detail::set_float_control(detail::float_control() | detail::denormal_flags); }

}  // namespace dvla
