// LoRA's machinery: any model whose linear layers are declared by name (model/parameters.hpp), frozen, with
// low-rank adapters beside the layers that `lora_targets` names (Hu et al., arXiv 2106.09685; PEFT's key names
// and initial values). Only the adapters train, travel and are checkpointed; their share of the memory is what
// gradients, masters and moments are for. Paper: OpenVLA-OFT by parameter-efficient fine-tuning. No DoRA, no
// dropout, no rank that differs between layers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/model/adapter_files.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/weight_files.hpp"

namespace dvla {

template <class Base>
class LoraModel : public Base {
 public:
  /// Throws as Base does, ConfigError where no layer is a target, what load_weights throws for a
  /// `base_checkpoint` that does not fit, and what load_adapters throws for `adapters`.
  template <class BaseKnobs>
  LoraModel(const LoraKnobs<BaseKnobs>& knobs, const ModelInputs& inputs, std::uint64_t seed)
      : LoraModel(knobs, inputs, seed, base_of(knobs)) {}

  LoraModel(const LoraModel& original, ShareFrozen)
      : Base(original, share_frozen), adapters_(original.adapters_) {}

  /// Their rank, scale and targets.
  const Adapters& adapters() const { return adapters_; }

  /// See HasReference: the frozen base is the reference policy.
  void reference(const Observation& observation, const typename Base::Decision& decision,
                 std::span<const std::int64_t> rows, std::span<float> log_prob) {
    this->forward_without_adapters(observation, decision, rows, log_prob);
  }

  template <class BaseKnobs>
  static ModelPlan plan(const LoraKnobs<BaseKnobs>& knobs, const ModelInputs& inputs,
                        std::int64_t sampling_rows, std::int64_t training_rows) {
    const File base = base_of(knobs);
    ModelPlan plan = Base::plan(knobs, with_adapters(knobs, inputs, base), sampling_rows, training_rows);
    if (base) check_weights(plan.parameters, *base, WeightSet::frozen, prefix_in(*base));
    if (!knobs.adapters.empty()) check_adapters(plan.parameters, adapters_of(knobs), knobs.adapters);
    return plan;
  }

 private:
  using File = std::unique_ptr<const io::SafetensorsFile>;

  template <class Knobs>
  LoraModel(const Knobs& knobs, const ModelInputs& inputs, std::uint64_t seed, File base)
      : Base(knobs, with_adapters(knobs, inputs, base), seed), adapters_(adapters_of(knobs)) {
    if (base) load_weights(*this, *base, WeightSet::frozen, prefix_in(*base));
    if (std::ranges::any_of(this->parameters(), &Parameter::mapped)) base_ = std::move(base);
    if (!knobs.adapters.empty()) load_adapters(*this, adapters_, knobs.adapters);
  }
  template <class Knobs>
  static Adapters adapters_of(const Knobs& knobs) {
    return {knobs.lora_rank, knobs.lora_alpha, knobs.lora_targets};
  }
  /// Null: the base makes its own weights, or reads a published checkpoint itself.
  template <class Knobs>
  static File base_of(const Knobs& knobs) {
    if (knobs.base_checkpoint.empty()) return nullptr;
    if constexpr (requires { knobs.checkpoint; })
      if (!knobs.checkpoint.empty())
        throw ConfigError("model.checkpoint is '", knobs.checkpoint, "' and model.base_checkpoint is '",
                          knobs.base_checkpoint,
                          "'; both give the frozen base its weights, so leave one out");
    return std::make_unique<const io::SafetensorsFile>(io::open_weights(knobs.base_checkpoint));
  }
  static const char* prefix_in(const io::SafetensorsFile& file) {
    return file.metadata().contains(std::string(io::CheckpointFolder::format_key)) ? checkpoint_prefix : "";
  }
  template <class Knobs>
  static ModelInputs with_adapters(const Knobs& knobs, ModelInputs inputs, const File& base = nullptr) {
    inputs.adapters = adapters_of(knobs);
    if (base && inputs.device == Device::cpu) inputs.adapters.base = frozen_views(*base, prefix_in(*base));
    return inputs;
  }

