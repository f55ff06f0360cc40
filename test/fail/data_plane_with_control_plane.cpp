// expect: dvla: this stage word holds a policy of a slot that is not its own
// expect: control_plane_slot
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::GRPO, dvla::DataPlane<dvla::Gloo>>;
P::config config;
const auto text = P::describe();
