// XXH3-64 (libxxhash) over bytes: guards weight versions on the control plane and records on the data plane
// against torn or damaged payloads. Not cryptographic.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace dvla {

inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

/// Incremental form. Holds its state in place: no allocation.
class Checksum {
 public:
  Checksum() { XXH3_64bits_reset(&state_); }
  void update(std::span<const std::byte> bytes) { XXH3_64bits_update(&state_, bytes.data(), bytes.size()); }
  std::uint64_t value() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

/// Over the values of all units of weights, in order.
template <class Units>
std::uint64_t weights_checksum(const Units& units) {
  Checksum sum;
  for (const auto& unit : units) sum.update(unit.values);
  return sum.value();
}

}  // namespace dvla
