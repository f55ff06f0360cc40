// Conformance of a control plane inside one process: what every plane must do, for shipped and users' own
// ones. Returns one sentence per violation, none if it conforms; no test framework.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/weights.hpp"
#include "dvla/testing/findings.hpp"

namespace dvla::testing {

namespace detail {
/// A block of bytes as the only unit of a model's weights.
inline std::vector<WeightUnit> one_unit(std::span<std::byte> bytes) {
  return {{.dtype = Dtype::bf16, .values = bytes}};
}
/// Every byte of a version's weights depends on the version, so a mix of two shows.
inline void pack(std::span<std::byte> bytes, std::int64_t version) {
  std::memset(bytes.data(), static_cast<int>(version % 251), bytes.size());
  std::memcpy(bytes.data(), &version, sizeof version);
}
inline bool is_version(std::span<const std::byte> bytes, std::int64_t version) {
  if (std::memcmp(bytes.data(), &version, sizeof version) != 0) return false;
  for (const std::byte byte : bytes.subspan(sizeof version)) {
    if (byte != static_cast<std::byte>(version % 251)) return false;
  }
  return true;
}
}  // namespace detail

/// `make(bytes)` gives a fresh plane for that many bytes of weights; every check has its own. It may be an
/// adapter; what is asked for is:
/// - `latest()`: the newest published version, negative before the first.
/// - `publish(version, write)`: `write(std::span<std::byte>)` makes the weights of that version where the
///   plane has them from; they are visible when it returns.
/// - `receive(units, at_least, limit)`, `close()` as the shipped planes have them.
template <class Make>
std::vector<std::string> check_control_plane(Make make) {
  detail::Findings expect;
  const auto at_once = std::chrono::nanoseconds(0);
  const auto patience = std::chrono::seconds(20);
  {
    auto plane = make(std::size_t{4096});
    std::vector<std::byte> copy(4096), other(100);
    const auto receive = [&](std::int64_t at_least, std::chrono::nanoseconds limit) {
      return plane->receive(detail::one_unit(copy), at_least, limit);
    };
    const auto publish = [&](std::int64_t version) {
      plane->publish(version, [&](std::span<std::byte> bytes) { detail::pack(bytes, version); });
    };
    expect(plane->latest() < 0, "latest() must be negative before the first version");
    expect.refused<DeadlineError>("receiving before a version is published", "",
                                  [&] { receive(0, std::chrono::milliseconds(5)); });
    publish(3);
    expect(plane->latest() == 3, "latest() must be the published version");
    expect(receive(0, at_once) == 3 && detail::is_version(copy, 3),
           "receive must give the newest version, whole");
    expect.refused("a version again", "", [&] { publish(3); });
    expect.refused("an older version", "", [&] { publish(2); });
    expect.refused("a destination of another size", "",
                   [&] { plane->receive(detail::one_unit(other), 0, at_once); });
    expect.refused("waiting beyond the limit", "", [&] { receive(4, std::chrono::milliseconds(5)); });
    publish(9);
    publish(10);
    expect(receive(4, at_once) == 10 && detail::is_version(copy, 10),
           "versions that nobody took may be skipped, the newest may not");
    expect.refused("anything after close()", "", [&] {
      plane->close();
      receive(11, patience);
    });
  }
  {
    constexpr std::int64_t versions = 2000;
    constexpr std::size_t bytes = 16384;
    auto plane = make(bytes);
    bool torn = false, backwards = false;
    std::atomic<std::int64_t> taken{-1};
    detail::Beside reception([&] {
      const auto take = [&](std::int64_t version) {
        taken = version;
        taken.notify_one();
      };
      std::vector<std::byte> copy(bytes);
      try {
        while (taken < versions - 1) {
          const std::int64_t version = plane->receive(detail::one_unit(copy), taken + 1, patience);
          backwards = backwards || version <= taken;
          torn = torn || !detail::is_version(copy, version);
          take(version);
        }
      } catch (...) {
        take(versions);  // so that nobody waits for it
        throw;
      }
    });
    for (std::int64_t version = 0; version < versions; ++version) {
      plane->publish(version, [&](std::span<std::byte> bytes_of) { detail::pack(bytes_of, version); });
      // A trainer changes its weights once they are taken.
      for (std::int64_t seen = taken; seen < version; seen = taken) taken.wait(seen);
    }
    const std::string how = reception.how();
    expect(!torn, "a receiver saw a torn version");
    expect(!backwards, "receive must give a version >= at_least");
    expect(how == "done", "a receiver failed while versions were still coming: " + how);
  }
  return expect.sentences;
}

}  // namespace dvla::testing
