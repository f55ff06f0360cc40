// expect: dvla: the sharding lacks a member, or has it with other types
#include "whole.inc"

struct Mine : Own<dvla::sharding_slot> {
  Mine(dvla::testing::LinearModel&, std::pmr::memory_resource&) {}
  void zero_gradients() {}
  double step(const dvla::AdamWKnobs&) { return 0; }
  void reset_optimiser() {}
  std::size_t packed_bytes() const { return 0; }
  std::vector<dvla::ShardPiece> pieces() { return {}; }
  std::int64_t& steps() { return count; }
  void refresh() {}
  void take_parameters() {}
  std::int64_t count = 0;
};
template double train(const Whole::replace<Mine>::config&);
