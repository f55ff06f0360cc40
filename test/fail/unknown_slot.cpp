// expect: or another of the nine slots
#include <dvla/dvla.hpp>

struct reward_slot {
  static constexpr std::string_view name = "reward";
};
struct MyReward {
  using slot = reward_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "MyReward";
};
using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, MyReward>;
P::config config;
const auto text = P::describe();
