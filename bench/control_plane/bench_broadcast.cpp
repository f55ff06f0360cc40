// dvla-bench: torch c10d mujoco smoke=16,1,1
// Weights between two processes over loopback, by LibTorch's Gloo, against the plainest equivalents, in turn:
// 1. a GiB of weights from begin until they are whole and proven at the rollout, against one TCP stream of
// the
//    same bytes, which proves nothing, and against the channel alone (aim: 0.9 of the stream);
// 2. 512 tensors of 16 KiB packed as a list of ranges, sent, proven and laid out, against one flat buffer of
//    the same size (aim: 1.1 of its time);
// 3. sampling (MuJoCo Push, TinyVLA, one thread) in the rollout's process while weights arrive and are
//    installed, against sampling alone (aim: 0.97 of its env steps a second).
//   bench_broadcast [MiB = 1024] [rounds = 7] [tenths of a second of sampling = 20]
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <memory_resource>
#include <string>
#include <thread>

#include "../interleaved.hpp"
#include "../ranks.hpp"
#include "dvla/control_plane/broadcast.hpp"
#include "dvla/environment/mujoco.hpp"
#include "dvla/memory/environment_pool.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/placement/c10d.hpp"
#include "dvla/trace/off.hpp"

namespace {

using dvla::BroadcastWeightPlane;
using namespace std::chrono_literals;
constexpr std::size_t mib = std::size_t{1} << 20;
constexpr auto limit = 60s;
const dvla::Roles roles{{1}, {0}};
std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();

/// One sampling thread's work: 64 environments and two copies of the policy.
struct Sampler {
  using Model = dvla::TinyVlaModel<dvla::TokenHead>;
  using Environment = dvla::MujocoBatch<dvla::Push>;

  Sampler() { worker.rollout(*transition, *decision, 0); }
  std::unique_ptr<Model> model() const {
    const dvla::TokenHeadKnobs knobs;
    return std::make_unique<Model>(
        knobs, dvla::ModelInputs{environment.observation_spec(), environment.action_spec(), knobs.chunk}, 1);
  }
  /// Env steps a second over about `seconds`.
  double sample(double seconds) {
    const double start = bench::now();
    const std::int64_t before = worker.counts().env_steps;
    do {
      worker.rollout(*transition, *decision, ++batch);
    } while (bench::now() < start + seconds);
    return static_cast<double>(worker.counts().env_steps - before) / (bench::now() - start);
  }

  dvla::EnvironmentPool pool{256 * mib};
  Environment environment{{.environments = 64}, pool};
  dvla::trace::Off off;
  std::unique_ptr<Model> front = model(), back = std::make_unique<Model>(*front, dvla::share_frozen);
  dvla::RolloutWorker<Environment, Model, dvla::trace::Off> worker{
      environment, *front, *back, {.chunk = dvla::TokenHeadKnobs{}.chunk}, off};
  dvla::OwnedRecord<dvla::Transition> transition{
      worker.layout(worker.shape().decisions, worker.shape().chunk), pool};
  dvla::OwnedRecord<Model::Decision> decision{
      front->decision_layout({worker.shape().decisions, worker.shape().episodes}), pool};
  std::int64_t batch = 0;
};

enum class Do : std::int64_t { stream, channel, whole, install, sample, finish };
enum Which : std::int64_t { large, flat, list, policy, middle, planes };
struct Command {
  Do what;
  Which plane = large;
  std::int64_t first = 0, versions = 0;  ///< whole, install, sample: the next version's number; how many
  double seconds = 0;                    ///< sample
};
struct Answer {
  std::int64_t next = 0;  ///< the actor's: the plane's next version
  double rate = 0;        ///< the rollout's: env steps a second
};

/// Actor and rollout make the same.
class Rank {
 public:
  Rank(const dvla::Launch& launch, const bench::Listener& listener, std::size_t bytes)
      : actor_(launch.rank == 0), bytes_(bytes), cluster_(launch, limit) {
    stream_ = actor_ ? listener.accept() : listener.connect();
    channel_ = cluster_.channel("alone", 1 - launch.rank, limit);
    if (!actor_) {
      Sampler::Model::use_threads(1);
      sampler_ = std::make_unique<Sampler>();
    }
    const std::size_t of_policy =
        actor_ ? static_cast<std::size_t>(std::stoull(cluster_.get("bytes of the policy", limit)))
               : dvla::trainable_bytes(sampler_->worker.models().front().model->units());
    if (!actor_) cluster_.put("bytes of the policy", std::to_string(of_policy));
    const auto plane = [&](Which which, std::size_t size, std::vector<dvla::WeightPart> parts) {
      // Planes of one job differ in the incarnation: names of channels are new.
      planes_[which] = std::make_unique<BroadcastWeightPlane>(size, std::move(parts), dvla::GlooKnobs{},
                                                              cluster_, roles, which, limit, heap);
    };
    plane(large, bytes_, {});
    plane(flat, list_bytes, {});
    plane(list, list_bytes, {ranges()});
    plane(policy, of_policy, {});
    plane(middle, 64 * mib, {});
    weights_.resize(std::max({bytes_, list_bytes, 64 * mib}),
                    std::byte{static_cast<unsigned char>(launch.rank)});
  }

