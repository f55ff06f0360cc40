// expect: dvla: this stage word holds a policy of a slot that is not its own
// expect: environment_slot
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Trainer<dvla::GRPO, dvla::Toy>>;
P::config config;
const auto text = P::describe();
