// expect: dvla: Toy is named but its machinery is not included: add #include <dvla/environment/toy.hpp>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/dvla.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/linear_model.hpp>

using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>>;
double train() {
  dvla::Run<P> run(dvla::Config<P>{});
  run.self_test();
  run.warm_start();
  return run.train().train_wall_s + run.evaluate(64);
}
