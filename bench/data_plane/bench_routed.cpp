// dvla-bench: torch c10d smoke=1,2,1
// Trajectories between processes over loopback, by LibTorch's Gloo, at ratios of rollouts to actors of 1:1,
// 3:1 and 1:3: the data plane (produce, commit, arrive, consume, release; chunks gathered from columns,
// proved by their checksums, put into columns, acknowledged) against the channels alone, which carry as many
// bytes between the same ranks in the same chunks and prove nothing. Interleaved; bytes and episodes per
// second over all ranks. Usage: bench_routed [rounds = 9] [batches a round = 16] [MiB of a batch = 64]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "../interleaved.hpp"
#include "../ranks.hpp"
#include "dvla/data_plane/routed.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/placement/c10d.hpp"

namespace {

using namespace std::chrono_literals;
constexpr auto limit = 60s;

struct Decision {
  dvla::Field<std::int32_t> bins;
  dvla::Field<float> log_prob;
};

}  // namespace
BOOST_HANA_ADAPT_STRUCT(Decision, bins, log_prob);

namespace {

using Plane = dvla::RoutedTrajectories<Decision>;
using Trajectory = dvla::Trajectory<Decision>;
constexpr std::int64_t T = 8, C = 4, group = 8;

/// Episodes of 8 decisions with one camera of 64 x 64: 100 KiB each.
Trajectory layout(std::int64_t episodes) {
  dvla::ObservationSpec observation;
  observation.cameras = {{"top", 64, 64}};
  observation.proprioception = 8;
  observation.instructions = {"push"};
  return dvla::trajectory_layout(
      dvla::transition_layout(observation, {4}, {T, episodes, C}),
      Decision{dvla::Field<std::int32_t>({T, episodes, C, 4}), dvla::Field<float>({T, episodes, C, 4})});
}

/// On the wire.
std::int64_t group_bytes() {
  return static_cast<std::int64_t>(
      dvla::bytes_in(dvla::detail::column_strips(layout(group), group, 0, group)));
}

/// The first ranks train, the others roll out.
struct Ratio {
  int rollouts, actors;
  std::int64_t groups;  ///< of a batch, over all rollouts

  dvla::Roles roles() const {
    dvla::Roles roles;
    roles.actors.resize(static_cast<std::size_t>(actors));
    roles.rollouts.resize(static_cast<std::size_t>(rollouts));
    std::iota(roles.actors.begin(), roles.actors.end(), 0);
    std::iota(roles.rollouts.begin(), roles.rollouts.end(), actors);
    return roles;
  }
  dvla::RoutingPlan plan() const {
    return dvla::plan_routes(std::vector(static_cast<std::size_t>(rollouts), groups / rollouts), group,
                             roles());
  }
  std::int64_t episodes() const { return groups * group; }
  std::int64_t bytes() const { return groups * group_bytes(); }
};

struct Command {
  enum What : std::int64_t { plane, channels, goodbye } what;
  std::int64_t batches;
};
using Answer = std::int64_t;  ///< what the plane has sent and received so far, in bytes

/// One rank, in its process.
class Rank {
 public:
  Rank(const dvla::Launch& launch, const Ratio& ratio)
      : cluster_(launch, limit),
        rollout_(ratio.roles().rollout(launch.rank)),
        plan_(ratio.plan()),
        pool_(static_cast<std::size_t>(2 * ratio.bytes()) + (std::size_t{64} << 20)) {
    const dvla::Roles roles = ratio.roles();
    for (const dvla::Route& route : plan_.routes) {
      const bool sends = route.rollout == rollout_, takes = route.actor == roles.actor(launch.rank);
      if (!sends && !takes) continue;
      const auto place = static_cast<std::size_t>(sends ? route.actor : route.rollout);
      const int peer = sends ? roles.actors[place] : roles.rollouts[place];
      pairs_.push_back({cluster_.channel("alone", peer, limit),
                        static_cast<std::size_t>(route.groups * group_bytes()),
                        std::vector<std::byte>(dvla::detail::piece_bytes, std::byte{1})});
    }
    dvla::RoutedLayouts<Decision> layouts;
    if (rollout_ >= 0)
      layouts.rollout = layout(plan_.episodes_from(rollout_));
    else
      layouts.actor = layout(plan_.episodes_to(roles.actor(launch.rank)));
    plane_ = std::make_unique<Plane>(layouts, plan_, cluster_, roles, dvla::RoutedOptions{}, pool_);
  }

