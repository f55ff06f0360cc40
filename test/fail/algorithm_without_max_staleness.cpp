// expect: dvla: this algorithm or schedule does not say how old weights may be
#include <dvla/dvla.hpp>

struct MyAlgorithm {
  using slot = dvla::algorithm_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "MyAlgorithm";
};
using P = dvla::Pipeline<dvla::Toy, MyAlgorithm>;
P::config config;
const auto text = P::describe();
