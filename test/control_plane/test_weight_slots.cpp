// dvla-test:
#include <doctest/doctest.h>

#include "dvla/control_plane/weight_slots.hpp"

using dvla::detail::WeightSlots;

namespace {
void fill(WeightSlots& slots, int actor, std::int64_t version) {
  slots.announce(actor, version);
  REQUIRE(slots.free(actor));
  slots.take(actor, version);
  slots.ready(actor);
}
WeightSlots of(int actors) {
  const dvla::detail::PartLayout part(dvla::WeightPart{{0, 100}});
  return {std::vector(static_cast<std::size_t>(actors), part), 0, true, *std::pmr::new_delete_resource()};
}
}  // namespace

TEST_CASE("A version is whole when all parts of it are ready, and the newest of those stays") {
  WeightSlots slots = of(2);
  CHECK(slots.newest_whole() == -1);
  fill(slots, 0, 0);
  CHECK(slots.newest_whole() == -1);
  fill(slots, 1, 0);
  CHECK(slots.newest_whole() == 0);
  fill(slots, 0, 1);
  slots.announce(0, 2);
  CHECK_FALSE(slots.free(0));  // 0 is the newest whole one, and 1 is not whole yet
  CHECK(slots.last_actor() == 1);
  slots.announce(1, 1);
  slots.take(1, 1);
  CHECK(slots.newest_whole() == 0);  // half a part is none
  slots.ready(1);
  CHECK(slots.newest_whole() == 1);
  CHECK(slots.free(0));
}

TEST_CASE("Nothing is overwritten under a reader") {
  WeightSlots slots = of(1);
  fill(slots, 0, 0);
  slots.read(0, 1);
  fill(slots, 0, 1);
  slots.announce(0, 2);
  CHECK_FALSE(slots.free(0));
  slots.read(0, -1);
  CHECK(slots.free(0));
}

TEST_CASE("A version that an actor has gone on without gives way") {
  WeightSlots slots = of(2);
  fill(slots, 0, 5);
  fill(slots, 0, 6);
  slots.announce(0, 7);
  CHECK_FALSE(slots.free(0));
  CHECK(slots.has_sent(0, 6));
  fill(slots, 1, 8);  // joined late
  CHECK_FALSE(slots.has_sent(0, 6));
  fill(slots, 0, 7);
  fill(slots, 0, 8);
  CHECK(slots.newest_whole() == 8);
}

TEST_CASE("A fill that fails leaves nothing behind") {
  WeightSlots slots = of(1);
  fill(slots, 0, 0);
  slots.announce(0, 1);
  slots.take(0, 1);
  slots.abandon(0);
  CHECK(slots.newest_whole() == 0);
  CHECK(slots.find(0, 1) == nullptr);
  CHECK(slots.free(0));
}