  Answer serve(const Command& command) {
    if (command.what == Do::finish)
      for (const auto& plane : planes_) plane->finish(limit);
    return actor_ ? act(command) : follow(command);
  }

 private:
  static constexpr std::size_t tensor = 16384, list_bytes = 512 * tensor, piece = 4 * mib;

  /// Every other tensor, then those between: no two are neighbours in the flat weights.
  static dvla::WeightPart ranges() {
    dvla::WeightPart part;
    for (const std::size_t first : {0, 1})
      for (std::size_t i = first; i < 512; i += 2) part.push_back({i * tensor, tensor});
    return part;
  }
  std::span<std::byte> all_of(std::size_t bytes) { return std::span(weights_).first(bytes); }
  template <class Move>
  void in_pieces(Move move) {
    for (std::size_t at = 0; at < bytes_; at += piece)
      move(all_of(bytes_).subspan(at, std::min(piece, bytes_ - at)));
  }

  Answer act(const Command& command) {
    BroadcastWeightPlane& plane = *planes_[command.plane];
    std::int64_t next = command.first;
    switch (command.what) {
      case Do::stream:
        in_pieces([&](std::span<std::byte> bytes) { stream_.send(bytes.data(), bytes.size()); });
        break;
      case Do::channel:
        in_pieces([&](std::span<std::byte> bytes) { channel_->send(bytes, limit); });
        break;
      case Do::whole:
        for (std::int64_t i = 0; i < command.versions; ++i) {
          plane.begin(next);
          plane.publish(next++);
        }
        break;
      case Do::install:
        pack(plane, next++);
        break;
      case Do::sample: {  // so many versions, evenly spread over the time
        const double start = bench::now();
        const double pause =
            command.seconds / static_cast<double>(std::max<std::int64_t>(command.versions, 1));
        for (std::int64_t i = 0; i < command.versions; ++i) {
          std::this_thread::sleep_for(
              std::chrono::duration<double>(start + (static_cast<double>(i) + 0.3) * pause - bench::now()));
          pack(plane, next++);
        }
        break;
      }
      case Do::finish:
        break;
    }
    return {next, 0};
  }
  void pack(BroadcastWeightPlane& plane, std::int64_t version) {
    std::span<std::byte> to = plane.begin(version);
    for (const auto& [offset, bytes] : plane.part()) {
      std::memcpy(to.data(), weights_.data() + offset, bytes);
      to = to.subspan(bytes);
    }
    plane.publish(version);
  }

