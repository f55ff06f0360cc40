// dvla-bench: io mujoco smoke=1,2000,0
// The environment pool over 100,000 control steps of MuJoCo<Push>: what a simulator and its records take from it,
// against the same from malloc. Each run is a process of its own, so that nobody inherits another's heap, and the
// kinds take turns, round after round:
//   steady   what a run of dvla is: all buffers are taken at the start, two batches' records among them
//   coming   buffers come and go: a batch's record is taken with each batch and given back two batches later, of 2 to
//            4 decisions; one in three batches takes an evaluation's record beside it, and a demonstration's that stays
//            for 15; one in five an environment of its own of 4 to 16 rows, which is stepped and goes
// under malloc, and in the pool with its pages brought before (`pool`, as a run does) or not (`pool, bare`). The cap
// is 1.1 times what a first run of that kind held at most. Counted from the first step, behind a warm-up batch: page faults (getrusage), resident memory, heap allocations and bytes (malloc is counted, with all libraries'),
// control steps a second; and at the end what the pool reports, of malloc mallinfo2's.
//
//   build/release/bench/bench_memory_environment_pool_long 5 100000 32       rounds, control steps, camera pixels (0: none),
//                                                              and `steady` or `coming` where only one is wanted
//
// With a camera the driver's own buffers come and go on the heap, frame by frame, and glibc gives pages back and fetches
// them again in between. MALLOC_TRIM_THRESHOLD_=134217728 MALLOC_MMAP_THRESHOLD_=33554432 before the command leaves what is
// ours, of every kind.
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <memory>
#include <memory_resource>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "bench/interleaved.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/environment/mujoco.hpp"
#include "dvla/io/child_process.hpp"
#include "dvla/memory/environment_pool.hpp"

