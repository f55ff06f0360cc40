// expect: dvla: Adaptive is declared but not built in this version; use Separated or Hybrid
#include <dvla/algorithm/grpo.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/linear_model.hpp>

#include "machinery.inc"

template <class Slot>
struct Wide : Own<Slot> {
  static constexpr bool spans_processes = true;
};
using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, dvla::testing::LinearModel>, dvla::Trainer<dvla::GRPO>,
                         Wide<dvla::data_plane_slot>, Wide<dvla::control_plane_slot>,
                         dvla::Placement<dvla::Adaptive>>;
double train(const dvla::Config<P>& config) { return dvla::Run<P>(config).train().train_wall_s; }
