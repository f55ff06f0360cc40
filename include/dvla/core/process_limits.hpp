// What this process may use and what it uses: cores (affinity and the cgroup's CPU quota), memory (the
// cgroup's limit and the machine's), resident bytes now and at the peak. cgroup v1, v2 and both at once; in a
// container the limit may stand anywhere between the process's own group and the root, so the smallest on the
// way counts. Reading stands apart from parsing: `process_limits(read)` asks `read(path)` for a file's text.
// Not looked at: cpusets beyond what affinity shows, cpu.shares, memory.high, swap, setrlimit.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/text.hpp"

namespace dvla {

struct ProcessLimits {
  double quota_cores = std::numeric_limits<double>::infinity();  ///< CPU seconds a second
  std::uint64_t memory_bytes = std::numeric_limits<std::uint64_t>::max();
};

namespace detail {

/// Of cpu.max: "150000 100000" is 1.5 cores, "max 100000" no limit.
inline std::optional<double> cores_of_cpu_max(std::string_view text) {
  const auto quota = whole_number(take(text, ' ')), period = whole_number(text);
  if (!quota || !period || *quota == 0 || *period == 0) return {};
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

/// Of a file with lines `name:   12 kB` (/proc/meminfo, /proc/self/status).
inline std::optional<std::uint64_t> bytes_of_line(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    std::string_view line = take(text, '\n');
    if (take(line, ':') != name) continue;
    if (!line.ends_with(" kB")) return {};
    const auto kibibytes = whole_number(line.substr(0, line.size() - 3));
    if (!kibibytes || *kibibytes > std::numeric_limits<std::uint64_t>::max() / 1024) return {};
    return *kibibytes * 1024;
  }
  return {};
}

/// A group of this process.
struct CgroupPath {
  std::string controllers;  ///< v1: of this hierarchy, "cpu,cpuacct"; v2: empty
  std::string path;         ///< below where the files of its controllers are mounted: "/a/b"; "/" is the root
};

/// Of /proc/self/cgroup: lines `number:controllers:path`; those that are not are left out.
inline std::vector<CgroupPath> cgroup_paths(std::string_view text) {
  std::vector<CgroupPath> found;
  while (!text.empty()) {
    std::string_view line = take(text, '\n');
    take(line, ':');
    const std::string_view controllers = take(line, ':');
    if (line.starts_with('/')) found.push_back({std::string(controllers), std::string(line)});
  }
  return found;
}

/// Calls `visit(folder)` for a group's folder and all above it up to the mount. A path that is the host's,
/// seen from a container, does not exist below the container's mount; the mount itself has the container's
/// limits.
template <class Visit>
void walk_up(const std::string& mount, std::string path, Visit&& visit) {
  while (path.size() > 1) {
    if (path.find("/..") == std::string::npos) visit(mount + path);
    path.erase(path.rfind('/'));
  }
  visit(mount);
}

}  // namespace detail

/// `read(path)` gives a file's text as std::optional<std::string>. What can't be read or understood is no
/// limit.
template <class Read>
ProcessLimits process_limits(Read&& read) {
  ProcessLimits limits;
  const auto text = [&](const std::string& path) -> std::string { return read(path).value_or(""); };
  const auto cores = [&](std::optional<double> more) {
    if (more) limits.quota_cores = std::min(limits.quota_cores, *more);
  };
  const auto memory = [&](std::optional<std::uint64_t> more) {
    if (more && *more > 0) limits.memory_bytes = std::min(limits.memory_bytes, *more);
  };
  memory(detail::bytes_of_line(text("/proc/meminfo"), "MemTotal"));
  const std::string root = "/sys/fs/cgroup";
  for (const auto& [controllers, path] : detail::cgroup_paths(text("/proc/self/cgroup"))) {
    for (const char* mount : {"", "/unified"})
      if (controllers.empty())
        detail::walk_up(root + mount, path, [&](const std::string& folder) {
          cores(detail::cores_of_cpu_max(text(folder + "/cpu.max")));
          memory(detail::whole_number(text(folder + "/memory.max")));
        });
    for (const std::string name : {"cpu", "memory"}) {
      if (("," + controllers + ",").find("," + name + ",") == std::string::npos) continue;
      for (const std::string& mount : {name, controllers})  // "cpu,cpuacct" is mounted as that or as cpu
        detail::walk_up(root + "/" + mount, path, [&](const std::string& folder) {
          if (name == "memory")
            memory(detail::whole_number(text(folder + "/memory.limit_in_bytes")));
          else
            cores(detail::cores_of_cpu_max(text(folder + "/cpu.cfs_quota_us") + " " +
                                           text(folder + "/cpu.cfs_period_us")));
        });
    }
  }
  return limits;
}

namespace detail {

inline std::optional<std::string> text_of(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return {};
  std::string text;
  char part[4096];
  for (std::size_t count; (count = std::fread(part, 1, sizeof part, file)) > 0;) text.append(part, count);
  std::fclose(file);
  return text;
}

/// Of this process, read once.
inline const ProcessLimits& own_limits() {
  static const ProcessLimits limits = process_limits(text_of);
  return limits;
}

inline int whole_cores(int affinity, double quota_cores) {
  return std::max(1, quota_cores < affinity ? static_cast<int>(std::ceil(quota_cores)) : affinity);
}

}  // namespace detail

/// Cores that this thread may keep busy: those of its affinity now, no more than the cgroup's quota rounded
/// up.
inline int usable_cores() {
  cpu_set_t set;
  int affinity = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));  // more than the set has room for
  if (::sched_getaffinity(0, sizeof set, &set) == 0) affinity = CPU_COUNT(&set);
  return detail::whole_cores(std::max(1, affinity), detail::own_limits().quota_cores);
}

/// Memory that this process may have, as far as the machine and the cgroup say.
inline std::uint64_t usable_memory_bytes() { return detail::own_limits().memory_bytes; }

/// Resident now, and the most there ever was; 0 where /proc does not say.
inline std::uint64_t resident_bytes() {
  return detail::bytes_of_line(detail::text_of("/proc/self/status").value_or(""), "VmRSS").value_or(0);
}
inline std::uint64_t peak_resident_bytes() {
  return detail::bytes_of_line(detail::text_of("/proc/self/status").value_or(""), "VmHWM").value_or(0);
}

}  // namespace dvla
