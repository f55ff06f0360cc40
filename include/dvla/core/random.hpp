// Random numbers that are the same on every compiler: SplitMix64 (Steele, Lea, Flood 2014) and seed mixing.
// The standard's distributions may differ between libraries, so the few that are needed are written out here.
// One integer of state, so a checkpoint saves it with state(). Not for cryptography. Not thread-safe: one
// generator per thread, seeded by mix_seed(run_seed, what, which...).
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <numbers>

#include "dvla/core/compiler.hpp"

namespace dvla {

namespace detail {
inline constexpr std::uint64_t golden_gamma = 0x9e3779b97f4a7c15ULL;

/// SplitMix64's output function: a bijection of 64 bits in which each input bit moves half of the output's.
constexpr std::uint64_t mix64(std::uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ULL;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebULL;
  return bits ^ (bits >> 31);
}
}  // namespace detail

/// A seed for one stream out of the run's seed and any number of integers (epoch, environment, episode...).
/// The order of the integers matters. Two lists that differ in one place only never give the same seed.
template <std::integral... Index>
constexpr std::uint64_t mix_seed(std::uint64_t seed, Index... index) {
  constexpr std::uint64_t odd =
      0xd1342543de82ef95ULL;  // a plain xor would make seed and first index exchangeable
  std::uint64_t mixed = detail::mix64(seed + detail::golden_gamma);
  ((mixed =
        detail::mix64(mixed * odd + detail::mix64(static_cast<std::uint64_t>(index) + detail::golden_gamma))),
   ...);
  return mixed;
}

/// A UniformRandomBitGenerator over all 64-bit integers, with the draws that the library needs.
class SplitMix64 {
 public:
  using result_type = std::uint64_t;

  constexpr explicit SplitMix64(std::uint64_t seed) : state_(seed) {}

  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }
  constexpr result_type operator()() { return detail::mix64(state_ += detail::golden_gamma); }

  /// Uniform in [0, 1): all 53 (float: 24) bits of the mantissa are drawn.
  template <std::floating_point Real = double>
  constexpr Real uniform01() {
    constexpr int bits = std::numeric_limits<Real>::digits;
    static_assert(bits <= 53, "SplitMix64::uniform01 draws float or double");
    return static_cast<Real>((*this)() >> (64 - bits)) / static_cast<Real>(std::uint64_t{1} << bits);
  }

  /// Uniform between `low` and `high` (rounding may return `high` itself where the two are close).
  template <std::floating_point Real>
  constexpr Real uniform(Real low, Real high) {
    return low + (high - low) * uniform01<Real>();
  }

  /// Uniform in {0, ..., count - 1} without bias; `count` must not be 0.
  constexpr std::uint64_t below(std::uint64_t count) {
    const std::uint64_t incomplete = (std::uint64_t{0} - count) % count;  // 2^64 mod count
    std::uint64_t bits = (*this)();
    while (bits < incomplete) bits = (*this)();
    return bits % count;
  }

  /// Standard normal by Box-Muller. Draws two numbers and keeps no spare, so state() tells everything.
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform01()));  // 1 - u is in (0, 1]
    return radius * std::cos(2.0 * std::numbers::pi * uniform01());
  }

  /// SplitMix64(state()) continues exactly here.
  constexpr std::uint64_t state() const { return state_; }
  friend constexpr bool operator==(const SplitMix64&, const SplitMix64&) = default;

 private:
  std::uint64_t state_;
};

}  // namespace dvla