  Answer serve(const Command& command) {
    switch (command.what) {
      case Command::plane:
        for (const std::int64_t end = batch_ + command.batches; batch_ < end; ++batch_) one_batch();
        break;
      case Command::channels: {
        std::vector<std::thread> threads;
        for (Pair& pair : pairs_) threads.emplace_back([&] { carry(pair, command.batches); });
        for (std::thread& thread : threads) thread.join();
        break;
      }
      case Command::goodbye:
        plane_->goodbye();
        break;
    }
    const dvla::RoutedReport report = plane_->report();
    return report.bytes_sent + report.bytes_received;
  }

 private:
  struct Pair {
    std::unique_ptr<dvla::Channel> channel;
    std::size_t bytes;  ///< of a batch
    std::vector<std::byte> chunk;
  };

  void one_batch() {
    dvla::Token token{.batch = batch_, .buffer = static_cast<std::int32_t>(batch_ % 2)};
    if (rollout_ >= 0) {
      plane_->produce(token);
      plane_->commit(token);
    } else {
      plane_->arrive(token);
      plane_->consume(token);
      plane_->release(token);
    }
  }
  void carry(Pair& pair, std::int64_t batches) const {
    for (std::int64_t i = 0; i < batches; ++i)
      for (std::size_t left = pair.bytes; left > 0;) {
        const std::span<std::byte> chunk = std::span(pair.chunk).first(std::min(left, pair.chunk.size()));
        rollout_ >= 0 ? pair.channel->send(chunk, limit) : pair.channel->receive(chunk, limit);
        left -= chunk.size();
      }
  }

  dvla::C10dCluster cluster_;
  const int rollout_;  ///< -1: an actor
  const dvla::RoutingPlan plan_;
  dvla::EnvironmentPool pool_;
  std::vector<Pair> pairs_;
  std::unique_ptr<Plane> plane_;
  std::int64_t batch_ = 0;
};

void compare(int rollouts, int actors, int rounds, std::int64_t batches, std::int64_t mib) {
  const std::int64_t one = group_bytes();
  const int parts = std::max(rollouts, actors);
  const Ratio ratio{rollouts, actors, std::max<std::int64_t>((mib << 20) / one / parts, 1) * parts};
  bench::Ranks<Command, Answer> ranks(rollouts + actors, [&](const dvla::Launch& launch) {
    return [rank = std::make_shared<Rank>(launch, ratio)](const Command& command) {
      return rank->serve(command);
    };
  });
  const auto bytes = static_cast<double>(ratio.bytes() * batches);
  const auto figure = [&](Command::What what) {
    return [&, what] { return bytes / ranks.timed({what, batches}); };
  };
  char title[160];
  std::snprintf(title, sizeof title, "%d rollouts, %d actors; %lld batches of %.1f MiB in %lld groups",
                rollouts, actors, static_cast<long long>(batches),
                static_cast<double>(ratio.bytes()) / (1 << 20), static_cast<long long>(ratio.groups));
  const auto figures = bench::compare(
      title,
      {{"channels alone, nothing proved", figure(Command::channels)}, {"data plane", figure(Command::plane)}},
      rounds, 1e-9, "GB/s");
  const double episodes = static_cast<double>(ratio.episodes() * batches) / bytes;
  const auto answers = ranks.ask({Command::goodbye, 0});
  std::int64_t moved = 0;
  for (const Answer answer : answers) moved += answer;
  std::printf(
      "  episodes per second through the plane: %.0f; the plane counts %.4f of the bytes that were to "
      "cross\n",
      bench::median(figures[1]) * episodes,
      static_cast<double>(moved) / 2 / (bytes * static_cast<double>(rounds + 1)));
}

int argument(int argc, char** argv, int index, int otherwise) {
  return argc > index ? std::max(std::atoi(argv[index]), 1) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  bench::print_header(argc, argv);
  const int rounds = argument(argc, argv, 1, 9), batches = argument(argc, argv, 2, 16);
  const int mib = argument(argc, argv, 3, 64);
  compare(1, 1, rounds, batches, mib);
  compare(3, 1, rounds, batches, mib);
  compare(1, 3, rounds, batches, mib);
}
