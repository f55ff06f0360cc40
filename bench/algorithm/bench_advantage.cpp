// The trainer's arithmetic against the plainest hand-written loops: mask + return + advantage, the clipped
// loss with its gradient, one AdamW step. Arguments: T decisions, B episodes (C = 8 control steps, A = 7
// dimensions, groups of 8).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/algorithm/aggregation.hpp"
#include "dvla/algorithm/clip_loss.hpp"
#include "dvla/algorithm/group_advantage.hpp"
#include "dvla/algorithm/minibatch.hpp"
#include "dvla/algorithm/returns.hpp"
#include "dvla/core/random.hpp"

namespace {

constexpr std::size_t chunk = 8, action_dim = 7, tokens = chunk * action_dim, group = 8;

struct Rollout {
  Rollout(std::size_t decisions, std::size_t episodes) : extents{decisions, episodes, chunk} {
    dvla::SplitMix64 random(1);
    done.resize(extents.steps());
    truncated.resize(extents.steps());
    reward.resize(extents.steps());
    for (std::size_t i = 0; i < done.size(); ++i) {
      done[i] = random.uniform01() < 0.5 / static_cast<double>(decisions * chunk);
      reward[i] = done[i];
    }
    for (std::size_t i = 0; i < extents.rows() * tokens; ++i) {
      behaviour.push_back(static_cast<float>(-3 * random.uniform01()));
      current.push_back(behaviour.back() + static_cast<float>(0.1 * random.normal()));
    }
    mask.resize(extents.rows());
    advantage.resize(extents.rows());
    weight.resize(extents.rows());
    returns.resize(episodes);
    advantage_B.resize(episodes);
    gradient.resize(current.size());
  }

  void advantages() {
    dvla::loss_mask(extents, dvla::RewardLevel::chunk, done, truncated, mask);
    dvla::episode_returns(extents, reward, done, truncated, returns);
    dvla::group_advantage(group, returns, {}, advantage_B);
    dvla::broadcast_advantage(advantage_B, 1, mask, advantage);
    dvla::loss_weights(dvla::Aggregation::masked_mean, extents.episodes, 1, mask, weight);
  }

  void plain_advantages() {
    const std::size_t T = extents.decisions, B = extents.episodes;
    for (std::size_t b = 0; b < B; ++b) {
      returns[b] = 0;
      bool alive = true;
      for (std::size_t t = 0; t < T; ++t) {
        mask[t * B + b] = alive;
        for (std::size_t c = 0; c < chunk; ++c) {
          if (alive) returns[b] += reward[(t * B + b) * chunk + c];
          if (done[(t * B + b) * chunk + c]) alive = false;
        }
      }
    }
    for (std::size_t g = 0; g < B; g += group) {
      float mean = 0, variance = 0;
      for (std::size_t b = g; b < g + group; ++b) mean += returns[b] / group;
      for (std::size_t b = g; b < g + group; ++b)
        variance += (returns[b] - mean) * (returns[b] - mean) / (group - 1);
      for (std::size_t b = g; b < g + group; ++b)
        advantage_B[b] = (returns[b] - mean) / (std::sqrt(variance) + 1e-6F);
    }
    for (std::size_t t = 0; t < T; ++t)
      for (std::size_t b = 0; b < B; ++b) {
        advantage[t * B + b] = advantage_B[b] * mask[t * B + b];
        weight[t * B + b] = mask[t * B + b];
      }
  }

  double plain_loss(float denominator) {
    double loss = 0;
    for (std::size_t n = 0; n < extents.rows(); ++n)
      for (std::size_t k = n * tokens; k < (n + 1) * tokens; ++k) {
        const double ratio = std::exp(static_cast<double>(current[k]) - static_cast<double>(behaviour[k]));
        const double clipped = ratio < 0.8 ? 0.8 : ratio > 1.28 ? 1.28 : ratio;
        const double a = advantage[n], one = -a * ratio, two = -a * clipped;
        loss += (one > two ? one : two) * weight[n] / denominator;
        gradient[k] = one >= two ? static_cast<float>(one * weight[n] / denominator) : 0;
      }
    return loss;
  }

