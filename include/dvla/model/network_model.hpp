// A model of two parts: a network of torch, and a head, the arithmetic that makes actions and log-probabilities of what the
// network puts out. What all such models share stands here once: rows, graphs, gradients, values. Needs torch.
// Fulfils ModelMachinery (model/concept.hpp), where shapes and meaning of the calls are written. Where its
// inputs say cuda, the network computes on the GPU, and the heads' arithmetic and the optimiser on the CPU
// all the same.
//
// `Parts` has `name`, for messages, the types `knobs`, `Network` and `Head`, and `inputs(knobs, inputs)`: what both are made
// for. A Head is what TokenHeadMachinery is. A Network (TinyVlaNetwork, Pi0Body) has, of n rows:
// - constructors (knobs, inputs, QueryShape) that declares its parameters and makes no tensor, and (knobs, inputs,
//   QueryShape, seed, ComputeDevice, original) with tensors of its own or, beside an original, its frozen ones;
// - `prefix(observation, rows)`: what all evaluations of a decision share;
// - `queries(prefix, n, noise, times)`: [n, queries * outputs] in float32; noise is [n * queries * noise_inputs], or empty;
// - `forward(observation, rows, noise, times, Outputs)`: both for a backward pass, each unit used once; `actions` and `values`. A head
//   may give it several times a row, equally many of each, one behind the other;
// - `backward_begins(of_values)`, `values(prefix, n)`, `parameters()`, `sampling_bytes(rows)`, `training_bytes(rows)`, and where cloning takes more
//   `cloning_bytes(rows)`;
// - where it reads published checkpoints, `notes()` for ModelPlan, `config_text()` and `published()`;
// - where decisions may hold their prefix (`Decision::prefix`), `kept_bytes()` a decision, 0: they do not; `keep(prefix, rows, field)`,
//   `kept(field, rows)`, which gives it again, and `forward(prefix, noise, times, Outputs)`.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/memory/torch_allocator.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/extents_with.hpp"
#include "dvla/model/parameters.hpp"

namespace dvla {

namespace detail {
/// What a head wants of the network: Q queries with `outputs` numbers each; `noise_inputs` numbers of a noisy
/// action enter each query (0: the queries are constants).
struct QueryShape {
  std::int64_t queries = 0;
  std::int64_t outputs = 0;
  std::int64_t noise_inputs = 0;
};

/// What a forward pass is asked for.
enum class Outputs { actions, values, both };
}  // namespace detail

/// One thread at a time per object; objects share nothing. Errors: ConfigError from the constructor where
/// knobs and inputs do not fit; Error where a call's rows, extents or values are not what was agreed.
template <class Parts>
class NetworkModel {
 public:
  using Knobs = typename Parts::knobs;
  using Network = typename Parts::Network;
  using HeadMachinery = typename Parts::Head;
  using Decision = typename HeadMachinery::Decision;
  using tensor_pool = TorchAllocator;  ///< what lets a run keep this model's tensors in its model pool

  NetworkModel(const Knobs& knobs, const ModelInputs& inputs, std::uint64_t seed)
      : NetworkModel(knobs, inputs, seed, detail::ComputeDevice(inputs.device)) {}
  /// For tests, which can say more about the device than inputs do.
  NetworkModel(const Knobs& knobs, const ModelInputs& inputs, std::uint64_t seed,
               const detail::ComputeDevice& device)
      : NetworkModel(knobs, inputs, seed, device, nullptr) {}

  NetworkModel(const NetworkModel& original, ShareFrozen)
      : NetworkModel(original.knobs_, original.inputs_, original.seed_, original.device_,
                     &original.network_) {}

  /// See ModelPlan.
  static ModelPlan plan(const Knobs& knobs, const ModelInputs& inputs, std::int64_t sampling_rows,
                        std::int64_t training_rows) {
    const HeadMachinery head(knobs, inputs.action, 0);
    const Network network(knobs, inputs, shape_of(head));
    ModelPlan plan{network.parameters().planned(), record_bytes(layout(head, network, {1})),
                   network.sampling_bytes(sampling_rows), network.training_bytes(training_rows)};
    if constexpr (requires { network.cloning_bytes(training_rows); })
      plan.cloning_bytes = network.cloning_bytes(training_rows);
    if constexpr (requires { network.notes(); }) plan.notes = network.notes();
    for (Parameter& each : plan.parameters) each.device = inputs.device;  // the network above is the host's
    return plan;
  }
  /// Of a model that its family publishes: config.json for a folder that the knob `checkpoint` takes.
  std::string config_text() const requires requires(const Network& network) { network.config_text(); }
  { return network_.config_text(); }
  /// The checkpoint that it was made of, unless it is a copy.
  const auto& published() const requires requires(const Network& network) { network.published(); }
  { return network_.published(); }

