#include <doctest/doctest.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>

#include "dvla/core/process_limits.hpp"

using namespace dvla;

namespace {

constexpr double no_quota = std::numeric_limits<double>::infinity();
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

ProcessLimits limits_of(std::map<std::string, std::string> files) {
  files.emplace("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         1234 kB\n");
  return process_limits([&](const std::string& path) -> std::optional<std::string> {
    const auto file = files.find(path);
    if (file == files.end()) return {};
    return file->second;
  });
}

}  // namespace

TEST_CASE("without a cgroup the machine's memory is the limit and there is no quota") {
  const ProcessLimits limits = limits_of({});
  CHECK(limits.quota_cores == no_quota);
  CHECK(limits.memory_bytes == 16 * gib);
}

TEST_CASE("v2: the smallest limit between the group and the root counts") {
  const ProcessLimits limits = limits_of({{"/proc/self/cgroup", "0::/a.slice/b.service\n"},
                                          {"/sys/fs/cgroup/a.slice/b.service/cpu.max", "max 100000\n"},
                                          {"/sys/fs/cgroup/a.slice/b.service/memory.max", "8589934592\n"},
                                          {"/sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"},
                                          {"/sys/fs/cgroup/a.slice/memory.max", "4294967296\n"},
                                          {"/sys/fs/cgroup/cpu.max", "400000 100000\n"},
                                          {"/sys/fs/cgroup/memory.max", "max\n"}});
  CHECK(limits.quota_cores == 1.5);
  CHECK(limits.memory_bytes == 4 * gib);
}

TEST_CASE("v1: quota and period, memory apart, and numbers that mean no limit") {
  std::map<std::string, std::string> files{
      {"/proc/self/cgroup", "4:memory:/job/one\n3:cpu,cpuacct:/job\n1:name=systemd:/x\n"},
      {"/sys/fs/cgroup/memory/job/one/memory.limit_in_bytes", "9223372036854771712\n"},
      {"/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2147483648\n"},
      {"/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "250000\n"},
      {"/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n"},
      {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
      {"/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}};
  CHECK(limits_of(files).quota_cores == 2.5);
  CHECK(limits_of(files).memory_bytes == 2 * gib);
  files["/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "-1\n";
  files["/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us"] = "50000\n";
  files["/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us"] = "100000\n";
  CHECK(limits_of(files).quota_cores == 0.5);
}

TEST_CASE("a container that sees the host's path, or one outside its own root, reads its mount") {
  for (const std::string path : {"/docker/0123abc", "/../sibling", "/"}) {
    CAPTURE(path);
    const ProcessLimits limits = limits_of({{"/proc/self/cgroup", "0::" + path + "\n"},
                                            {"/sys/fs/cgroup/cpu.max", "300000 100000\n"},
                                            {"/sys/fs/cgroup/memory.max", "1073741824\n"},
                                            {"/sys/fs/cgroup/../sibling/cpu.max", "1 100000\n"}});
    CHECK(limits.quota_cores == 3);
    CHECK(limits.memory_bytes == gib);
  }
}

TEST_CASE("both versions at once: v2 under unified without controllers, limits in v1") {
  const ProcessLimits limits = limits_of({{"/proc/self/cgroup", "2:cpu:/a\n0::/a\n"},
                                          {"/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000"},
                                          {"/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "50000"},
                                          {"/sys/fs/cgroup/unified/a/memory.max", "1073741824"}});
  CHECK(limits.quota_cores == 2);
  CHECK(limits.memory_bytes == gib);
}

TEST_CASE("garbage is no limit") {
  for (const std::string text :
       {"", "\n", " ", "max", "max max", "-5 100000", "100000 0", "0 100000", "1e5 100000", "100000",
        "99999999999999999999999 100000", "100000x 100000", "\0\0"}) {
    CAPTURE(text);
    CHECK_FALSE(detail::cores_of_cpu_max(text).has_value());
    const ProcessLimits limits =
        limits_of({{"/proc/self/cgroup", "0::/\n" + text + "\n::\n0:\n:::/\n0::x\n"},
                   {"/sys/fs/cgroup/cpu.max", text},
                   {"/sys/fs/cgroup/memory.max", text == "100000" ? "0" : text + "?"}});
    CHECK(limits.quota_cores == no_quota);
    CHECK(limits.memory_bytes == 16 * gib);
  }
  CHECK(detail::cgroup_paths("no colons\n1:cpu\n0::/ok").size() == 1);
  CHECK_FALSE(detail::bytes_of_line("MemTotal: 5 MB\n", "MemTotal"));
  CHECK_FALSE(detail::bytes_of_line("MemTotals: 5 kB\n", "MemTotal"));
  CHECK_FALSE(detail::bytes_of_line("MemTotal:", "MemTotal"));
  CHECK_FALSE(detail::bytes_of_line("MemTotal: 18446744073709551615 kB\n", "MemTotal"));
}

TEST_CASE("a part of a core is a core, and there is always one") {
  CHECK(detail::whole_cores(8, no_quota) == 8);
  CHECK(detail::whole_cores(8, 2.0) == 2);
  CHECK(detail::whole_cores(8, 2.01) == 3);
  CHECK(detail::whole_cores(2, 64.0) == 2);
  CHECK(detail::whole_cores(4, 0.2) == 1);
  CHECK(detail::whole_cores(4, 1e-9) == 1);
}

TEST_CASE("this process has cores, memory and resident bytes, and its peak outlives what it gave back") {
  CHECK(usable_cores() >= 1);
  CHECK(usable_memory_bytes() > (std::uint64_t{1} << 26));
  const std::uint64_t before = resident_bytes();
  REQUIRE(before > 0);
  const std::size_t bytes = std::size_t{64} << 20;
  void* const block = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(block != MAP_FAILED);
  std::memset(block, 1, bytes);
  CHECK(resident_bytes() > before + bytes / 2);
  ::munmap(block, bytes);
  CHECK(resident_bytes() < before + bytes / 2);
  CHECK(peak_resident_bytes() > before + bytes / 2);
}
