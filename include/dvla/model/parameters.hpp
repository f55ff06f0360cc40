// The weights of a model that computes with torch: named tensors in units (core/weights.hpp), frozen or
// trainable, in float32 or bfloat16, with adapters where the model is wrapped in LoRA. Any model may hold one
// and answer ModelMachinery's parameters(), units(), hold_gradients() and hook_units() with it
// (docs/slots/model.md). A unit's trainable tensors are views of one block, their gradients of another, which
// is float32 whatever the tensors are: autograd adds into it.
//
// Frozen tensors are shared by all copies of a model. Gradients exist while they are held: in a trainer's
// model. Where the network computes apart from host memory (compute_device.hpp), units() are blocks in host
// memory, pinned, and the network's tensors views of others on the device, which written() fills; gradients
// travel back after a backward pass. Hooks are then told of all units at once.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/normal.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/core/text.hpp"
#include "dvla/memory/pages.hpp"
#include "dvla/model/compute_device.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/linear.hpp"
#include "dvla/model/recompute.hpp"

namespace dvla {

/// Initial values of a parameter: centre + scale * N(0, 1). Those of one stream are drawn independently of how
/// many parameters the others have.
struct InitialValues {
  double centre = 0, scale = 0;
  std::int64_t stream = 0;
};

/// Declare everything, then `allocate` or `share`, once. One thread at a time.
class Parameters {
 public:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);

  explicit Parameters(Dtype dtype = Dtype::f32, Adapters adapters = {},
                      const detail::ComputeDevice& device = {})
      : dtype_(dtype), adapters_(std::move(adapters)), device_(device) {
    if (dtype_ == Dtype::f16) throw ConfigError("model.dtype is f16; models compute in f32 or bf16");
  }
  /// What was put on a stream may still read these blocks.
  ~Parameters() {
    try {
      uploaded_.wait();
    } catch (const std::exception&) {
    }
  }
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  // ---- Declaring
  /// What is declared from here on is a new unit.
  void begin_unit() { blocks_.emplace_back(); }
  /// Whether what is declared from here on is frozen and without adapters, but for what is declared apart: what is not
  /// to be trained, and what no forward pass reads.
  void freeze(bool frozen) { frozen_ = frozen; }
  bool frozen() const { return frozen_; }
  /// `member` becomes the tensor when memory is there, and must live as long as this. Frozen beside adapters.
  void declare(std::string name, std::vector<std::int64_t> shape, at::Tensor& member,
               InitialValues initial = {}, OptimiserGroup group = {}) {
    add(std::move(name), std::move(shape), member, initial, group, adapters_.rank == 0 && !frozen_, false);
  }
  /// The same of what trains beside a frozen model too, as adapters do, and is left out of merged().
  void declare_apart(std::string name, std::vector<std::int64_t> shape, at::Tensor& member,
                     InitialValues initial = {}, OptimiserGroup group = {}) {
    add(std::move(name), std::move(shape), member, initial, group, true, true);
  }
  /// The layer `name`: its weight [out, in], `name`.weight, its bias if `bias`, and its adapter if the layer
  /// is a target.
  void declare_linear(const std::string& name, std::int64_t out, std::int64_t in, Linear& member,
                      InitialValues initial = {}, bool bias = false) {
    declare_layer(name, {out, in}, {out, adapters_.rank}, member, initial, bias);
  }
  /// A convolution over patches of side `side` that do not overlap: its weight is [out, in, side, side], and its adapter
  /// has the shapes that PEFT gives it. It computes by Linear::flat().
  void declare_convolution(const std::string& name, std::int64_t out, std::int64_t in, std::int64_t side,
                           Linear& member, InitialValues initial = {}, bool bias = false) {
    declare_layer(name, {out, in, side, side}, {out, adapters_.rank, 1, 1}, member, initial, bias);
  }