  dvla::RolloutExtents extents;
  std::vector<std::uint8_t> done, truncated, mask;
  std::vector<float> reward, behaviour, current, advantage, weight, returns, advantage_B, gradient;
};

Rollout make(const benchmark::State& state) {
  return Rollout(static_cast<std::size_t>(state.range(0)), static_cast<std::size_t>(state.range(1)));
}

void sizes(benchmark::internal::Benchmark* bench) {
  for (const int decisions : {4, 20})
    for (const int episodes : {128, 1024}) bench->Args({decisions, episodes});
}

void advantage(benchmark::State& state) {
  Rollout rollout = make(state);
  for (auto _ : state) {
    rollout.advantages();
    benchmark::DoNotOptimize(rollout.advantage.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(rollout.extents.rows()));
}

void advantage_plain(benchmark::State& state) {
  Rollout rollout = make(state);
  for (auto _ : state) {
    rollout.plain_advantages();
    benchmark::DoNotOptimize(rollout.advantage.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(rollout.extents.rows()));
}

template <class Correction>
void clip_loss(benchmark::State& state) {
  Rollout rollout = make(state);
  rollout.advantages();
  const dvla::LossShape shape{rollout.extents.rows(), chunk, action_dim};
  for (auto _ : state) {
    const auto stats = dvla::clip_loss<Correction, float>(
        shape,
        {rollout.current, rollout.behaviour, rollout.behaviour, {}, rollout.advantage, rollout.weight, {}},
        {}, 1000.0, rollout.gradient);
    benchmark::DoNotOptimize(stats.policy_loss);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(rollout.current.size()));
}

void clip_loss_plain(benchmark::State& state) {
  Rollout rollout = make(state);
  rollout.advantages();
  for (auto _ : state) {
    benchmark::DoNotOptimize(rollout.plain_loss(1000));
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(rollout.current.size()));
}

struct Optimiser {
  explicit Optimiser(std::size_t count) : parameter(count, 1), gradient(count), first(count), second(count) {
    dvla::SplitMix64 random(2);
    for (float& value : gradient) value = static_cast<float>(random.normal());
  }
  std::vector<float> parameter, gradient, first, second;
};

void adamw(benchmark::State& state) {
  Optimiser model(static_cast<std::size_t>(state.range(0)));
  dvla::AdamWState optimiser{model.parameter, model.first, model.second};
  for (auto _ : state) {
    benchmark::DoNotOptimize(dvla::adamw_step(optimiser, model.gradient, {}));
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void adamw_plain(benchmark::State& state) {
  Optimiser model(static_cast<std::size_t>(state.range(0)));
  int step = 0;
  for (auto _ : state) {
    double squares = 0;
    for (const float g : model.gradient) squares += static_cast<double>(g) * static_cast<double>(g);
    const auto scale = static_cast<float>(std::min(1.0, 1.0 / (std::sqrt(squares) + 1e-6)));
    ++step;
    const auto root = static_cast<float>(std::sqrt(1 - std::pow(0.999, step)));
    const auto size = static_cast<float>(3e-4 / (1 - std::pow(0.9, step)));
    for (std::size_t i = 0; i < model.parameter.size(); ++i) {
      const float g = model.gradient[i] * scale;
      model.first[i] = 0.9F * model.first[i] + 0.1F * g;
      model.second[i] = 0.999F * model.second[i] + 0.001F * g * g;
      model.parameter[i] = model.parameter[i] * (1 - 3e-6F) -
                           size * model.first[i] / (std::sqrt(model.second[i]) / root + 1e-8F);
    }
    benchmark::DoNotOptimize(model.parameter.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

void minibatch_draw(benchmark::State& state) {
  const auto rows = static_cast<std::size_t>(state.range(0) * state.range(1));
  const std::vector<std::uint8_t> mask(rows, 1);
  dvla::MiniBatches batches(rows, {128, 32, 1});
  std::uint64_t seed = 0;
  for (auto _ : state) {
    batches.draw(mask, 1, ++seed);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(rows));
}

BENCHMARK(advantage)->Apply(sizes);
BENCHMARK(advantage_plain)->Apply(sizes);
BENCHMARK(clip_loss<dvla::Uncorrected>)->Apply(sizes);
BENCHMARK(clip_loss<dvla::DecoupledClip>)->Apply(sizes);
BENCHMARK(clip_loss_plain)->Apply(sizes);
BENCHMARK(adamw)->Arg(1 << 14)->Arg(600'000)->Arg(1 << 24);
BENCHMARK(adamw_plain)->Arg(1 << 14)->Arg(600'000)->Arg(1 << 24);
BENCHMARK(minibatch_draw)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