namespace {
std::atomic<std::int64_t> allocations{0}, allocated{0};
void note(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated.fetch_add(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t size) { return note(size), __libc_malloc(size); }
void* calloc(std::size_t count, std::size_t size) { return note(count * size), __libc_calloc(count, size); }
void* realloc(void* old, std::size_t size) { return note(size), __libc_realloc(old, size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  return note(size), __libc_memalign(alignment, size);
}
}

namespace {
using Clock = std::chrono::steady_clock;
using Batch = dvla::MujocoBatch<dvla::Push>;
using Record = dvla::OwnedRecord<dvla::Transition>;
constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::int64_t rows = 64, chunk = 8, most_decisions = 4;

struct Figures {
  double steps_per_s = 0, minor = 0, major = 0, resident_before = 0, resident_after = 0;  ///< MiB
  double heap_calls = 0, heap_mib = 0;
  double held = 0, in_use = 0, fragmentation = 0, worst_fragmentation = 0,
         taken = 0;  ///< MiB, shares, allocations
};

double resident() {
  std::ifstream file("/proc/self/statm");
  double pages = 0;
  file >> pages >> pages;
  return pages * static_cast<double>(::sysconf(_SC_PAGESIZE)) / static_cast<double>(mib);
}
rusage faults() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage;
}

/// An environment and the calls of a sampler, into any record.
struct Sampler {
  Sampler(std::int64_t n, int pixels, std::pmr::memory_resource& memory)
      : environment(
            [&] {
              dvla::MujocoKnobs knobs;
              knobs.environments = static_cast<int>(n);
              knobs.horizon = static_cast<int>(chunk * most_decisions);
              knobs.camera_pixels = pixels;
              return knobs;
            }(),
            memory),
        failures(n) {
    for (std::int64_t row = 0; row < n; ++row) everybody.push_back(row);
    starts.resize(everybody.size());
  }
  dvla::Transition layout(std::int64_t decisions) const {
    return dvla::transition_layout(environment.observation_spec(), environment.action_spec(),
                                   {.decisions = decisions, .episodes = environment.size(), .chunk = chunk});
  }
  std::int64_t pass(Record& into, std::int64_t decisions, dvla::SplitMix64& random) {
    const auto at = [](const auto& record, std::int64_t t) {
      return dvla::cut_record(record, [t](auto field) { return field.at(t); });
    };
    for (dvla::Start& start : starts) start.seed = ++seed;
    dvla::Rows of(everybody, arena, failures);
    environment.reset(of, starts, at(into->observation, 0));
    std::int64_t made = 0;
    for (std::int64_t t = 0; t < decisions; ++t) {
      for (float& value : into->action.at(t).span()) value = random.uniform(-1.0F, 1.0F);
      made += environment.step(
          of, into->action.at(t),
          {into->reward.at(t), into->terminated.at(t), into->truncated.at(t), at(into->observation, t + 1)});
    }
    return made;
  }

  Batch environment;
  dvla::Arena arena;
  dvla::RowFailures failures;
  std::vector<std::int64_t> everybody;
  std::vector<dvla::Start> starts;
  std::uint64_t seed = 0;
};

/// `cap` 0: from malloc.
Figures run(bool coming, std::size_t cap, bool brought, std::int64_t steps, int pixels) {
  Figures figures;
  std::optional<dvla::EnvironmentPool> pool;
  if (cap > 0) pool.emplace(cap);
  if (brought) pool->prefault(cap);
  std::pmr::memory_resource& memory =
      pool ? static_cast<std::pmr::memory_resource&>(*pool) : *std::pmr::new_delete_resource();
  Sampler sampler(rows, pixels, memory);
  dvla::SplitMix64 random(3), sizes(4);
  std::deque<Record> live;
  std::deque<std::int64_t> until;  // the batch in which it goes, of each of
  std::deque<Record> demonstrations;
  std::optional<Record> evaluation;
  for (int i = 0; i < 2; ++i) live.emplace_back(sampler.layout(most_decisions), memory);
  sampler.pass(live.front(), most_decisions, random);  // the renderer is made on its first use
  const rusage before = faults();
  figures.resident_before = resident();
  const std::int64_t calls = allocations, bytes = allocated;
  std::int64_t made = 0, own_calls = 0, own_bytes = 0;
  const auto begin = Clock::now();
  for (std::int64_t batch = 0; made < steps; ++batch) {
    std::int64_t decisions = most_decisions;
    if (coming) {
      decisions = 2 + static_cast<std::int64_t>(sizes.below(3));
      live.pop_front();
      live.emplace_back(sampler.layout(decisions), memory);
      for (; !until.empty() && until.front() <= batch; until.pop_front()) demonstrations.pop_front();
      if (batch % 3 == 2) {
        evaluation.emplace(sampler.layout(1 + static_cast<std::int64_t>(sizes.below(3))), memory);
        demonstrations.emplace_back(sampler.layout(1 + static_cast<std::int64_t>(sizes.below(6))), memory);
        until.push_back(batch + 15);
      } else {
        evaluation.reset();
      }
      if (batch % 5 == 4) {
        Sampler other(4 + static_cast<std::int64_t>(sizes.below(13)), 0, memory);
        Record own(other.layout(2), memory);
        made += other.pass(own, 2, random);
      }
    }
    made += sampler.pass(live[coming ? 1 : static_cast<std::size_t>(batch % 2)], decisions, random);
    if (pool) {  // whose report has a text: not the run's
      const std::int64_t calls_then = allocations, bytes_then = allocated;
      figures.worst_fragmentation = std::max(figures.worst_fragmentation, pool->report().fragmentation);
      own_calls += allocations - calls_then;
      own_bytes += allocated - bytes_then;
    }
  }
  figures.steps_per_s =
      static_cast<double>(made) / std::chrono::duration<double>(Clock::now() - begin).count();
  const rusage after = faults();
  figures.heap_calls = static_cast<double>(allocations - calls - own_calls);
  figures.heap_mib = static_cast<double>(allocated - bytes - own_bytes) / static_cast<double>(mib);
  figures.minor = static_cast<double>(after.ru_minflt - before.ru_minflt);
  figures.major = static_cast<double>(after.ru_majflt - before.ru_majflt);
  figures.resident_after = resident();
  if (pool) {
    const dvla::PoolReport report = pool->report();
    figures.held = static_cast<double>(report.high_water) / static_cast<double>(mib);
    figures.in_use = static_cast<double>(report.in_use) / static_cast<double>(mib);
    figures.fragmentation = report.fragmentation;
    figures.taken = static_cast<double>(report.allocations);
  } else {
    const struct mallinfo2 info = ::mallinfo2();
    figures.held = static_cast<double>(info.arena + info.hblkhd) / static_cast<double>(mib);
    figures.in_use = static_cast<double>(info.uordblks + info.hblkhd) / static_cast<double>(mib);
    figures.fragmentation =
        info.arena > 0 ? static_cast<double>(info.fordblks) / static_cast<double>(info.arena) : 0;
  }
  return figures;
}

/// What of the simulator lies where: in the pool at once, and what the heap has for it.
void say_where(int pixels) {
  dvla::EnvironmentPool pool(256 * mib);
  const auto kib = [](double bytes) { return bytes / 1024; };
  const auto used = [&] { return static_cast<double>(pool.report().in_use); };
  const auto heap = [] {
    const struct mallinfo2 info = ::mallinfo2();
    return static_cast<double>(info.uordblks + info.hblkhd);
  };
  const double heap_before = heap();
  auto one = std::make_unique<Sampler>(1, pixels, pool);
  const double with_one = used();
  auto two = std::make_unique<Sampler>(2, pixels, pool);
  const double each = used() - 2 * with_one;  // a second row
  two.reset();
  const double heap_made = heap();
  const Record record(one->layout(most_decisions), pool);
  const double record_bytes = used() - with_one;
  Record into(one->layout(most_decisions), pool);
  const double before_pass = used(), heap_before_pass = heap();
  dvla::SplitMix64 random(1);
  one->pass(into, most_decisions, random);
  std::printf(
      "in the pool: the model and what one environment has besides %.1f KiB, each environment's mjData with "
      "its arena %.1f KiB, "
      "a record of 4 decisions %.1f KiB a row, scene and buffers of the renderer %.1f KiB; on the heap: %.1f "
      "KiB for "
      "the environment, %.1f KiB more behind the first pass (the renderer's driver)\n",
      kib(with_one - each), kib(each), kib(record_bytes), kib(used() - before_pass),
      kib(heap_made - heap_before), kib(heap() - heap_before_pass));
}

std::string text_of(const Figures& f) {
  std::ostringstream out;
  for (const double each :
       {f.steps_per_s, f.minor, f.major, f.resident_before, f.resident_after, f.heap_calls, f.heap_mib,
        f.held, f.in_use, f.fragmentation, f.worst_fragmentation, f.taken})
    out << each << ' ';
  return out.str();
}
Figures figures_of(const std::string& text) {
  std::istringstream in(text);
  Figures f;
  in >> f.steps_per_s >> f.minor >> f.major >> f.resident_before >> f.resident_after >> f.heap_calls >>
      f.heap_mib >> f.held >> f.in_use >> f.fragmentation >> f.worst_fragmentation >> f.taken;
  if (!in) throw dvla::Error("a run said '", text, "'");
  return f;
}

void compare(int rounds, const std::string& steps, const std::string& pixels, const std::string& only) {
  const auto child = [&](bool coming, std::size_t cap, bool brought) {
    const auto done = dvla::io::run_child({"/proc/self/exe", "run", coming ? "1" : "0", std::to_string(cap),
                                           brought ? "1" : "0", steps, pixels},
                                          {}, std::chrono::minutes(5));
    if (done.exit_code != 0) throw dvla::Error("a run failed: ", done.out, done.err);
    return figures_of(done.out);
  };
  for (const bool coming : {false, true}) {
    if (!only.empty() && only != (coming ? "coming" : "steady")) continue;
    const auto cap = static_cast<std::size_t>(1.1 * child(coming, 1024 * mib, false).held) * mib + mib;
    const std::array<const char*, 3> names{"malloc", "pool", "pool, bare"};
    std::array<std::vector<Figures>, 3> all;
    for (int round = 0; round < rounds; ++round)
      for (std::size_t kind = 0; kind < names.size(); ++kind) {
        const Figures one = child(coming, kind == 0 ? 0 : cap, kind == 1);
        all[kind].push_back(one);
      }
    std::printf(
        "%s, %s control steps, %s camera pixels, cap %zu MiB, %d interleaved rounds; medians [quartiles]\n",
        coming ? "coming" : "steady", steps.c_str(), pixels.c_str(), cap / mib, rounds);
    for (std::size_t kind = 0; kind < names.size(); ++kind) {
      const auto of = [&](auto figure) {
        std::vector<double> values;
        for (std::size_t i = 0; i < all[kind].size(); ++i) values.push_back(figure(all[kind][i], all[0][i]));
        return values;
      };
      const auto mid = [&](double Figures::*member) {
        return bench::median(of([=](const Figures& one, const Figures&) { return one.*member; }));
      };
      const auto ratio =
          of([](const Figures& one, const Figures& first) { return one.steps_per_s / first.steps_per_s; });
      const auto minor = of([](const Figures& one, const Figures&) { return one.minor; });
      const auto growth =
          of([](const Figures& one, const Figures&) { return one.resident_after - one.resident_before; });
      std::printf(
          "  %-10s %7.0f steps/s, of malloc's %.3f [%.3f, %.3f]; faults: minor %.0f [%.0f, %.0f], major "
          "%.0f; resident "
          "%.1f MiB, grew by %.2f [%.2f, %.2f]; heap: %.0f calls, %.1f MiB; held %.1f MiB, in use %.1f; %s "
          "%.3f, worst "
          "%.3f; %.0f blocks taken\n",
          names[kind], mid(&Figures::steps_per_s), bench::median(ratio), bench::quantile(ratio, 0.25),
          bench::quantile(ratio, 0.75), bench::median(minor), bench::quantile(minor, 0.25),
          bench::quantile(minor, 0.75), mid(&Figures::major), mid(&Figures::resident_after),
          bench::median(growth), bench::quantile(growth, 0.25), bench::quantile(growth, 0.75),
          mid(&Figures::heap_calls), mid(&Figures::heap_mib), mid(&Figures::held), mid(&Figures::in_use),
          kind == 0 ? "free share of the heap" : "fragmentation", mid(&Figures::fragmentation),
          mid(&Figures::worst_fragmentation), mid(&Figures::taken));
    }
  }
}
}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  try {
    if (given.size() == 6 && given[0] == "run") {
      std::puts(text_of(run(given[1] == "1", std::stoul(given[2]), given[3] == "1", std::stol(given[4]),
                            std::stoi(given[5])))
                    .c_str());
      return 0;
    }
    if (given.size() != 3 && given.size() != 4) {
      std::puts("bench_memory_environment_pool_long ROUNDS CONTROL_STEPS CAMERA_PIXELS [steady|coming]");
      return 1;
    }
    bench::print_header(argc, argv);
    say_where(std::stoi(given[2]));
    compare(std::stoi(given[0]), given[1], given[2], given.size() == 4 ? given[3] : "");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
