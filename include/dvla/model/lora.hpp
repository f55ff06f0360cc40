// LoRA's machinery: any model whose linear layers are declared by name (model/parameters.hpp), frozen, with
// low-rank adapters beside the layers that `lora_targets` names (Hu et al., arXiv 2106.09685; PEFT's key names
// and initial values). Only the adapters train, travel and are checkpointed; their share of the memory is what
// gradients, masters and moments are for. Paper: OpenVLA-OFT by parameter-efficient fine-tuning. No DoRA, no
// dropout, no rank that differs between layers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dvla/core/machinery.hpp"
#include "dvla/io/checkpoint.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/descriptors.hpp"
#include "dvla/model/weight_files.hpp"

namespace dvla {

template <class Base>
class LoraModel : public Base {
 public:
  /// Throws as Base does, ConfigError where no layer is a target, and what load_weights throws for a
  /// `base_checkpoint` that does not fit.
  template <class BaseKnobs>
  LoraModel(const LoraKnobs<BaseKnobs>& knobs, const ModelInputs& inputs, std::uint64_t seed)
      : LoraModel(knobs, inputs, seed, base_of(knobs)) {}

  LoraModel(const LoraModel& original, ShareFrozen) : Base(original, share_frozen) {}

  /// See HasReference: the frozen base is the reference policy.
  void reference(const Observation& observation, const typename Base::Decision& decision,
                 std::span<const std::int64_t> rows, std::span<float> log_prob) {
    this->forward_without_adapters(observation, decision, rows, log_prob);
  }

  template <class BaseKnobs>
  static ModelPlan plan(const LoraKnobs<BaseKnobs>& knobs, const ModelInputs& inputs,
                        std::int64_t sampling_rows, std::int64_t training_rows) {
    const File base = base_of(knobs);
    return Base::plan(knobs, with_adapters(knobs, inputs, base), sampling_rows, training_rows);
  }

 private:
  using File = std::unique_ptr<const io::SafetensorsFile>;

  template <class Knobs>
  LoraModel(const Knobs& knobs, const ModelInputs& inputs, std::uint64_t seed, File base)
      : Base(knobs, with_adapters(knobs, inputs, base), seed) {
    if (base) load_weights(*this, *base, WeightSet::frozen, prefix_in(*base));
    if (std::ranges::any_of(this->parameters(), &Parameter::mapped)) base_ = std::move(base);
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
    inputs.adapters = {knobs.lora_rank, knobs.lora_alpha, knobs.lora_targets};
    if (base && inputs.device == Device::cpu) inputs.adapters.base = frozen_views(*base, prefix_in(*base));
    return inputs;
  }

  File base_;  ///< whose mapped tensors the model computes with; null: with none, or with its original's
};

/// Writes the weights that the model's base would have with its adapters added in, under the base's names: a
/// file that the base itself, and its public loaders, read; several where it is large. A model without adapters is
/// its own base. Returns the path as write_safetensors does.
template <class Model>
std::filesystem::path export_merged(const Model& model, const std::filesystem::path& path) {
  std::vector<io::TensorToWrite> tensors;
  std::vector<std::vector<std::byte>> values;
  values.reserve(model.parameters().size());
  model.merged([&](const Parameter& parameter, const auto& tensor) {
    const auto here = tensor.cpu();  // itself, unless it was computed with elsewhere
    const auto* bytes = static_cast<const std::byte*>(here.const_data_ptr());
    values.emplace_back(bytes, bytes + parameter.bytes());
    tensors.push_back({parameter.name, detail::file_dtype(parameter.dtype), parameter.shape, values.back()});
  });
  return io::write_safetensors(path, tensors);
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
