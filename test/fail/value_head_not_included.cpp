// expect: dvla: WithValue<Model> is named but its machinery is not included: add #include
#include <dvla/dvla.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/pipeline/buildable.hpp>

using P = dvla::Pipeline<dvla::Toy, dvla::WithValue<dvla::TinyVLA<>>, dvla::GRPO>;
constexpr bool builds = dvla::buildable<P>();
