// expect: dvla: this stage word holds a policy of a slot that is not its own
// expect: PolicyGradient<
// expect: algorithm_slot
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::GRPO>>;
P::config config;
const auto text = P::describe();