  Adapters adapters_;
  File base_;  ///< whose mapped tensors the model computes with; null: with none, or with its original's
};

/// Writes the weights that a model would have without adapters and with the same outputs, under the public names: a
/// file that the base itself, and its public loaders, read; several where it is large. A model without adapters is its own base.
/// `base`: a public file of the model that was trained, whose form is then kept: a leading `model.`, aliases and other metadata, and
/// heads that it has, and what it has beside the model's tensors (what nobody reads; copies of a matrix under another name get the new one). `name_of`: the
/// name that it has a parameter by, or nothing for one that it lacks. Throws ConfigError where there is no name_of and it lacks one.
/// Returns the path as write_safetensors does.
template <class Model>
std::filesystem::path export_merged(const Model& model, const std::filesystem::path& path,
                                    const io::SafetensorsFile* base = nullptr,
                                    std::function<std::string(const Parameter&)> name_of = {}) {
  const bool must_have = base != nullptr && !name_of;
  if (must_have)
    name_of = [base, lead = leading(*base, model.parameters().front().name)](const Parameter& each) {
      const std::string name = detail::stored_name(*base, lead + each.name);
      return base->contains(name) ? name : "";
    };
  std::vector<io::TensorToWrite> tensors;
  std::deque<std::vector<std::byte>> made;
  std::map<std::string, std::size_t> replaced;  // of the base's
  model.merged([&](const Parameter& parameter, const auto& tensor) {
    const auto here = tensor.cpu();  // itself, unless it was computed with elsewhere
    const auto* const bytes = static_cast<const std::byte*>(here.const_data_ptr());
    std::span<const std::byte> values(bytes, parameter.bytes());
    if (bytes != parameter.data) values = made.emplace_back(values.begin(), values.end());
    const std::string name = base != nullptr ? name_of(parameter) : "";
    if (must_have && name.empty())
      throw ConfigError("'" + base->path().string() + "' has no " + parameter.name +
                        ": it is no checkpoint of the model that was trained");
    if (!name.empty()) replaced[name] = tensors.size();
    tensors.push_back(
        {name.empty() ? parameter.name : name, detail::file_dtype(parameter.dtype), parameter.shape, values});
  });
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path());
  if (base == nullptr) return io::write_safetensors(path, tensors, {{"format", "pt"}});
  for (const Parameter& each : model.parameters()) {  // a head that the base has, too
    const std::string name = each.apart ? name_of(each) : "";
    if (name.empty()) continue;
    replaced[name] = tensors.size();
    tensors.push_back(
        {name, detail::file_dtype(each.dtype), each.shape, {detail::host_data(each), each.bytes()}});
  }
  for (const std::string& name : base->names()) {
    if (replaced.contains(name)) continue;
    const io::TensorView view = base->tensor(name);
    io::TensorToWrite kept{name, view.dtype, {view.shape.begin(), view.shape.end()}, view.bytes};
    for (const auto& [other, at] : replaced)  // short lists may be alike by chance
      if (kept.shape.size() > 1 && tensors[at].shape == kept.shape &&
          std::ranges::equal(base->tensor(other).bytes, view.bytes)) {
        kept.dtype = tensors[at].dtype;
        kept.bytes = tensors[at].bytes;
      }
    tensors.push_back(std::move(kept));
  }
  return io::write_safetensors(path, tensors, base->metadata());
}

/// The same of a model that its family publishes, in a folder that the knob `checkpoint` takes: config.json stands beside.
template <class Model>
void export_folder(const Model& model, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  (void)export_merged(model, folder / "model.safetensors");
  io::write_file(folder / "config.json", model.config_text());
}

template <class Model, class Pipeline>
struct machinery<LoRA<Model>, Pipeline> {
  using base = typename machinery<Model, Pipeline>::type;
  using type =
      std::conditional_t<std::is_same_v<base, detail::no_machinery>, detail::no_machinery, LoraModel<base>>;
};

}  // namespace dvla
