// expect: dvla: this policy has no knobs; add `using knobs = MyKnobs;`
#include <dvla/dvla.hpp>

struct MyEnvironment {
  using slot = dvla::environment_slot;
  static constexpr std::string_view name = "MyEnvironment";
};
using P = dvla::Pipeline<MyEnvironment, dvla::GRPO>;
P::config config;
const auto text = P::describe();
