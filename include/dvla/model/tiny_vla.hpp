// TinyVLA's machinery: a vision-language-action model of about 0.6 M parameters that learns in minutes on a
// CPU, with discrete tokens (as OpenVLA-OFT) or flow matching (as pi0.5) as its action head. Needs torch.
// Fulfils ModelMachinery (model/concept.hpp), where shapes and meaning of the calls are written. Where its
// inputs say cuda, the network computes on the GPU, and the heads' arithmetic and the optimiser on the CPU
// all the same.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/memory/torch_allocator.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/flow_head.hpp"
#include "dvla/model/tiny_vla_network.hpp"
#include "dvla/model/token_head.hpp"

namespace dvla {

namespace detail {
/// From a head's name (with its knobs, which derive from TinyVlaKnobs) to its arithmetic. Specialise it for a
/// head of your own: a class with the members of TokenHeadMachinery.
template <class Head>
struct tiny_vla_head;
template <>
struct tiny_vla_head<TokenHead> {
  using type = TokenHeadMachinery;
};
template <>
struct tiny_vla_head<FlowHead> {
  using type = FlowHeadMachinery;
};
}  // namespace detail

/// One thread at a time per object; objects share nothing. Errors: ConfigError from the constructor where
/// knobs and inputs do not fit; Error where a call's rows, extents or values are not what was agreed.
template <class Head>
class TinyVlaModel {
 public:
  using HeadMachinery = typename detail::tiny_vla_head<Head>::type;
  using Decision = typename HeadMachinery::Decision;
  using tensor_pool = TorchAllocator;  ///< what lets a run keep this model's tensors in its model pool

  TinyVlaModel(const typename Head::knobs& knobs, const ModelInputs& inputs, std::uint64_t seed)
      : TinyVlaModel(knobs, inputs, seed, detail::ComputeDevice(inputs.device)) {}
  /// For tests, which can say more about the device than inputs do.
  TinyVlaModel(const typename Head::knobs& knobs, const ModelInputs& inputs, std::uint64_t seed,
               const detail::ComputeDevice& device)
      : TinyVlaModel(knobs, inputs, seed, device, nullptr) {}

  TinyVlaModel(const TinyVlaModel& original, ShareFrozen)
      : TinyVlaModel(original.knobs_, original.inputs_, original.seed_, original.device_,
                     &original.network_) {}

  /// See ModelPlan.
  static ModelPlan plan(const typename Head::knobs& knobs, const ModelInputs& inputs,
                        std::int64_t sampling_rows, std::int64_t training_rows) {
    const HeadMachinery head(knobs, inputs.action, 0);
    const detail::TinyVlaNetwork network(knobs, inputs, shape_of(head));
    return {network.parameters().parameters(), record_bytes(head.decision_layout({1})),
            network.sampling_bytes(sampling_rows), network.training_bytes(training_rows)};
  }

  Decision decision_layout(const Extents& leading) const { return head_.decision_layout(leading); }

  void act(const Observation& observation, std::span<const std::int64_t> rows, Decoding decoding,
           std::uint64_t seed, Decision& decision, Field<float> action) {
    const auto lane = device_.enter();
    const c10::InferenceMode no_graph;
    const std::int64_t n = observation.instruction.count();
    const Extents expected = head_.decision_layout({n}).log_prob.extents();
    if (decision.log_prob.extents() != expected || action.extents() != expected) {
      throw Error("TinyVLA: act was given " + std::to_string(n) +
                  " observations, but a decision or action of other extents");
    }
    if (rows.empty()) throw Error("TinyVLA: act without rows; give at least one");
    network_.parameters().call_begins();
    const auto prefix = network_.prefix(observation, rows);
    at::Tensor output;
    const auto evaluate = [&](std::span<const float> noise, std::span<const float> times) {
      output = device_.download(network_.queries(prefix, std::ssize(rows), noise, times), downloaded_);
      return view(output);
    };
    head_.act(evaluate, rows, decoding, seed, decision, action);
  }

  void forward(const Observation& observation, const Decision& decision, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy) {
    check_rows(rows, decision.log_prob, observation, log_prob, entropy);
    head_.load(decision, rows);
    run(observation, rows);
    head_.log_prob(view(host_output_), log_prob, entropy);
  }

  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy) {
    if (!output_.defined()) throw Error("TinyVLA: backward without a forward before it; call forward first");
    if (d_log_prob.size() != expected_ || d_entropy.size() != expected_) {
      throw Error("TinyVLA: backward was given gradients of another size than forward's rows");
    }
    at::Tensor d_output = at::empty(output_.sizes(), device_.host());
    head_.gradient(view(host_output_), d_log_prob, d_entropy, view(d_output));
    propagate(d_output);
  }

