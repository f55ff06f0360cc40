#include <doctest/doctest.h>

#include <cstring>

#include "dvla/control_plane/weight_buffer.hpp"

TEST_CASE("A sealed buffer verifies; a changed byte, header or size does not") {
  dvla::WeightBuffer buffer(1000, *std::pmr::new_delete_resource());
  CHECK(buffer.version() == -1);
  CHECK_THROWS_AS(buffer.verify(), dvla::Error);
  std::memset(buffer.payload().data(), 7, 1000);
  buffer.seal(12);
  CHECK(buffer.version() == 12);
  CHECK_NOTHROW(buffer.verify());
  buffer.payload()[999] = std::byte{8};
  CHECK_THROWS_AS(buffer.verify(), dvla::Error);
  buffer.payload()[999] = std::byte{7};
  CHECK_NOTHROW(buffer.verify());
  buffer.block()[0] ^= std::byte{1};  // magic
  CHECK_THROWS_AS(buffer.verify(), dvla::Error);
}

TEST_CASE("The block is header and payload in one piece, so it can travel as it is") {
  dvla::WeightBuffer sent(256, *std::pmr::new_delete_resource()),
      received(256, *std::pmr::new_delete_resource());
  std::memset(sent.payload().data(), 3, 256);
  sent.seal(4);
  CHECK(sent.block().size() == sizeof(dvla::WeightHeader) + 256);
  CHECK(sent.payload().data() == sent.block().data() + sizeof(dvla::WeightHeader));
  std::memcpy(received.block().data(), sent.block().data(), sent.block().size());
  CHECK_NOTHROW(received.verify());
  CHECK(received.version() == 4);
}
