// dvla-bench: torch c10d smoke=1,1,8
// Full sharding between processes over loopback, by LibTorch's Gloo, TinyVLA (0.6 M parameters, all of them
// in float32, all in bfloat16, or only adapters of rank 8, on frozen units that are whole or sharded), one thread
// a rank, units released after each use, after the backward pass or never: the bytes that a rank sends in an
// optimiser step of two micro-batches, as the kernel counts them at its TCP sockets, against the formula;
// the time of a step against Unsharded, interleaved; and the share of the collectives' time that lies beside
// computation: inside a forward and backward pass that is not waiting for them at that moment.
//   bench_fsdp [rounds = 9] [steps = 10] [rows = 128, over all actors]
#include <dirent.h>
#include <linux/tcp.h>

#include <cstdlib>
#include <dvla/memory/model_pool.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/placement/c10d.hpp>
#include <dvla/sharding/fsdp.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/model.hpp>
#include <dvla/testing/sharding.hpp>
#include <dvla/trace/recorder.hpp>

#include "../interleaved.hpp"
#include "../ranks.hpp"

namespace {

using namespace std::chrono_literals;

/// Bytes that this process has sent over TCP connections that are still open, headers of TCP left out.
std::int64_t bytes_sent() {
  std::int64_t sum = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (const dirent* entry = ::readdir(folder)) {
    tcp_info info{};
    socklen_t size = sizeof info;
    if (::getsockopt(std::atoi(entry->d_name), IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
        info.tcpi_state == 1)  // established
      sum += static_cast<std::int64_t>(info.tcpi_bytes_sent - info.tcpi_bytes_retrans);
  }
  ::closedir(folder);
  return sum;
}

/// What trains and travels.
struct Kind {
  dvla::Dtype dtype = dvla::Dtype::f32;
  dvla::Adapters adapters{};
};
dvla::TokenHeadKnobs knobs(const Kind& kind) {
  dvla::TokenHeadKnobs knobs;
  knobs.dtype = kind.dtype;
  return knobs;
}
dvla::ModelInputs inputs(const dvla::Adapters& adapters = {}) {
  dvla::ModelInputs inputs;
  inputs.adapters = adapters;
  inputs.observation.proprioception = 9;
  inputs.observation.instructions = {"push the red cube to the left goal",
                                     "push the red cube to the right goal"};
  inputs.action.dimensions = 2;
  inputs.chunk = 4;
  return inputs;
}

struct Stretch {
  std::int64_t begin, end;
};
std::int64_t common(const Stretch& a, const Stretch& b) {
  return std::max<std::int64_t>(0, std::min(a.end, b.end) - std::max(a.begin, b.begin));
}

/// TinyVLA that writes down when it computes, and when it waits for parameters meanwhile.
struct Model final : dvla::TinyVlaModel<dvla::TokenHead>, dvla::UnitHooks {
  using Base = dvla::TinyVlaModel<dvla::TokenHead>;
  explicit Model(const Kind& kind) : Base(knobs(kind), inputs(kind.adapters), 1) {}
  Model(const Model& original, dvla::ShareFrozen) : Base(original, dvla::share_frozen) {}
  void hook_units(dvla::UnitHooks* hooks) {
    hooks_ = hooks;
    Base::hook_units(hooks ? this : nullptr);
  }
  void before_unit(std::size_t unit, dvla::Direction direction) override {
    const std::int64_t begin = dvla::trace::now_ns();
    hooks_->before_unit(unit, direction);
    waits.push_back({begin, dvla::trace::now_ns()});
  }
  void after_unit(std::size_t unit, dvla::Direction direction) override {
    hooks_->after_unit(unit, direction);
  }
  void gradient_ready(std::size_t unit) override { hooks_->gradient_ready(unit); }
  void pass(const dvla::Observation& observation, dvla::Field<float> action,
            std::span<const std::int64_t> rows, double scale) {
    const std::int64_t begin = dvla::trace::now_ns();
    imitate(observation, action, rows, scale);
    passes.push_back({begin, dvla::trace::now_ns()});
  }
  std::vector<Stretch> passes, waits;

 private:
  dvla::UnitHooks* hooks_ = nullptr;
};

struct Command {
  enum What : std::int64_t { unsharded, sharded, kept, never, bf16, lora, frozen } what;
  std::int64_t steps;
};
struct Answer {
  double bytes_a_step = 0, formula = 0, counted = 0;  ///< counted: by traffic()
  double beside = 0;                                  ///< share of the collectives' time
};

/// A model, its weights under one policy, and rows to learn from.
class Learner {
 public:
  virtual ~Learner() = default;
  virtual Answer learn(std::int64_t steps) = 0;
};
template <class Weights>
class LearnerWith final : public Learner {
 public:
  template <class Knobs = dvla::NoKnobs>
  LearnerWith(const std::string& name, dvla::Cluster& cluster, std::int64_t rows, const Kind& kind,
              const Knobs& sharding = {})
      : rows_(rows), model_(kind), weights_(model_, pool_, sharding, [&](const std::string& purpose) {
          std::vector<int> members;
          for (int rank = 0; rank < cluster.world(); ++rank) members.push_back(rank);
          return cluster.group(name + "/" + purpose, members, 60s);
        }) {
    dvla::testing::fill_observation(*observation_, inputs().observation, 4);
    for (std::int64_t row = weights_.actor(); row < rows; row += weights_.actors()) mine_.push_back(row);
    if constexpr (is_sharded) {
      formula_ = dvla::testing::shard_bytes(model_, cluster.world(), sharding, 2);
      weights_.trace_to(trace_);
    }
    learn(1);
  }
  Answer learn(std::int64_t steps) override {
    model_.passes.clear();
    model_.waits.clear();
    const std::int64_t sent = bytes_sent(), begin = dvla::trace::now_ns();
    const dvla::ShardTraffic before = weights_.traffic();
    for (std::int64_t i = 0; i < steps; ++i) step();
    if constexpr (is_sharded) {
      if (formula_.forward == 0) weights_.gather_all();  // whole after each step: a part of the step
    }
    Answer answer;
    const auto a_step = [&](std::int64_t count) {
      return static_cast<double>(count) / static_cast<double>(steps);
    };
    answer.counted = a_step(weights_.traffic().total() - before.total());
    answer.bytes_a_step = a_step(bytes_sent() - sent);
    if constexpr (is_sharded) {
      answer.formula = static_cast<double>(formula_.step);
      answer.beside = beside(begin);
    }
    return answer;
  }

 private:
  static constexpr bool is_sharded = requires(Weights & weights) { weights.layout(); };
  void step() {
    weights_.zero_gradients();
    for (const int micro : {0, 1}) {
      const auto [first, count] = dvla::share_of(std::ssize(mine_), 2, micro);
      weights_.begin_pass({.last = micro == 1});
      model_.pass(*observation_, action_,
                  std::span<const std::int64_t>(mine_).subspan(static_cast<std::size_t>(first),
                                                               static_cast<std::size_t>(count)),
                  static_cast<double>(count) / static_cast<double>(rows_));
    }
    weights_.step({});
  }
  double beside(std::int64_t since) const {
    std::int64_t all = 0, beside = 0;
    for (const auto& span : trace_.spans()) {
      if (span.begin_ns < since) continue;
      const Stretch collective{span.begin_ns, span.end_ns};
      all += collective.end - collective.begin;
      for (const Stretch& pass : model_.passes) beside += common(collective, pass);
      for (const Stretch& wait : model_.waits) beside -= common(collective, wait);
    }
    return all > 0 ? static_cast<double>(beside) / static_cast<double>(all) : 0;
  }

  std::int64_t rows_;
  dvla::ModelPool pool_{std::size_t{64} << 20};
  Model model_;
  dvla::OwnedRecord<dvla::Observation> observation_{dvla::observation_layout(inputs().observation, {rows_}),
                                                    pool_};
  std::vector<float> values_ = std::vector<float>(static_cast<std::size_t>(rows_ * 8), 0.3F);
  dvla::Field<float> action_{{rows_, 4, 2}, values_.data()};
  std::vector<std::int64_t> mine_;
  dvla::trace::Recorder trace_;
  dvla::testing::ShardBytes formula_;
  Weights weights_;
};

struct Rank {
  using Whole = LearnerWith<dvla::UnshardedWeights<Model>>;
  using Sharded = LearnerWith<dvla::ShardedWeights<Model>>;
  Rank(const dvla::Launch& launch, std::int64_t rows) : cluster(launch, 60s) {
    Model::use_threads(1);
    learners.push_back(std::make_unique<Whole>("whole", cluster, rows, Kind{}));
    using enum dvla::UnitRelease;
    const auto add = [&](const std::string& name, const Kind& kind, const dvla::FsdpKnobs& sharding) {
      learners.push_back(std::make_unique<Sharded>(name, cluster, rows, kind, sharding));
    };
    const Kind adapters{dvla::Dtype::f32, {.rank = 8, .alpha = 16}};
    add("sharded", {}, {});
    add("kept", {}, {after_backward});
    add("never", {}, {never});
    add("bf16", {dvla::Dtype::bf16}, {});
    add("lora", adapters, {});
    add("frozen", adapters, {.shard_frozen = true});
  }
  dvla::C10dCluster cluster;
  std::vector<std::unique_ptr<Learner>> learners;  ///< by Command::What
};

const char* name_of(Command::What what) {
  return what == Command::kept     ? "after_backward"
         : what == Command::never  ? "never"
         : what == Command::bf16   ? "bf16"
         : what == Command::lora   ? "LoRA"
         : what == Command::frozen ? "LoRA, frozen too"
                                   : "after_use";
}

void compare(int actors, int rounds, int steps, std::int64_t rows) {
  using enum Command::What;
  bench::Ranks<Command, Answer> ranks(actors, [&](const dvla::Launch& launch) {
    return [rank = std::make_shared<Rank>(launch, rows)](const Command& command) {
      return rank->learners[static_cast<std::size_t>(command.what)]->learn(command.steps);
    };
  });
  std::printf(
      "bytes that each of %d actors sends in a step: at its sockets, by the formula, ratio; by traffic()\n",
      actors);
  for (const auto what : {sharded, kept, never, bf16, lora, frozen})
    for (const Answer& answer : ranks.ask({what, 4}))
      std::printf("  FSDP %-16s %15.0f %12.0f   %s %12.0f\n", name_of(what), answer.bytes_a_step,
                  answer.formula,
                  answer.formula > 0 ? std::to_string(answer.bytes_a_step / answer.formula).c_str() : "-",
                  answer.counted);
  std::vector<double> shares;
  const auto time_of = [&](Command::What what) {
    return [&, what] {
      double seconds = 0;
      const auto answers = ranks.ask({what, steps}, &seconds);
      if (what == sharded) shares.push_back(answers.front().beside);
      return seconds / steps;
    };
  };
  bench::compare("step of " + std::to_string(rows) + " rows, " + std::to_string(actors) + " actors",
                 {{"Unsharded", time_of(unsharded)},
                  {"FSDP after_use", time_of(sharded)},
                  {"FSDP after_backward", time_of(kept)},
                  {"FSDP never", time_of(never)},
                  {"FSDP bf16", time_of(bf16)}},
                 rounds, 1e3, "ms");
  shares.erase(shares.begin());  // of the round that does not count
  if (actors > 1)
    std::printf("  share of FSDP's collectives beside computation: %.2f [%.2f, %.2f]\n",
                bench::median(shares), bench::quantile(shares, 0.25), bench::quantile(shares, 0.75));
}

int argument(int argc, char** argv, int index, int otherwise) {
  return argc > index ? std::max(std::atoi(argv[index]), 1) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argument(argc, argv, 1, 9), steps = argument(argc, argv, 2, 10);
  const int rows = argument(argc, argv, 3, 128);
  bench::print_header(argc, argv);
  for (const int actors : {1, 2, 3, 4}) compare(actors, rounds, steps, rows);
}