  Decision decision_layout(const Extents& leading) const { return layout(head_, network_, leading); }

  /// See TakesValueHead for `value`.
  void act(const Observation& observation, std::span<const std::int64_t> rows, Decoding decoding,
           std::uint64_t seed, Decision& decision, Field<float> action, Field<float> value = {}) {
    const auto lane = device_.enter();
    const c10::InferenceMode no_graph;
    const std::int64_t n = observation.instruction.count();
    const Extents expected = head_.decision_layout({n}).log_prob.extents();
    if (decision.log_prob.extents() != expected || action.extents() != expected) {
      throw wrong("act was given " + std::to_string(n) +
                  " observations, but a decision or action of other extents");
    }
    if (rows.empty()) throw wrong("act without rows; give at least one");
    check_rows(rows, observation);
    if (!value.absent() && (need_value_head(), value.extents() != Extents{n, values_a_row()})) {
      throw wrong("act was given " + std::to_string(n) + " observations, but values of other extents than [" +
                  std::to_string(n) + ", " + std::to_string(values_a_row()) + "]");
    }
    network_.parameters().call_begins();
    const auto prefix = network_.prefix(observation, rows);
    if constexpr (keeps_prefix)  // what follows the mode is not trained on
      if (decoding == Decoding::sample && network_.kept_bytes() > 0) {
        check_kept(decision, n);
        network_.keep(prefix, rows, decision.prefix);
      }
    at::Tensor output;
    const auto evaluate = [&](std::span<const float> noise, std::span<const float> times) {
      output = device_.download(network_.queries(prefix, std::ssize(rows), noise, times), downloaded_);
      return view(output);
    };
    head_.act(evaluate, rows, decoding, seed, decision, action);
    if (value.absent()) return;
    output = device_.download(network_.values(prefix, std::ssize(rows)), downloaded_);
    for (std::size_t i = 0; i < rows.size(); ++i) copy_values(output, i, rows[i], value.at(rows[i]).span());
  }

  /// See HasValues. Throws Error where this model has no value head.
  void values(const Observation& observation, std::span<const std::int64_t> rows, std::span<float> value) {
    check_rows(rows, observation);
    check_values(rows, value);
    const auto lane = device_.enter();
    const c10::InferenceMode no_graph;
    network_.parameters().call_begins();
    const at::Tensor output = device_.download(
        network_.forward(observation, rows, {}, {}, detail::Outputs::values).values, downloaded_);
    copy_values(output, rows, value);
  }

  void forward(const Observation& observation, const Decision& decision, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy) {
    check_rows(rows, decision.log_prob, observation, log_prob, entropy);
    head_.load(decision, rows);
    run(observation, rows, detail::Outputs::actions, &decision);
    head_.log_prob(view(host_output_), log_prob, entropy);
  }
  /// See HasValues. Throws Error where this model has no value head.
  void forward(const Observation& observation, const Decision& decision, std::span<const std::int64_t> rows,
               std::span<float> log_prob, std::span<float> entropy, std::span<float> value) {
    check_rows(rows, decision.log_prob, observation, log_prob, entropy);
    check_values(rows, value);
    head_.load(decision, rows);
    run(observation, rows, detail::Outputs::both, &decision);
    head_.log_prob(view(host_output_), log_prob, entropy);
    copy_values(device_.download(value_, downloaded_), rows, value);
  }

