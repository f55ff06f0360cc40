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

namespace dvla::testing {

namespace detail {
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

/// `make(bytes)` gives a fresh plane for that many bytes of weights; every check has its own.
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
    expect(plane->latest() < 0, "latest() must be negative before the first version");
    try {
      plane->receive(copy, 0, std::chrono::milliseconds(5));
      violations.push_back("receive must not return before a version is published");
    } catch (const DeadlineError&) {
    }
    detail::pack(plane->begin(3), 3);
    expect(plane->latest() < 0, "a version must not be visible before it is published");
    must_throw("publishing what was not begun", [&] { plane->publish(4); });
    plane->publish(3);
    expect(plane->latest() == 3, "latest() must be the published version");
    expect(plane->receive(copy, 0, at_once) == 3 && detail::is_version(copy, 3),
           "receive must give the newest version, whole");
    must_throw("a version again", [&] { plane->begin(3); });
    must_throw("an older version", [&] { plane->begin(2); });
    must_throw("a destination of another size", [&] { plane->receive(other, 0, at_once); });
    must_throw("waiting beyond the limit", [&] { plane->receive(copy, 4, std::chrono::milliseconds(5)); });
    detail::pack(plane->begin(9), 9);
    expect(plane->receive(copy, 3, at_once) == 3 && detail::is_version(copy, 3),
           "the last version must stay readable while the next is packed");
    plane->publish(9);
    detail::pack(plane->begin(10), 10);
    plane->publish(10);
    expect(plane->receive(copy, 4, at_once) == 10 && detail::is_version(copy, 10),
           "versions that nobody took may be skipped, the newest may not");
    must_throw("anything after close()", [&] {
      plane->close();
      plane->receive(copy, 11, patience);
    });
  }
  {
    constexpr std::int64_t versions = 2000;
    constexpr std::size_t bytes = 16384;
    auto plane = make(bytes);
    std::atomic<bool> torn{false}, backwards{false}, late{false};
    auto hammer = [&] {
      std::vector<std::byte> copy(bytes);
      std::int64_t last = -1;
      try {
        while (last < versions - 1) {
          const std::int64_t version = plane->receive(copy, last + 1, patience);
          if (version <= last) backwards = true;
          if (!detail::is_version(copy, version)) torn = true;
          last = version;
        }
      } catch (const Error&) {
        late = true;
      }
    };
    std::thread one(hammer), two(hammer);
    for (std::int64_t version = 0; version < versions; ++version) {
      detail::pack(plane->begin(version), version);
      plane->publish(version);
    }
    one.join();
    two.join();
    expect(!torn, "a receiver saw a torn version");
    expect(!backwards, "receive must give a version >= at_least");
    expect(!late, "a receiver failed while versions were still coming");
  }
  return violations;
}

}  // namespace dvla::testing
