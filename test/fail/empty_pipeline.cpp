// expect: dvla: an empty Pipeline; name at least an environment and an algorithm
#include <dvla/dvla.hpp>

using P = dvla::Pipeline<>;
P::config config;
const auto text = P::describe();
