#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "dvla/model/words.hpp"

using namespace dvla;
using dvla::detail::tokenise;

TEST_CASE("FNV-1a is the published function") {
  CHECK_EQ(dvla::detail::fnv1a(""), 0xCBF29CE484222325ull);
  CHECK_EQ(dvla::detail::fnv1a("a"), 0xAF63DC4C8601EC8Cull);
  CHECK_EQ(dvla::detail::fnv1a("foobar"), 0x85944171F73967E8ull);
}

TEST_CASE("case and punctuation do not matter, words do, and short instructions are padded with 0") {
  const auto table = tokenise({"Push the cube, LEFT!", "push the cube left", "reach"});
  REQUIRE_EQ(table.length, 4);
  REQUIRE_EQ(table.tokens.size(), 12);
  CHECK(std::equal(table.tokens.begin(), table.tokens.begin() + 4, table.tokens.begin() + 4));
  CHECK_NE(table.tokens[8], 0);
  CHECK_EQ(std::count(table.tokens.begin() + 9, table.tokens.end(), 0), 3);
}

TEST_CASE("words whose hashes collide in a table still get slots of their own") {
  std::string text;
  for (int i = 0; i < detail::vocabulary_size - 1; ++i) text += "w" + std::to_string(i) + " ";
  const auto table = tokenise({text});
  const std::set<std::int64_t> slots(table.tokens.begin(), table.tokens.end());
  CHECK_EQ(slots.size(), detail::vocabulary_size - 1);
  CHECK_EQ(*slots.begin(), 1);
  CHECK_EQ(*slots.rbegin(), detail::vocabulary_size - 1);
  CHECK_THROWS_AS(tokenise({text, "one more"}), ConfigError);
  CHECK_THROWS_AS(tokenise({"fine", "..."}), ConfigError);
}
