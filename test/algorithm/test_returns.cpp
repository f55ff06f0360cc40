#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "dvla/algorithm/returns.hpp"

using Flags = std::vector<std::uint8_t>;
using dvla::RewardLevel;

namespace {
constexpr dvla::RolloutExtents extents{3, 2, 2};  // T, B, C; element [t][b][c]
const Flags none(12, 0);
}  // namespace

TEST_CASE("without an end every step counts") {
  const Flags done(12, 0);
  Flags action(12), chunk(6);
  dvla::loss_mask(extents, RewardLevel::action, done, none, action);
  dvla::loss_mask(extents, RewardLevel::chunk, none, done, chunk);
  CHECK(action == Flags(12, 1));
  CHECK(chunk == Flags(6, 1));
}

TEST_CASE("the step of the first end counts and nothing after it, whatever is done later") {
  //              t = 0       t = 1       t = 2
  const Flags done{1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0};
  Flags action(12), chunk(6);
  dvla::loss_mask(extents, RewardLevel::action, done, none, action);
  dvla::loss_mask(extents, RewardLevel::chunk, none, done, chunk);
  CHECK(action == Flags{1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0});
  CHECK(chunk == Flags{1, 1, 0, 1, 0, 0});
}

TEST_CASE("the return is the first episode's, and chunk rewards sum to it") {
  const Flags done{0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0};
  const std::vector<float> reward{1, 2, 10, 20, 4, 8, 40, 80, 16, 32, 160, 320};
  std::vector<float> returns(2), rewards(6);
  dvla::episode_returns(extents, reward, none, done, returns);
  CHECK(returns == std::vector<float>{3, 150});
  Flags mask(12);
  dvla::loss_mask(extents, RewardLevel::action, done, none, mask);
  dvla::chunk_rewards(extents, reward, mask, rewards);
  CHECK(rewards == std::vector<float>{3, 30, 0, 120, 0, 0});
}

TEST_CASE("spans of the wrong size are refused in words") {
  Flags done(11), mask(12);
  CHECK_THROWS_WITH_AS(dvla::loss_mask(extents, RewardLevel::action, done, none, mask),
                       "loss_mask: terminated has 11 elements where the extents ask for 12.", dvla::Error);
}

TEST_CASE("episodes that end in either way are masked alike") {
  //                    t = 0       t = 1       t = 2
  const Flags terminated{0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0};
  const Flags truncated{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1};
  Flags mask(12), chunk(6);
  dvla::loss_mask(extents, RewardLevel::action, terminated, truncated, mask);
  dvla::loss_mask(extents, RewardLevel::chunk, terminated, truncated, chunk);
  CHECK(mask == Flags{1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0});
  CHECK(chunk == Flags{1, 1, 0, 1, 0, 0});
}