  /// Log-probabilities as forward gives them, without a graph and as if there were no adapters.
  void forward_without_adapters(const Observation& observation, const Decision& decision,
                                std::span<const std::int64_t> rows, std::span<float> log_prob) {
    std::vector<float> entropy(log_prob.size());
    check_rows(rows, decision.log_prob, observation, log_prob, entropy);
    const auto lane = device_.enter();
    const c10::InferenceMode no_graph;
    head_.load(decision, rows);
    Parameters& parameters = network_.parameters();
    parameters.call_begins();
    parameters.use_adapters(false);
    try {
      const at::Tensor output =
          device_.download(pass(observation, rows, detail::Outputs::actions, &decision).actions, downloaded_);
      parameters.use_adapters(true);
      head_.log_prob(view(output), log_prob, entropy);
    } catch (...) {
      parameters.use_adapters(true);
      throw;
    }
  }

  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy) {
    const std::vector<float> none(value_.defined() ? static_cast<std::size_t>(value_.numel()) : 0);
    backward(d_log_prob, d_entropy, none);
  }
  /// See HasValues. `d_value` is empty where forward gave no values.
  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy,
                std::span<const float> d_value) {
    if (!output_.defined()) throw wrong("backward without a forward before it; call forward first");
    if (d_log_prob.size() != expected_ || d_entropy.size() != expected_) {
      throw wrong("backward was given gradients of another size than forward's rows");
    }
    if (const auto count = value_.defined() ? static_cast<std::size_t>(value_.numel()) : 0;
        d_value.size() != count)
      throw wrong("backward was given slopes of " + std::to_string(d_value.size()) +
                  " values, and forward gave " + std::to_string(count) +
                  "; call the form of forward that gives values, and give a slope for each");
    at::Tensor d_output = at::empty(output_.sizes(), device_.host());
    head_.gradient(view(host_output_), d_log_prob, d_entropy, view(d_output));
    propagate(d_output, d_value);
  }

  double imitate(const Observation& observation, Field<float> action, std::span<const std::int64_t> rows,
                 double scale) {
    const std::vector<float> sizes(rows.size() * static_cast<std::size_t>(elements()));
    check_rows(rows, action, observation, sizes, sizes);
    for (const std::int64_t row : rows) {
      for (const float value : action.at(row).span()) {
        if (!std::isfinite(value)) {
          throw wrong("the expert's action in row " + std::to_string(row) + " is not finite");
        }
      }
    }
    head_.load_imitation(action, rows);
    run(observation, rows, detail::Outputs::actions);
    at::Tensor d_output = at::empty(output_.sizes(), device_.host());
    const double loss = head_.imitation(view(host_output_), scale, view(d_output));
    propagate(d_output, {});
    return loss;
  }

  const std::vector<Parameter>& parameters() const { return network_.parameters().parameters(); }
  /// Embeddings, each block, output, and the value head where there is one; its query is among the embeddings.
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
  template <class... Words>
  static Error wrong(const Words&... words) {
    return Error(std::string(Parts::name) + ": ", words...);
  }
  NetworkModel(const Knobs& knobs, const ModelInputs& inputs, std::uint64_t seed,
               const detail::ComputeDevice& device, const Network* original)
      : knobs_(knobs),
        inputs_(inputs),
        seed_(seed),
        device_(device),
        head_(knobs, inputs.action, mix_seed(seed, 1)),
        network_(knobs, inputs, shape_of(head_), mix_seed(seed, 0), device, original) {}
  static constexpr bool keeps_prefix = requires(const Network& network, Decision& decision) {
    network.kept_bytes(), decision.prefix;
  };
  static Decision layout(const HeadMachinery& head, const Network& network, const Extents& leading) {
    Decision decision = head.decision_layout(leading);
    if constexpr (keeps_prefix)
      if (const std::int64_t bytes = network.kept_bytes(); bytes > 0)
        decision.prefix = Field<std::uint8_t>(extents_with(leading, {bytes}));
    return decision;
  }
  /// Of n rows.
  void check_kept(const Decision& decision, std::int64_t n) const requires keeps_prefix {
    if (decision.prefix.extents() != Extents{n, network_.kept_bytes()})
      throw wrong("decisions do not hold the prefixes of " + std::to_string(n) + " observations, " +
                  std::to_string(network_.kept_bytes()) +
                  " bytes each; lay them out by decision_layout, with the same model.keep_prefix");
  }
  static detail::QueryShape shape_of(const HeadMachinery& head) {
    return {head.queries(), head.outputs(), head.noise_inputs()};
  }
  std::int64_t elements() const { return head_.decision_layout({1}).log_prob.count(); }

  std::int64_t values_a_row() const { return inputs_.value_head.values; }
  void need_value_head() const {
    if (values_a_row() == 0) throw wrong("this model has no value head; make it as WithValue<Model>");
  }
  void check_values(std::span<const std::int64_t> rows, std::span<const float> value) const {
    need_value_head();
    if (value.size() != rows.size() * static_cast<std::size_t>(values_a_row()))
      throw wrong("value needs rows x values a decision = " +
                  std::to_string(rows.size() * static_cast<std::size_t>(values_a_row())) + " floats, not " +
                  std::to_string(value.size()));
  }
  /// Of row i of `from` [n, V], which is `row` of the observation.
  void copy_values(const at::Tensor& from, std::size_t i, std::int64_t row, std::span<float> to) const {
    std::ranges::copy(view(from).subspan(i * to.size(), to.size()), to.begin());
    for (const float value : to)
      if (!std::isfinite(value))
        throw wrong("the value of row " + std::to_string(row) +
                    " is not finite; the weights or the observation hold NaN or infinity");
  }
  void copy_values(const at::Tensor& from, std::span<const std::int64_t> rows, std::span<float> to) const {
    const auto V = static_cast<std::size_t>(values_a_row());
    for (std::size_t i = 0; i < rows.size(); ++i) copy_values(from, i, rows[i], to.subspan(i * V, V));
  }

  static std::span<const float> view(const at::Tensor& tensor) {
    return {tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }
  static std::span<float> view(at::Tensor& tensor) {
    return {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }

  static void check_rows(std::span<const std::int64_t> rows, const Observation& observation) {
    const std::int64_t available = observation.instruction.count();
    if (rows.empty()) throw wrong("a call without rows; give at least one");
    for (const std::int64_t row : rows) {
      if (row < 0 || row >= available) {
        throw wrong("row " + std::to_string(row) + " was asked for, but the batch has " +
                    std::to_string(available) + " rows");
      }
    }
  }
  void check_rows(std::span<const std::int64_t> rows, const Field<float>& per_row,
                  const Observation& observation, std::span<const float> log_prob,
                  std::span<const float> entropy) {
    const std::int64_t available = observation.instruction.count();
    const Extents expected = head_.decision_layout({available}).log_prob.extents();
    if (per_row.extents() != expected) {
      throw wrong("decisions or actions do not have one row of [chunk, action dimensions] for each of " +
                  std::to_string(available) + " observations");
    }
    check_rows(rows, observation);
    expected_ = rows.size() * static_cast<std::size_t>(elements());
    if (log_prob.size() != expected_ || entropy.size() != expected_) {
      throw wrong("log_prob and entropy need rows x chunk x action dimensions = " +
                  std::to_string(expected_) + " floats");
    }
  }

  /// Of what the head has loaded. `decision`: what that is of, which may hold prefixes; nullptr: there is none.
  auto pass(const Observation& observation, std::span<const std::int64_t> rows, detail::Outputs outputs,
            [[maybe_unused]] const Decision* decision) {
    if constexpr (keeps_prefix)
      if (decision != nullptr && network_.kept_bytes() > 0) {
        check_kept(*decision, observation.instruction.count());
        return network_.forward(network_.kept(decision->prefix, rows), head_.inputs(), head_.times(),
                                outputs);
      }
    return network_.forward(observation, rows, head_.inputs(), head_.times(), outputs);
  }
  void run(const Observation& observation, std::span<const std::int64_t> rows, detail::Outputs outputs,
           const Decision* decision = nullptr) {
    const auto lane = device_.enter();
    const c10::InferenceMode ordinary(false);
    const c10::AutoGradMode with_graph(true);
    forget();  // the graph of a forward whose backward never came
    network_.parameters().call_begins();
    auto results = pass(observation, rows, outputs, decision);
    output_ = std::move(results.actions);
    value_ = std::move(results.values);
    host_output_ = device_.download(output_, downloaded_);
  }
  void forget() {
    output_.reset();
    host_output_.reset();
    value_.reset();
  }

  void propagate(const at::Tensor& d_output, std::span<const float> d_value) {
    const auto lane = device_.enter();
    const c10::InferenceMode ordinary(false);
    std::vector<at::Tensor> results{output_}, slopes{device_.upload(d_output)};
    if (value_.defined()) {
      at::Tensor slope = at::empty(value_.sizes(), device_.host());
      std::ranges::copy(d_value, view(slope).begin());
      results.push_back(value_);
      slopes.push_back(device_.upload(slope));
    }
    forget();
    network_.backward_begins(results.size() > 1);
    torch::autograd::backward(results, slopes);
    network_.parameters().backward_done();
  }

  Knobs knobs_;
  ModelInputs inputs_;
  std::uint64_t seed_;
  detail::ComputeDevice device_;
  HeadMachinery head_;
  Network network_;
  at::Tensor output_;       ///< of the last forward, with its graph, until backward
  at::Tensor host_output_;  ///< the same in host memory
  at::Tensor value_;        ///< of the last forward, if it gave values, with its graph, until backward
  detail::StreamMark downloaded_;
  std::size_t expected_ = 0;
};

}  // namespace dvla
