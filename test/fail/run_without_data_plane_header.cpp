// expect: dvla: C10d is the data plane but its machinery is not included: add #include
#include <dvla/algorithm/grpo.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/linear_model.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>,
                         dvla::DataPlane<dvla::C10d>>;
double train(const dvla::Config<P>& config) { return dvla::Run<P>(config).train().train_wall_s; }
