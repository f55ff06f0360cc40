// What this process may use and what it uses: cores (affinity and the cgroup's CPU quota), memory (the
// cgroup's limit and the machine's), resident bytes now and at the peak. cgroup v1, v2 and both at once; in a
// container the limit may stand anywhere between the process's own group and the root, so the smallest on the
// way counts. Reading stands apart from parsing: `process_limits(read)` asks `read(path)` for a file's text.
// Not looked at: cpusets beyond what affinity shows, cpu.shares, memory.high, swap, setrlimit.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dvla {

struct ProcessLimits {
  double quota_cores = std::numeric_limits<double>::infinity();  ///< CPU seconds a second
  std::uint64_t memory_bytes = std::numeric_limits<std::uint64_t>::max();
};

namespace detail {

/// `text`, blanks around it left out, as a whole number that is not negative; nothing for "max", "-1" or
/// anything else.
inline std::optional<std::uint64_t> whole_number(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return {};
  text = text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return number;
}

inline std::optional<double> cores_of(std::optional<std::uint64_t> quota,
                                      std::optional<std::uint64_t> period) {
  if (!quota || !period || *quota == 0 || *period == 0) return {};
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

/// Of cpu.max: "150000 100000" is 1.5 cores, "max 100000" no limit.
inline std::optional<double> cores_of_cpu_max(std::string_view text) {
  const std::size_t gap = text.find(' ');
  if (gap == std::string_view::npos) return {};
  return cores_of(whole_number(text.substr(0, gap)), whole_number(text.substr(gap)));
}

/// Of a file with lines `name:   12 kB` (/proc/meminfo, /proc/self/status).
inline std::optional<std::uint64_t> bytes_of_line(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.size() <= name.size() || line.substr(0, name.size()) != name || line[name.size()] != ':')
      continue;
    if (line.size() < 3 || line.substr(line.size() - 3) != " kB") return {};
    const auto kibibytes = whole_number(line.substr(name.size() + 1, line.size() - name.size() - 4));
    if (!kibibytes || *kibibytes > std::numeric_limits<std::uint64_t>::max() / 1024) return {};
    return *kibibytes * 1024;
  }
  return {};
}

/// A group of this process: where its controllers' files would stand, and its path below that.
struct CgroupPath {
  bool unified;                    ///< cgroup v2
  std::vector<std::string> names;  ///< v1: the controllers of this hierarchy
  std::string path;                ///< "/a/b"; "/" is the root
};

/// Of /proc/self/cgroup: lines `number:controllers:path`; those that are not are left out.
inline std::vector<CgroupPath> cgroup_paths(std::string_view text) {
  std::vector<CgroupPath> found;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos || second + 1 == line.size() || line[second + 1] != '/') continue;
    std::string_view controllers = line.substr(first + 1, second - first - 1);
    CgroupPath group{controllers.empty(), {}, std::string(line.substr(second + 1))};
    while (!controllers.empty()) {
      const std::string_view one = controllers.substr(0, controllers.find(','));
      controllers.remove_prefix(std::min(controllers.size(), one.size() + 1));
      group.names.emplace_back(one);
    }
    found.push_back(std::move(group));
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
  const auto number = [&](const std::string& path) -> std::optional<std::uint64_t> {
    const std::optional<std::string> text = read(path);
    return text ? detail::whole_number(*text) : std::nullopt;
  };
  const auto cores = [&](std::optional<double> more) {
    if (more) limits.quota_cores = std::min(limits.quota_cores, *more);
  };
  const auto memory = [&](std::optional<std::uint64_t> more) {
    if (more && *more > 0) limits.memory_bytes = std::min(limits.memory_bytes, *more);
  };
  if (const std::optional<std::string> text = read("/proc/meminfo"))
    memory(detail::bytes_of_line(*text, "MemTotal"));
  const std::string root = "/sys/fs/cgroup";
  const std::optional<std::string> own = read("/proc/self/cgroup");
  for (const detail::CgroupPath& group : detail::cgroup_paths(own.value_or(""))) {
    if (group.unified) {
      for (const std::string& mount : {root, root + "/unified"}) {
        detail::walk_up(mount, group.path, [&](const std::string& folder) {
          if (const std::optional<std::string> text = read(folder + "/cpu.max"))
            cores(detail::cores_of_cpu_max(*text));
          memory(number(folder + "/memory.max"));
        });
      }
    }
    for (const std::string& name : group.names) {  // "cpu,cpuacct" is mounted under that name or as cpu
      if (name != "cpu" && name != "memory") continue;
      std::string together;
      for (const std::string& one : group.names) together += (together.empty() ? "" : ",") + one;
      for (const std::string& mount : {root + "/" + name, root + "/" + together}) {
        detail::walk_up(mount, group.path, [&](const std::string& folder) {
          if (name == "memory") {
            memory(number(folder + "/memory.limit_in_bytes"));
          } else {
            cores(detail::cores_of(number(folder + "/cpu.cfs_quota_us"),
                                   number(folder + "/cpu.cfs_period_us")));
          }
        });
        if (together == name) break;
      }
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
