// expect: dvla: this policy has no name; add `static constexpr std::string_view name
#include <dvla/dvla.hpp>

struct MyEnvironment {
  using slot = dvla::environment_slot;
  using knobs = dvla::NoKnobs;
};
using P = dvla::Pipeline<MyEnvironment, dvla::GRPO>;
P::config config;
const auto text = P::describe();
