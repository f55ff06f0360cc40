// expect: dvla: this policy's knobs are not reflected; add BOOST_HANA_ADAPT_STRUCT(Knobs, members...)
#include <dvla/dvla.hpp>

struct MyKnobs {
  int group = 8;
};
struct MyEnvironment {
  using slot = dvla::environment_slot;
  using knobs = MyKnobs;
  static constexpr std::string_view name = "MyEnvironment";
};
using P = dvla::Pipeline<MyEnvironment, dvla::GRPO>;
P::config config;
const auto text = P::describe();
