// Everything that runs once per batch or per step allocates nothing: counted, not promised.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/algorithm/aggregation.hpp"
#include "dvla/algorithm/clip_loss.hpp"
#include "dvla/algorithm/group_advantage.hpp"
#include "dvla/algorithm/minibatch.hpp"
#include "dvla/algorithm/returns.hpp"

namespace {
std::atomic<long> allocations{0};
}

// Not inlined: g++ would see malloc meet delete and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

TEST_CASE("one whole GRPO update on spans allocates nothing") {
  constexpr dvla::RolloutExtents extents{4, 16, 3};
  constexpr std::size_t tokens = 3 * 2, rows = 64, micro = 8;
  const std::vector<std::uint8_t> done(extents.steps(), 0);
  std::vector<float> reward(extents.steps(), 0), log_prob(rows * tokens, -1), returns(16), advantage_B(16);
  for (std::size_t i = 0; i < reward.size(); i += 5) reward[i] = 1;
  std::vector<std::uint8_t> mask(extents.steps()), keep(16);
  std::vector<float> advantage(extents.steps()), weight(extents.steps());
  std::vector<float> micro_log_prob(micro * tokens), micro_advantage(micro * 3), micro_weight(micro * 3);
  std::vector<float> gradient(micro * tokens), entropy_gradient(micro * tokens);
  std::vector<float> parameter(100), parameter_gradient(100, 0.1F), first(100), second(100);
  dvla::AdamWState state{parameter, first, second};
  dvla::MiniBatches batches(rows, {32, micro, 1});
  dvla::ClipKnobs knobs;
  knobs.entropy_bonus = 0.01;
  const dvla::LossShape shape{micro, 3, 2, dvla::LogProbLevel::action, dvla::RewardLevel::action};

  const long before = allocations;
  dvla::loss_mask(extents, dvla::RewardLevel::action, done, done, mask);
  dvla::episode_returns(extents, reward, done, done, returns);
  dvla::filter_rewards(4, -100, 100, returns, {}, keep);
  dvla::mask_episodes(keep, 3, mask);
  dvla::group_advantage(4, returns, keep, advantage_B);
  dvla::broadcast_advantage(advantage_B, 3, mask, advantage);
  dvla::loss_weights(dvla::Aggregation::trajectory_equal, 16, 3, mask, weight);
  long updates = 0;
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    batches.draw(mask, 3, epoch);
    for (std::size_t i = 0; i < batches.size(); ++i, ++updates) {
      const double denominator =
          dvla::loss_denominator(dvla::Aggregation::trajectory_equal, 3, shape.units_per_weight(), weight,
                                 batches.mini(i), batches.rows());
      for (std::size_t part = 0; part < batches.micros(i); ++part) {
        dvla::gather_rows<float>(log_prob, tokens, batches.micro(i, part), micro_log_prob);
        dvla::gather_rows<float>(advantage, 3, batches.micro(i, part), micro_advantage);
        dvla::gather_rows<float>(weight, 3, batches.micro(i, part), micro_weight);
        dvla::clip_loss<dvla::DecoupledClip, float>(shape,
                                                    {micro_log_prob,
                                                     micro_log_prob,
                                                     micro_log_prob,
                                                     micro_log_prob,
                                                     micro_advantage,
                                                     micro_weight,
                                                     {}},
                                                    knobs, denominator, gradient, entropy_gradient);
      }
      dvla::adamw_step(state, parameter_gradient, {});
    }
  }
  const long counted = allocations - before;
  CHECK(updates == 6);
  CHECK(counted == 0);
}
