// dvla-example: smoke
// A model of your own with LibTorch, in one struct: a camera through a convolution, proprioception and the
// instruction through an MLP, Gaussian actions.
//
// dvla::Parameters holds named tensors in units, which is what sharding, the control plane, checkpoints and
// LoRA work on; dvla::tensor_of turns fields of records into tensors. Sampling and training must compute the
// same log-probabilities, so both go through mean(). testing::check_model finds what a compiler cannot; then
// the model is one template parameter of a pipeline. Without a camera (--camera-pixels 0) it is an MLP.
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/randn.h>

#include <cstdio>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/memory/torch_allocator.hpp>
#include <dvla/model/extents_with.hpp>
#include <dvla/model/fields.hpp>
#include <dvla/model/parameters.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/testing/model.hpp>
#include <numbers>
#include <string_view>

struct GaussianKnobs {
  int chunk = 4, hidden = 64;
  float deviation = 0.3F;
};
BOOST_HANA_ADAPT_STRUCT(GaussianKnobs, chunk, hidden, deviation);
template <>
inline constexpr auto dvla::knob_docs<GaussianKnobs> = std::to_array<dvla::KnobDoc>({
    {"chunk", "actions a decision", 1, 64, "control steps"},
    {"hidden", "width of the hidden layer", 1, 4096},
    {"deviation", "standard deviation of sampled actions", 0.01, 1},
});

struct GaussianDecision {
  dvla::Field<float> sample;    ///< [.., C, A], before the environment's bounds
  dvla::Field<float> log_prob;  ///< [.., C, A]
};
BOOST_HANA_ADAPT_STRUCT(GaussianDecision, sample, log_prob);

class GaussianPolicy {
 public:
  using slot = dvla::model_slot;
  using knobs = GaussianKnobs;
  static constexpr std::string_view name = "GaussianPolicy";
  using Decision = GaussianDecision;
  using tensor_pool = dvla::TorchAllocator;  // its tensors come from the run's model pool

  GaussianPolicy(const GaussianKnobs& chosen, const dvla::ModelInputs& inputs, std::uint64_t seed)
      : GaussianPolicy(chosen, inputs) {
    weights_.allocate(seed);
  }
  GaussianPolicy(const GaussianPolicy& original, dvla::ShareFrozen)
      : GaussianPolicy(original.knobs_, original.inputs_) {
    weights_.share(original.weights_);
  }

