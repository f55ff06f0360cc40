// dvla-test: tsan
// A model that computes elsewhere, as on a GPU: what a run tells it, in which lane. The model and the GPU are
// stand-ins.
#include <doctest/doctest.h>

#include <atomic>
#include <string_view>

#include "test/memory/cuda_stand_in.hpp"
#include "test/pipeline/toy_pipeline.hpp"

using namespace dvla;

namespace {

struct Seen {
  std::atomic<int> models{0}, on_cuda{0}, written{0}, copied{0}, elsewhere{0};
};
Seen seen;
thread_local lane_kind lane = lane_kind::every;

/// LinearModel, which stands for one with weights of its own.
class Remote : public dvla::testing::LinearModel {
 public:
  static constexpr std::string_view name = "Remote";
  static constexpr bool runs_on_cuda = true;

  Remote(const dvla::testing::LinearKnobs& chosen, const ModelInputs& inputs, std::uint64_t seed)
      : LinearModel(chosen, inputs, seed) {
    ++seen.models;
    if (inputs.device == Device::cuda) ++seen.on_cuda;
  }
  Remote(const Remote& original, ShareFrozen) : LinearModel(original, share_frozen) {
    ++seen.models;
    ++seen.on_cuda;
  }
  static void enter_lane(lane_kind kind) noexcept { lane = kind; }
  void weights_written() {
    written_ = true;
    ++seen.written;
    if (!holds_) expect(lane_kind::reception);  // the trainer's own are written by its optimiser
  }
  void hold_gradients(bool holds) {
    holds_ = holds;
    LinearModel::hold_gradients(holds);
  }
  void act(const Observation& observation, std::span<const std::int64_t> rows, Decoding decoding,
           std::uint64_t seed, Decision& decision, Field<float> action) {
    expect(lane_kind::sampling);
    LinearModel::act(observation, rows, decoding, seed, decision, action);
  }
  void forward(const Observation& observation, const Decision& decision, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy) {
    expect(lane_kind::training);
    if (!written_) ++seen.copied;
    LinearModel::forward(observation, decision, rows, log_prob, entropy);
  }

 private:
  static void expect(lane_kind kind) {
    if (lane != kind && lane != lane_kind::every) ++seen.elsewhere;
  }
  bool written_ = false, holds_ = false;
};

template <class... More>
using RemotePipeline = Pipeline<Sampler<Toy, Remote>, Trainer<GRPO>, More...>;

}  // namespace

static_assert(ModelElsewhere<Remote>);

TEST_CASE_TEMPLATE("every copy is told its weights in the reception lane, and computes in its own", P,
                   RemotePipeline<>, RemotePipeline<Synchronous>) {
  dvla_test::StandIn cuda;
  auto config = dvla_test::small_config<P>(6);
  config.memory.device = Device::cuda;
  seen.models = seen.on_cuda = seen.written = seen.copied = seen.elsewhere = 0;
  {
    Run<P> run(config);
    CHECK(run.self_test().error <= 1e-5);
    CHECK(cuda.live == 1);
    const int before = seen.written;
    CHECK(run.train().batches == 6);
    CHECK(seen.written >= before + 6);
  }
  CHECK(seen.models ==
        (P::schedule::max_staleness == 0 ? 1 : 3));  // in turn: the trainer's own model samples
  CHECK(seen.on_cuda == seen.models);
  CHECK(seen.copied == 0);
  CHECK(seen.elsewhere == 0);
  CHECK(cuda.live == 0);
}

TEST_CASE("a run is refused before anything is made where there is no GPU") {
  dvla_test::StandIn cuda;
  cuda.why = "no CUDA-capable device is detected";
  auto config = dvla_test::small_config<RemotePipeline<>>(1);
  config.memory.device = Device::cuda;
  seen.models = 0;
  CHECK_THROWS_WITH_AS(
      Run<RemotePipeline<>>{config},
      "memory.device is cuda, but no GPU can be used here: no CUDA-capable device is detected; choose cpu",
      ConfigError);
  CHECK(seen.models == 0);
}