  Answer follow(const Command& command) {
    BroadcastWeightPlane& plane = *planes_[command.plane];
    switch (command.what) {
      case Do::stream:
        in_pieces([&](std::span<std::byte> bytes) { stream_.receive(bytes.data(), bytes.size()); });
        break;
      case Do::channel:
        in_pieces([&](std::span<std::byte> bytes) { channel_->receive(bytes, limit); });
        break;
      case Do::whole:
        plane.await(command.first + command.versions - 1, limit);
        break;
      case Do::install:
        plane.receive(std::vector<dvla::WeightUnit>{{.values = all_of(plane.bytes())}}, command.first, limit);
        break;
      case Do::sample: {
        std::thread reception([&] { install(command, plane); });
        const double rate = sampler_->sample(command.seconds);
        reception.join();
        return {0, rate};
      }
      case Do::finish:
        break;
    }
    return {};
  }
  /// As the reception lane does it: it waits for a version, then lays it out, the policy's own weights in its
  /// back copy.
  void install(const Command& command, BroadcastWeightPlane& plane) {
    for (std::int64_t version = command.first; version < command.first + command.versions; ++version) {
      plane.await(version, limit);
      if (command.plane == policy)
        sampler_->worker.models().fill(
            [&](auto& back) { back.version = plane.receive(back.model->units(), version, limit); });
      else
        plane.receive(std::vector<dvla::WeightUnit>{{.values = all_of(plane.bytes())}}, version, limit);
    }
  }

  const bool actor_;
  const std::size_t bytes_;
  dvla::C10dCluster cluster_;
  bench::Stream stream_;
  std::unique_ptr<dvla::Channel> channel_;
  std::unique_ptr<Sampler> sampler_;
  std::array<std::unique_ptr<BroadcastWeightPlane>, planes> planes_;
  std::vector<std::byte> weights_;
};

int argument(int argc, char** argv, int index, int otherwise) {
  return argc > index ? std::max(std::atoi(argv[index]), 1) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t bytes = static_cast<std::size_t>(argument(argc, argv, 1, 1024)) * mib;
  const int rounds = argument(argc, argv, 2, 7);
  const double seconds = 0.1 * argument(argc, argv, 3, 20);
  const bench::Listener listener;
  bench::Ranks<Command, Answer> ranks(2, [&](const dvla::Launch& launch) {
    return [rank = std::make_shared<Rank>(launch, listener, bytes)](const Command& command) {
      return rank->serve(command);
    };
  });
  bench::print_header(argc, argv);

  std::array<std::int64_t, planes> next{};
  double took = 0;
  const auto ask = [&](Command command) {
    command.first = next[static_cast<std::size_t>(command.plane)];
    const auto answers = ranks.ask(command, &took);
    next[static_cast<std::size_t>(command.plane)] = answers[0].next;
    return answers[1].rate;
  };
  const auto bytes_a_second = [&](Command command, int times) {
    return [&, command, times] {
      ask(command);
      return times * static_cast<double>(bytes) / took;
    };
  };
  const auto duration = [&](Command command) {
    return [&, command] {
      ask(command);
      return took;
    };
  };
  const auto sampling = [&](Which plane, std::int64_t versions) {
    return [&, plane, versions] { return ask({Do::sample, plane, 0, versions, seconds}); };
  };

  bench::compare(std::to_string(bytes / mib) + " MiB of weights over loopback",
                 {{"one TCP stream, 4 MiB pieces, nothing proven", bytes_a_second({Do::stream}, 1)},
                  {"channel alone, 4 MiB pieces, nothing proven", bytes_a_second({Do::channel}, 1)},
                  {"plane, one version, whole and proven", bytes_a_second({Do::whole, large, 0, 1}, 1)},
                  {"plane, four versions in a row", bytes_a_second({Do::whole, large, 0, 4}, 4)}},
                 rounds, 1e-9, "GB/s");
  bench::compare("8 MiB packed, sent, proven and laid out at the rollout",
                 {{"one flat buffer", duration({Do::install, flat, 0, 1})},
                  {"512 tensors of 16 KiB as a list of ranges", duration({Do::install, list, 0, 1})}},
                 8 * rounds, 1e3, "ms");
  const auto in_window = [&](double a_second) {
    return std::max<std::int64_t>(1, std::llround(a_second * seconds));
  };
  bench::compare("env steps a second of one sampling thread, weights packed and installed beside it",
                 {{"no weights arrive", sampling(policy, 0)},
                  {"the policy's own weights, 4 a second", sampling(policy, in_window(4))},
                  {"64 MiB, one a second", sampling(middle, in_window(1))},
                  {"64 MiB, 8 a second", sampling(middle, in_window(8))}},
                 rounds, 1, "/s");
  ranks.ask({Do::finish});
}