  double imitate(const Observation& observation, Field<float> action, std::span<const std::int64_t> rows,
                 double scale) {
    const std::vector<float> sizes(rows.size() * static_cast<std::size_t>(elements()));
    check_rows(rows, action, observation, sizes, sizes);
    for (const std::int64_t row : rows) {
      for (const float value : action.at(row).span()) {
        if (!std::isfinite(value)) {
          throw Error("TinyVLA: the expert's action in row " + std::to_string(row) + " is not finite");
        }
      }
    }
    head_.load_imitation(action, rows);
    run(observation, rows);
    at::Tensor d_output = at::empty(output_.sizes(), device_.host());
    const double loss = head_.imitation(view(host_output_), scale, view(d_output));
    propagate(d_output);
    return loss;
  }

  const std::vector<Parameter>& parameters() const { return network_.parameters().parameters(); }
  /// Embeddings, each block, output.
  const std::vector<WeightUnit>& units() const { return network_.parameters().units(); }
  void hold_gradients(bool holds) { network_.parameters().hold_gradients(holds); }
  void hook_units(UnitHooks* hooks) { network_.parameters().hook(hooks); }
  /// See Parameters::merged.
  template <class Visit>
  void merged(Visit visit) const {
    network_.parameters().merged(visit);
  }

  /// See ModelElsewhere.
  void weights_written() {
    const auto lane = device_.enter();
    network_.parameters().written();
  }
  static void enter_lane(lane_kind kind) noexcept { detail::this_lane = kind; }

  /// Cores that torch may use for calls from *this* thread. Both OpenMP's and MKL's counts are set for the
  /// calling thread only, so lanes do not disturb each other; torch also keeps the number as the start value
  /// of threads that never call this, so every lane should. A backward pass runs in the thread that calls it.
  static void use_threads(int threads) {
    // A thread's first use of torch takes over the process's start value, which another lane may just have
    // set: have that behind us (here and inside the library, which keep book apart), then choose.
    at::internal::lazy_init_num_threads();
    (void)at::get_num_threads();
    at::set_num_threads(threads);
  }

 private:
  TinyVlaModel(const typename Head::knobs& knobs, const ModelInputs& inputs, std::uint64_t seed,
               const detail::ComputeDevice& device, const detail::TinyVlaNetwork* original)
      : knobs_(knobs),
        inputs_(inputs),
        seed_(seed),
        device_(device),
        head_(knobs, inputs.action, mix_seed(seed, 1)),
        network_(knobs, inputs, shape_of(head_), mix_seed(seed, 0), device, original) {}
  static detail::QueryShape shape_of(const HeadMachinery& head) {
    return {head.queries(), head.outputs(), head.noise_inputs()};
  }
  std::int64_t elements() const { return head_.decision_layout({1}).log_prob.count(); }

  static std::span<const float> view(const at::Tensor& tensor) {
    return {tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }
  static std::span<float> view(at::Tensor& tensor) {
    return {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }

  void check_rows(std::span<const std::int64_t> rows, const Field<float>& per_row,
                  const Observation& observation, std::span<const float> log_prob,
                  std::span<const float> entropy) {
    const std::int64_t available = observation.instruction.count();
    const Extents expected = head_.decision_layout({available}).log_prob.extents();
    if (rows.empty()) throw Error("TinyVLA: a call without rows; give at least one");
    if (per_row.extents() != expected) {
      throw Error(
          "TinyVLA: decisions or actions do not have one row of [chunk, action dimensions] for each of " +
          std::to_string(available) + " observations");
    }
    for (const std::int64_t row : rows) {
      if (row < 0 || row >= available) {
        throw Error("TinyVLA: row " + std::to_string(row) + " was asked for, but the batch has " +
                    std::to_string(available) + " rows");
      }
    }
    expected_ = rows.size() * static_cast<std::size_t>(elements());
    if (log_prob.size() != expected_ || entropy.size() != expected_) {
      throw Error("TinyVLA: log_prob and entropy need rows x chunk x action dimensions = " +
                  std::to_string(expected_) + " floats");
    }
  }

  void run(const Observation& observation, std::span<const std::int64_t> rows) {
    const auto lane = device_.enter();
    const c10::InferenceMode ordinary(false);
    const c10::AutoGradMode with_graph(true);
    forget();  // the graph of a forward whose backward never came
    network_.parameters().call_begins();
    output_ = network_.forward(observation, rows, head_.inputs(), head_.times());
    host_output_ = device_.download(output_, downloaded_);
  }
  void forget() {
    output_.reset();
    host_output_.reset();
  }

  void propagate(const at::Tensor& d_output) {
    const auto lane = device_.enter();
    const c10::InferenceMode ordinary(false);
    const at::Tensor output = std::move(output_);
    forget();
    network_.parameters().backward_begins();
    output.backward(device_.upload(d_output));
    network_.parameters().backward_done();
  }

  typename Head::knobs knobs_;
  ModelInputs inputs_;
  std::uint64_t seed_;
  detail::ComputeDevice device_;
  HeadMachinery head_;
  detail::TinyVlaNetwork network_;
  at::Tensor output_;       ///< of the last forward, with its graph, until backward
  at::Tensor host_output_;  ///< the same in host memory
  detail::StreamMark downloaded_;
  std::size_t expected_ = 0;
};

template <class Head, class Pipeline>
struct machinery<TinyVLA<Head>, Pipeline> {
  using type = TinyVlaModel<Head>;
};

}  // namespace dvla