  Decision decision_layout(dvla::Extents leading) const {
    const dvla::Extents all = dvla::extents_with(leading, {inputs_.chunk, inputs_.action.dimensions});
    return {dvla::Field<float>(all), dvla::Field<float>(all)};
  }
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    const c10::InferenceMode no_graph;
    const at::Tensor centre = mean(observation, rows);
    at::Tensor sample = centre.clone();
    if (decoding == dvla::Decoding::sample)  // of all rows, so that a row's noise is its own
      sample.add_(at::randn(decision.sample.extents().sizes(), at::detail::createCPUGenerator(seed))
                      .index_select(0, dvla::index_of(rows)),
                  knobs_.deviation);
    dvla::copy_rows(sample, decision.sample, rows);
    dvla::copy_rows(log_prob_of(sample, centre), decision.log_prob, rows);
    dvla::copy_rows(sample.clamp(-1, 1), action, rows);
  }
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    log_prob_ = log_prob_of(dvla::tensor_of(decision.sample, rows), mean(observation, rows));
    at::from_blob(log_prob.data(), log_prob_.sizes()).copy_(log_prob_.detach());
    std::fill(entropy.begin(), entropy.end(), 0.0F);  // a constant: the deviation does not train
  }
  void backward(std::span<const float> d_log_prob, std::span<const float>) {
    propagate(log_prob_, at::from_blob(const_cast<float*>(d_log_prob.data()), log_prob_.sizes()));
  }
  double imitate(const dvla::Observation& observation, dvla::Field<float> action,
                 std::span<const std::int64_t> rows, double scale) {
    const at::Tensor loss = (mean(observation, rows) - dvla::tensor_of(action, rows)).square().mean();
    propagate(loss, at::full({}, scale));
    return loss.item<double>();
  }

  const std::vector<dvla::Parameter>& parameters() const { return weights_.parameters(); }
  const std::vector<dvla::WeightUnit>& units() const { return weights_.units(); }
  void hold_gradients(bool holds) { weights_.hold_gradients(holds); }
  void hook_units(dvla::UnitHooks* hooks) { weights_.hook(hooks); }
  static void use_threads(int threads) { at::set_num_threads(threads); }

 private:
  GaussianPolicy(const GaussianKnobs& chosen, const dvla::ModelInputs& inputs)
      : knobs_(chosen), inputs_(inputs) {
    const auto& spec = inputs_.observation;
    const auto instructions = static_cast<std::int64_t>(spec.instructions.size());
    std::int64_t features = spec.proprioception + instructions + spec.proprioception * instructions;
    weights_.begin_unit();
    if (!spec.cameras.empty()) {
      weights_.declare("camera.weight", {channels, 3, 8, 8}, camera_, {0, 0.07});
      features += channels * ((spec.cameras[0].height - 8) / 4 + 1) * ((spec.cameras[0].width - 8) / 4 + 1);
    }
    const auto scale = [](std::int64_t in) { return 1 / std::sqrt(static_cast<double>(in)); };
    weights_.declare_linear("in", chosen.hidden, features, in_, {0, scale(features)}, /*bias=*/true);
    weights_.begin_unit();
    weights_.declare_linear("out", inputs.chunk * inputs.action.dimensions, chosen.hidden, out_,
                            {0, 0.1 * scale(chosen.hidden)}, /*bias=*/true);
  }

  /// [n, C, A] of those rows. Telling of units lets FSDP gather them in time, and release them.
  at::Tensor mean(const dvla::Observation& observation, std::span<const std::int64_t> rows) {
    weights_.before(0);
    const at::Tensor state = dvla::tensor_of(observation.proprioception, rows);
    const at::Tensor which = dvla::tensor_of(observation.instruction, rows).to(at::kLong);
    const at::Tensor words =
        at::one_hot(which, static_cast<std::int64_t>(inputs_.observation.instructions.size())).to(at::kFloat);
    std::vector<at::Tensor> all{state, words, (state.unsqueeze(1) * words.unsqueeze(2)).flatten(1)};
    if (camera_.defined()) {
      const at::Tensor pixels = dvla::tensor_of(observation.frames[0], rows).permute({0, 3, 1, 2});
      all.push_back(at::conv2d(pixels.to(at::kFloat) / 255, camera_, {}, 4).relu().flatten(1));
    }
    const at::Tensor hidden = in_(at::cat(all, 1)).relu();
    weights_.after(0, {hidden});
    weights_.before(1);
    const at::Tensor centre = out_(hidden).view({-1, inputs_.chunk, inputs_.action.dimensions});
    weights_.after(1, {centre});
    return centre;
  }
  at::Tensor log_prob_of(const at::Tensor& sample, const at::Tensor& centre) const {
    const double deviation = knobs_.deviation;
    return ((sample - centre) / deviation).square() * -0.5 -
           std::log(deviation * std::sqrt(2 * std::numbers::pi));
  }
  void propagate(const at::Tensor& from, const at::Tensor& gradient) {
    weights_.backward_begins();
    from.backward(gradient);
    weights_.backward_done();
  }

  static constexpr std::int64_t channels = 8;
  GaussianKnobs knobs_;
  dvla::ModelInputs inputs_;
  at::Tensor camera_, log_prob_;
  dvla::Linear in_, out_;
  dvla::Parameters weights_;
};

using Mine =
    dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Reach>, GaussianPolicy>, dvla::Trainer<dvla::GRPO>>;

int main(int argc, char** argv) {
  dvla::ModelInputs inputs{
      .observation = {.cameras = {{"top", 16, 16}}, .proprioception = 5, .instructions = {"left", "right"}},
      .action = {.dimensions = 2},
      .chunk = 4};
  GaussianPolicy::use_threads(1);
  const auto faults = dvla::testing::check_model(
      [&](std::uint64_t seed) { return GaussianPolicy({}, inputs, seed); }, inputs);
  for (const std::string& fault : faults) std::printf("broken promise: %s\n", fault.c_str());
  if (!faults.empty()) return 1;

  dvla::Config<Mine> config;
  config.environment.environments = 64;
  config.environment.camera_pixels = 16;
  config.algorithm.learning_rate = 1e-3;
  config.run.demonstrations = 64;
  const bool smoke = argc > 1 && std::string_view(argv[1]) == "--smoke";
  config.run.iterations = argc > 1 && !smoke ? std::atoi(argv[1]) : 5;
  dvla::Run<Mine> run(config);
  const double cloned = run.warm_start().success;
  run.train([](const dvla::Iteration& iteration) {
    std::printf("batch %lld: success %.2f\n", static_cast<long long>(iteration.batch),
                iteration.update.success_rate);
  });
  std::printf("cloned %.2f, trained %.2f on 256 fresh episodes\n", cloned, run.evaluate(256));
  return 0;
}