  // ---- Memory
  /// Makes all tensors and draws their initial values, a tensor at a time, but those that `given` says get theirs
  /// from elsewhere. Throws ConfigError where adapters are wanted and no layer is a target.
  void allocate(std::uint64_t seed, const std::function<bool(const Parameter&)>& given = {}) {
    make(nullptr);
    const c10::InferenceMode ordinary(false);
    const c10::NoGradGuard no_graph;
    std::map<std::int64_t, std::int64_t> declared;  // so far, by stream
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto [centre, scale, stream] = initial_[i];
      const std::uint64_t stream_seed = stream == 0 ? seed : mix_seed(seed, -stream);
      const std::int64_t place = declared[stream]++;
      at::Tensor& to = homes_[i];
      if (parameters_[i].mapped || (given && given(parameters_[i]))) continue;
      if (scale == 0) {
        to.fill_(centre);
        continue;
      }
      auto generator = at::detail::createCPUGenerator(mix_seed(stream_seed, place));
      // Piece by piece, so that no whole tensor is there in float32 beside itself.
      const at::Tensor flat = to.view({-1});
      for (std::int64_t from = 0; from < flat.size(0); from += drawn_at_once) {
        const std::int64_t count = std::min(drawn_at_once, flat.size(0) - from);
        flat.narrow(0, from, count)
            .copy_(at::normal(centre, scale, {count}, generator, to.options().dtype(at::kFloat)));
      }
    }
    bring_over();
  }
  /// The copy of a model: the same frozen tensors, which `original` keeps alive, the values of the others.
  void share(const Parameters& original) {
    make(&original);
    copy_weights(original.units_, units_);
    written();
  }

  const std::vector<Parameter>& parameters() const { return parameters_; }
  /// The same before there is memory, with what is going to be mapped. Throws ConfigError as allocate() does.
  std::vector<Parameter> planned() const {
    check_targets();
    std::vector<Parameter> all = parameters_;
    for (Parameter& each : all)
      each.mapped = !each.trainable && adapters_.base && adapters_.base(each) != nullptr;
    return all;
  }
  const std::vector<WeightUnit>& units() const { return units_; }

  void hold_gradients(bool holds) {
    if (holds == holds_) return;
    holds_ = holds;
    const c10::InferenceMode ordinary(false);
    for (std::size_t unit = 0; unit < blocks_.size(); ++unit) {
      Block& block = blocks_[unit];
      const auto count = static_cast<std::int64_t>(units_[unit].count());
      block.gradients = holds ? at::empty({count}, device_.host()) : at::Tensor();
      block.far_gradients = !holds            ? at::Tensor()
                            : device_.apart() ? at::zeros({count}, device_.here())
                                              : block.gradients;
      units_[unit].gradients =
          holds ? std::span(block.gradients.mutable_data_ptr<float>(), static_cast<std::size_t>(count))
                : std::span<float>();
      // All 0. Pages that a GPU copies to are its own for good, others are in place once they are written.
      if (holds && device_.apart())
        block.gradients.zero_();
      else
        detail::drop_pages(std::as_writable_bytes(units_[unit].gradients));
    }
    each_trainable([&](std::size_t i, std::int64_t offset) {
      at::Tensor& member = *members_[i];
      const Block& block = blocks_[parameters_[i].unit];
      if (!holds) {
        member.mutable_grad().reset();
        gradients_[i].reset();
        return;
      }
      gradients_[i] =
          view(block.far_gradients.mutable_data_ptr<float>() + offset, parameters_[i].shape, device_.here());
      if (dtype_ == Dtype::f32) member.mutable_grad() = gradients_[i];
    });
    rehook();
  }

  // ---- What a network says while it computes
  /// nullptr: none, and autograd forgets that there were any.
  void hook(UnitHooks* hooks) {
    hooks_ = hooks;
    rehook();
  }
  /// Somebody has written to units().
  void written() {
    if (!device_.apart()) return;
    if (hooks_ != nullptr)
      for (std::size_t unit = 0; unit < units_.size(); ++unit) hooks_->before_unit(unit, Direction::forward);
    for (Block& block : blocks_)
      if (block.values.defined()) block.far_values.copy_(block.values, /*non_blocking=*/true);
    device_.set(uploaded_);
  }
  /// A call of the network begins, in the lane that makes it.
  void call_begins() {
    if (device_.apart()) uploaded_.block();
  }
  /// The network is about to use the unit, forwards.
  void before(std::size_t unit) const {
    if (hooks_ != nullptr && !device_.apart()) hooks_->before_unit(unit, Direction::forward);
  }
  /// The network has used it in a forward pass. `results`: all that later units compute with, none of them a
  /// parameter or a view of one; undefined ones are passed over.
  void after(std::size_t unit, const std::vector<at::Tensor>& results) {
    if (hooks_ == nullptr || device_.apart()) return;
    hooks_->after_unit(unit, Direction::forward);
    for (const at::Tensor& each : results)
      if (each.defined() && each.requires_grad())
        each.register_hook([this, unit](const at::Tensor&) { turn_back_to(unit); });
  }
  /// What a layer, which is all of the unit, makes of `inputs`. `part` may be called again in the backward pass: what it refers
  /// to must stay. `wanted_results`: so many of the results, the first ones, depend on what wants a gradient.
  std::vector<at::Tensor> layer(std::size_t unit, const detail::NetworkPart& part,
                                const std::vector<at::Tensor>& inputs, std::size_t wanted_results = none) {
    before(unit);
    const auto results = recomputes_
                             ? detail::recomputed(part, inputs, trainable_in_[unit] > 0, wanted_results)
                             : part(inputs);
    after(unit, results);
    return results;
  }
  /// Whether a backward pass computes what a layer() keeps for it again.
  void recompute(bool recomputes) { recomputes_ = recomputes; }
  /// For plans: what so many of layer()'s layers keep for a backward pass, of which each makes `one` from `inputs`.
  std::int64_t kept_by_layers(std::int64_t layers, std::int64_t one, std::int64_t inputs) const {
    return recomputes_ ? layers * inputs + one : layers * one;
  }
  /// The network does without its last unit in this forward pass and in the backward pass, if one follows,
  /// where it then says so again.
  void pass_by(std::size_t unit) {
    before(unit);
    after(unit, {});
  }
  /// A backward pass begins. `passed_by`: its forward pass did without this unit. Throws Error where no
  /// gradients are held.
  void backward_begins(std::size_t passed_by = none) {
    if (!holds_)
      throw Error(
          "the model holds no gradients; call hold_gradients(true) on the model that is to be trained");
    waiting_ = trainable_in_;
    backward_at_ = none;
    for (Block& block : blocks_)
      if (device_.apart() && block.gradients.defined())
        block.far_gradients.copy_(block.gradients, /*non_blocking=*/true);
    if (passed_by == none || hooks_ == nullptr || device_.apart()) return;
    turn_back_to(passed_by);
    waiting_[passed_by] = 0;
    hooks_->gradient_ready(passed_by);
  }
  /// A backward pass is over: what it did not reach, it adds nothing to.
  void backward_done() {
    turn_back_to(none);
    if (device_.apart()) {
      for (Block& block : blocks_)
        if (block.gradients.defined()) block.gradients.copy_(block.far_gradients, /*non_blocking=*/true);
      device_.set(downloaded_);
      downloaded_.wait();
    }
    if (hooks_ == nullptr) return;
    for (std::size_t unit = units_.size(); unit-- > 0;)
      if (waiting_[unit] > 0 || device_.apart()) hooks_->gradient_ready(unit);
    waiting_ = trainable_in_;
  }

  // ---- Adapters
  /// Whether the layers compute with theirs; they do at first.
  void use_adapters(bool used) {
    for (const Merge& each : merges_) each.layer->scale = used ? adapters_.alpha / adapters_.rank : 0;
  }
  /// The weights that the model would have without adapters and with the same outputs: calls
  /// `visit(parameter, tensor)` for each parameter that is neither an adapter nor declared apart, one at a time; its layer's product of
  /// adapters is added, in float32, and rounded to the parameter's dtype.
  template <class Visit>
  void merged(Visit visit) const {
    const c10::InferenceMode no_graph;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      at::Tensor value = *members_[i];
      if (parameters_[i].apart) continue;
      for (const auto& [adapter, layer] : merges_)
        if (members_[i] == &layer->weight)
          value = value.to(at::kFloat)
                      .flatten(1)
                      .addmm(layer->adapter_b.to(at::kFloat).flatten(1),
                             layer->adapter_a.to(at::kFloat).flatten(1), 1, layer->scale)
                      .view(value.sizes())
                      .to(value.scalar_type());
      visit(parameters_[i], value);
    }
  }

 private:
  static constexpr std::int64_t drawn_at_once = std::int64_t{1} << 22;
  /// A unit's memory; values and gradients of what trains, each one block.
  struct Block {
    at::Tensor values, far_values;  ///< the same one where the network computes in host memory
    at::Tensor gradients, far_gradients;
    at::Tensor frozen;
  };
  struct Merge {
    std::size_t adapter;
    Linear* layer;
  };
  /// Autograd has added all of this pass's gradient to one of the unit's tensors.
  struct Added final : torch::autograd::PostAccumulateGradHook {
    Added(Parameters& of, std::size_t which) : all(of), index(which) {}
    void operator()(const at::Tensor& tensor) override {
      if (all.dtype_ != Dtype::f32) {  // autograd has made a gradient of its own, in 16 bits
        all.gradients_[index].add_(tensor.grad());
        tensor.mutable_grad().reset();
      }
      const std::size_t unit = all.parameters_[index].unit;
      if (all.hooks_ != nullptr && !all.device_.apart() && all.waiting_[unit] > 0 &&
          --all.waiting_[unit] == 0)
        all.hooks_->gradient_ready(unit);
    }
    Parameters& all;
    std::size_t index;
  };

  /// A backward pass goes on with `unit`, or ends: it has done with the one above.
  void turn_back_to(std::size_t unit) {
    if (unit == backward_at_) return;
    if (hooks_ != nullptr && backward_at_ != none) hooks_->after_unit(backward_at_, Direction::backward);
    backward_at_ = unit;
    if (hooks_ != nullptr && unit != none) hooks_->before_unit(unit, Direction::backward);
  }
  const std::regex& target() {
    if (target_) return *target_;
    try {
      return target_.emplace(adapters_.targets);
    } catch (const std::regex_error& error) {
      throw ConfigError("model.lora_targets is '" + adapters_.targets +
                        "', which is no regular expression: " + error.what());
    }
  }
  /// The adapter's B has the extents `b`, its A those of the weight but for the first, which is the rank.
  void declare_layer(const std::string& name, std::vector<std::int64_t> weight, std::vector<std::int64_t> b,
                     Linear& member, InitialValues initial, bool bias) {
    declare(name + ".weight", weight, member.weight, initial);
    if (bias) declare(name + ".bias", {weight[0]}, member.bias);
    if (adapters_.rank == 0 || frozen_) return;
    layers_.push_back(name);
    if (!adapters_.targets.empty() && !std::regex_match(name, target())) return;
    const std::string key = std::string(adapter_prefix) + name;
    // PEFT's kaiming_uniform_(a = sqrt(5)) has this standard deviation.
    const double inputs = std::accumulate(weight.begin() + 1, weight.end(), 1.0, std::multiplies<>());
    const double scale = 1 / std::sqrt(3.0 * inputs);
    weight[0] = adapters_.rank;
    add(key + ".lora_A.weight", std::move(weight), member.adapter_a, {0, scale}, {}, true, true);
    add(key + ".lora_B.weight", std::move(b), member.adapter_b, {}, {}, true, true);
    member.scale = adapters_.alpha / adapters_.rank;
    merges_.push_back({parameters_.size() - 1, &member});
  }
  void add(std::string name, std::vector<std::int64_t> shape, at::Tensor& member, InitialValues initial,
           OptimiserGroup group, bool trainable, bool apart) {
    parameters_.push_back({.name = std::move(name),
                           .shape = std::move(shape),
                           .dtype = dtype_,
                           .device = device_.is_cuda() ? Device::cuda : Device::cpu,
                           .unit = blocks_.size() - 1,
                           .trainable = trainable,
                           .apart = apart,
                           .group = group});
    initial_.push_back(initial);
    members_.push_back(&member);
  }
  at::TensorOptions here() const { return device_.here().dtype(scalar_type()); }
  at::TensorOptions host() const { return device_.host().dtype(scalar_type()); }
  at::ScalarType scalar_type() const { return dtype_ == Dtype::f32 ? at::kFloat : at::kBFloat16; }
  template <class Element>
  static at::Tensor view(Element* at, const std::vector<std::int64_t>& shape,
                         const at::TensorOptions& options) {
    return at::for_blob(at, shape).options(options).target_device(options.device()).make_tensor();
  }
  /// Calls visit(index, first element within the unit's trainable ones).
  template <class Visit>
  void each_trainable(Visit visit) const {
    std::vector<std::int64_t> next(blocks_.size());
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (parameters_[i].trainable) {
        visit(i, next[parameters_[i].unit]);
        next[parameters_[i].unit] += parameters_[i].count();
      }
  }

  /// Whether a frozen parameter's base has it in place, where it then stays.
  bool map(Parameter& each) {
    if (adapters_.base) each.data = const_cast<std::byte*>(adapters_.base(each));  // and is not written
    return each.mapped = each.data != nullptr;
  }
  void check_targets() const {
    if (adapters_.rank == 0 || !merges_.empty()) return;
    throw ConfigError("model.lora_targets is '" + adapters_.targets +
                      "', which matches no linear layer; they are " + detail::some_of(layers_, 8));
  }
  /// All tensors; frozen ones are `original`'s, if it is not null.
  void make(const Parameters* original) {
    check_targets();
    const c10::InferenceMode ordinary(false);
    std::vector<std::int64_t> frozen(blocks_.size()), trainable(blocks_.size());
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& each = parameters_[i];
      if (each.trainable)
        trainable[each.unit] += each.count();
      else if (original != nullptr)
        each = original->parameters_[i];
      else if (!map(each))
        frozen[each.unit] += each.count();
    }
    units_.resize(blocks_.size());
    trainable_in_.resize(blocks_.size());
    gradients_.resize(parameters_.size());
    homes_.resize(parameters_.size());
    for (std::size_t unit = 0; unit < blocks_.size(); ++unit) {
      Block& block = blocks_[unit];
      units_[unit].dtype = dtype_;
      if (frozen[unit] > 0) block.frozen = at::empty({frozen[unit]}, here());
      if (trainable[unit] == 0) continue;
      block.values = at::empty({trainable[unit]}, host());
      block.far_values = device_.apart() ? at::empty({trainable[unit]}, here()) : block.values;
      units_[unit].values = {static_cast<std::byte*>(block.values.mutable_data_ptr()),
                             static_cast<std::size_t>(trainable[unit]) * bytes_of(dtype_)};
    }
    std::vector<std::int64_t> next(blocks_.size());
    each_trainable([&](std::size_t i, std::int64_t offset) {
      Parameter& each = parameters_[i];
      const std::size_t bytes = static_cast<std::size_t>(offset) * bytes_of(dtype_);
      const Block& block = blocks_[each.unit];
      each.data = units_[each.unit].values.data() + bytes;
      *members_[i] =
          view(static_cast<std::byte*>(block.far_values.mutable_data_ptr()) + bytes, each.shape, here());
      homes_[i] = device_.apart() ? view(each.data, each.shape, host()) : *members_[i];
      members_[i]->requires_grad_(true);
      ++trainable_in_[each.unit];
      auto& runs = units_[each.unit].runs;
      if (runs.empty() || !(runs.back().group == each.group)) runs.push_back({0, each.group});
      runs.back().count += each.count();
    });
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& each = parameters_[i];
      if (each.trainable) continue;
      if (each.data == nullptr) {
        each.data = static_cast<std::byte*>(blocks_[each.unit].frozen.mutable_data_ptr()) +
                    static_cast<std::size_t>(next[each.unit]) * bytes_of(dtype_);
        next[each.unit] += each.count();
      }
      homes_[i] = *members_[i] = view(each.data, each.shape, here());
    }
  }
  void bring_over() {
    if (!device_.apart()) return;
    written();
    uploaded_.wait();
  }
  /// Of trainable tensors: where somebody is to be told, or gradients are to be added up in float32.
  void rehook() {
    waiting_ = trainable_in_;
    const bool wanted = holds_ && ((hooks_ != nullptr && !device_.apart()) || dtype_ != Dtype::f32);
    each_trainable([&](std::size_t i, std::int64_t) {
      torch::autograd::impl::set_post_acc_grad_hooks(*members_[i],
                                                     wanted ? std::make_unique<Added>(*this, i) : nullptr);
    });
  }

  Dtype dtype_;
  Adapters adapters_;
  std::optional<std::regex> target_;  ///< of adapters_
  detail::ComputeDevice device_;
  std::vector<Parameter> parameters_;
  std::vector<InitialValues> initial_;
  std::vector<at::Tensor*> members_;  ///< by parameter: what the network computes with
  std::vector<at::Tensor> homes_;     ///< by parameter: what units() is made of; frozen: the same as members_
  std::vector<at::Tensor> gradients_;  ///< by parameter, float32, while they are held
  std::vector<Block> blocks_;          ///< by unit
  std::vector<WeightUnit> units_;
  std::vector<std::size_t> trainable_in_, waiting_;  ///< by unit: its tensors; those without their gradient
  std::vector<Merge> merges_;
  std::vector<std::string> layers_;  ///< names of the linear layers, for the message
  UnitHooks* hooks_ = nullptr;
  std::size_t backward_at_ = none;  ///< the unit that a backward pass is at
  bool holds_ = false, frozen_ = false, recomputes_ = false;
  detail::StreamMark uploaded_, downloaded_;
};

}  // namespace dvla
