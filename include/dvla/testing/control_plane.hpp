// Conformance of a control plane inside one process: what every plane must do, for shipped and users' own
// ones. Returns one sentence per violation, none if it conforms; no test framework.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/weights.hpp"

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
  std::vector<std::string> violations;
  auto expect = [&](bool holds, const std::string& what) {
    if (!holds) violations.push_back(what);
  };
  auto must_throw = [&](const std::string& what, auto&& call) {
    try {
      call();
      violations.push_back("must be refused: " + what);
    } catch (const Error&) {
    }
  };
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
    try {
      receive(0, std::chrono::milliseconds(5));
      violations.push_back("receive must not return before a version is published");
    } catch (const DeadlineError&) {
    }
    publish(3);
    expect(plane->latest() == 3, "latest() must be the published version");
    expect(receive(0, at_once) == 3 && detail::is_version(copy, 3),
           "receive must give the newest version, whole");
    must_throw("a version again", [&] { publish(3); });
    must_throw("an older version", [&] { publish(2); });
    must_throw("a destination of another size", [&] { plane->receive(detail::one_unit(other), 0, at_once); });
    must_throw("waiting beyond the limit", [&] { receive(4, std::chrono::milliseconds(5)); });
    publish(9);
    publish(10);
    expect(receive(4, at_once) == 10 && detail::is_version(copy, 10),
           "versions that nobody took may be skipped, the newest may not");
    must_throw("anything after close()", [&] {
      plane->close();
      receive(11, patience);
    });
  }
  {
    constexpr std::int64_t versions = 2000;
    constexpr std::size_t bytes = 16384;
    auto plane = make(bytes);
    std::atomic<bool> torn{false}, backwards{false}, late{false};
    std::atomic<std::int64_t> taken{-1};
    std::thread reception([&] {
      std::vector<std::byte> copy(bytes);
      std::int64_t last = -1;
      try {
        while (last < versions - 1) {
          const std::int64_t version = plane->receive(detail::one_unit(copy), last + 1, patience);
          if (version <= last) backwards = true;
          if (!detail::is_version(copy, version)) torn = true;
          last = version;
          taken = last;
          taken.notify_one();
        }
      } catch (const Error&) {
        late = true;
        taken = versions;
        taken.notify_one();
      }
    });
    for (std::int64_t version = 0; version < versions; ++version) {
      plane->publish(version, [&](std::span<std::byte> bytes_of) { detail::pack(bytes_of, version); });
      // A trainer changes its weights once they are taken.
      for (std::int64_t seen = taken; seen < version; seen = taken) taken.wait(seen);
    }
    reception.join();
    expect(!torn, "a receiver saw a torn version");
    expect(!backwards, "receive must give a version >= at_least");
    expect(!late, "a receiver failed while versions were still coming");
  }
  return violations;
}

}  // namespace dvla::testing
