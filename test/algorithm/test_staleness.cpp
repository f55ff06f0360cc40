#include <doctest/doctest.h>

#include <cmath>

#include "dvla/algorithm/staleness.hpp"

using Interpolated = dvla::BasicDecoupledClip<dvla::ProximalSource::interpolated>;
using dvla::DecoupledClip;

static_assert(dvla::Uncorrected::max_staleness == 1 && DecoupledClip::max_staleness == 8);
static_assert(dvla::StalenessPolicy<Interpolated> && !dvla::StalenessPolicy<int>);
static_assert(Interpolated::name != DecoupledClip::name);

TEST_CASE("uncorrected clips against the behaviour log-prob with weight 1") {
  const dvla::Anchor anchor = dvla::Uncorrected{}.anchor({-1.0, -2.0, -3.0, 5});
  CHECK(anchor.log_prob == -2.0);
  CHECK(anchor.weight == 1.0);
}

TEST_CASE("alpha grows with the lag from 0 towards 1") {
  CHECK(Interpolated::alpha(0) == 0);
  CHECK(Interpolated::alpha(1) == 0);
  CHECK(Interpolated::alpha(2) == 0.5);
  CHECK(Interpolated::alpha(4) == 0.75);
}

TEST_CASE("interpolated reduces to uncorrected on-policy and at lag 1") {
  for (const std::int64_t lag : {0, 1}) {
    const dvla::Anchor anchor = Interpolated{}.anchor({-1.0, -1.7, 0.0, lag});
    CHECK(anchor.log_prob == -1.7);
    CHECK(anchor.weight == 1.0);
  }
}

TEST_CASE("interpolated lies between behaviour and current") {
  const dvla::Anchor anchor = Interpolated{}.anchor({-1.0, -1.4, 0.0, 2});
  CHECK(anchor.log_prob == doctest::Approx(-1.2));
  CHECK(anchor.weight == doctest::Approx(std::exp(0.2)));
}

TEST_CASE(
    "recomputed reduces to uncorrected where the weights have not moved, and corrects at lag 1 where they "
    "have") {
  CHECK(DecoupledClip{}.anchor({-1.0, -1.5, -1.5, 0}).weight == 1.0);
  const dvla::Anchor anchor = DecoupledClip{}.anchor({-1.0, -1.5, -1.2, 1});
  CHECK(anchor.log_prob == -1.2);
  CHECK(anchor.weight == doctest::Approx(std::exp(0.3)));
}

TEST_CASE("an element whose importance weight exceeds the limit is dropped, one at the limit is not") {
  CHECK(DecoupledClip{2.0}.anchor({0, -1.0, -1.0 + std::log(2.1), 1}).weight == 0);
  CHECK(DecoupledClip{1.0}.anchor({0, -1.0, -1.0, 1}).weight == 1);
}
