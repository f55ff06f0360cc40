// A model's weights in safetensors files, by the parameters' names: to be written as they are, and to be read
// whatever precision they were written in. Of any model machinery, with a run or without one; what else a
// run's checkpoint holds is pipeline/checkpoint.hpp's. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/core/weights.hpp"
#include "dvla/io/safetensors.hpp"

namespace dvla {

/// Which of a model's parameters are meant.
enum class WeightSet { all, trainable, frozen };

/// Before the names of weights in a run's checkpoints.
inline constexpr const char* checkpoint_prefix = "model.";

namespace detail {
inline io::Dtype file_dtype(Dtype dtype) {
  return dtype == Dtype::f32 ? io::Dtype::F32 : dtype == Dtype::bf16 ? io::Dtype::BF16 : io::Dtype::F16;
}
inline bool belongs(const Parameter& parameter, WeightSet set) {
  return parameter.alias_of.empty() &&
         (set == WeightSet::all || parameter.trainable == (set == WeightSet::trainable));
}
/// The name that a file has a tensor by: another one's where the two are one, as safetensors' `save_model` says in
/// the metadata.
inline std::string stored_name(const io::SafetensorsFile& file, const std::string& name) {
  if (const auto alias = file.metadata().find(name); alias != file.metadata().end() && !file.contains(name))
    return alias->second;
  return name;
}
inline const std::byte* host_data(const Parameter& parameter) {
  if (!parameter.trainable && parameter.device != Device::cpu)
    throw Error("parameter " + parameter.name +
                " lies in a GPU's memory, from which files are neither written nor read");
  return parameter.data;
}
/// What weights are read from.
constexpr bool is_weight_dtype(io::Dtype dtype) {
  return dtype == io::Dtype::F32 || dtype == io::Dtype::BF16 || dtype == io::Dtype::F16;
}
/// `visit(i, value)` for each element of a tensor of such a type.
template <class Visit>
void for_each_value(const io::TensorView& view, Visit visit) {
  for (std::size_t i = 0; i < view.elements(); ++i) {
    if (view.dtype == io::Dtype::F32) {
      float value = 0;
      std::memcpy(&value, view.bytes.data() + 4 * i, 4);
      visit(i, value);
    } else {
      std::uint16_t value = 0;
      std::memcpy(&value, view.bytes.data() + 2 * i, 2);
      visit(i, view.dtype == io::Dtype::BF16 ? from_bf16(value) : from_f16(value));
    }
  }
}

/// Throws as load_weights does where a tensor that `name_of(parameter)` names is missing, or has another shape or
/// type; looks at no value, so the parameters need no memory yet.
template <class NameOf>
void check_weights_as(const std::vector<Parameter>& parameters, const io::SafetensorsFile& file,
                      NameOf name_of) {
  for (const Parameter& each : parameters) {
    const std::string name = name_of(each), where = "'" + file.path().string() + "': tensor " + name;
    if (name.empty()) continue;
    const io::TensorView view = file.tensor(name);
    if (!std::ranges::equal(view.shape, each.shape))
      throw ConfigError(where +
                        " has another shape than this model: use the settings the checkpoint was made with");
    if (!is_weight_dtype(view.dtype))
      throw ConfigError(where + " is " + std::string(io::dtype_name(view.dtype)) +
                        "; weights are read from F32, BF16 and F16");
  }
}

/// load_weights of the parameters that `name_of(parameter)` names a tensor of the file for.
template <class Model, class NameOf>
void load_weights_as(Model& model, const io::SafetensorsFile& file, NameOf name_of) {
  check_weights_as(model.parameters(), file, name_of);
  for (const bool copies : {false, true}) {  // everything is checked before anything changes
    for (const Parameter& each : model.parameters()) {
      const std::string name = name_of(each), where = "'" + file.path().string() + "': tensor " + name;
      if (name.empty()) continue;
      const io::TensorView view = file.tensor(name);
      if (each.mapped &&
          (view.dtype != file_dtype(each.dtype) ||
           (view.bytes.data() != each.data && std::memcmp(view.bytes.data(), each.data, each.bytes()) != 0)))
        throw ConfigError(where +
                          " is not what this model has mapped from its base: give that file as the base");
      if (!copies && !each.mapped) {
        for_each_value(view, [&](std::size_t i, float value) {
          if (!std::isfinite(value))
            throw FormatError(where + " has " + number_text(value) + " at element " + std::to_string(i) +
                              ": it must be finite");
        });
      }
      if (!copies || each.mapped) continue;
      auto* to = const_cast<std::byte*>(host_data(each));
      if (view.dtype == file_dtype(each.dtype)) {
        std::copy(view.bytes.begin(), view.bytes.end(), to);
      } else {
        for_each_value(view, [&](std::size_t i, float value) {
          from_floats(std::span(&value, 1), each.dtype,
                      {to + i * bytes_of(each.dtype), bytes_of(each.dtype)});
        });
      }
    }
  }
}

/// The names of the parameters of `set` in a file that has `prefix` before them.
inline auto names_in(const io::SafetensorsFile& file, WeightSet set, const std::string& prefix) {
  return [&file, set, prefix](const Parameter& each) {
    return belongs(each, set) ? stored_name(file, prefix + each.name) : std::string();
  };
}

/// frozen_views by such names.
template <class NameOf>
FrozenViews frozen_views(const io::SafetensorsFile& file, NameOf name_of) {
  return [&file, name_of](const Parameter& each) -> const std::byte* {
    const std::string name = name_of(each);
    if (!file.contains(name)) return nullptr;
    const io::TensorView view = file.tensor(name);
    const bool fits = view.dtype == file_dtype(each.dtype) && std::ranges::equal(view.shape, each.shape) &&
                      reinterpret_cast<std::uintptr_t>(view.bytes.data()) % bytes_of(each.dtype) == 0;
    return fits ? view.bytes.data() : nullptr;
  };
}
}  // namespace detail

/// Views of the model's parameters, `prefix` before their names: valid while the model lives, and what the
/// model has when they are written.
template <class Model>
std::vector<io::TensorToWrite> weights_to_write(const Model& model, WeightSet set,
                                                const std::string& prefix = {}) {
  std::vector<io::TensorToWrite> all;
  for (const Parameter& each : model.parameters())
    if (detail::belongs(each, set))
      all.push_back({prefix + each.name,
                     detail::file_dtype(each.dtype),
                     each.shape,
                     {detail::host_data(each), each.bytes()}});
  return all;
}

/// Reads them by name. A file in float32, bfloat16 or float16 fits a model of any: values are rounded to what
/// the model computes in. Throws FormatError or ConfigError, one sentence, where a tensor is missing, of another
/// shape or type, or not finite, and then leaves the model as it was.
template <class Model>
void load_weights(Model& model, const io::SafetensorsFile& file, WeightSet set = WeightSet::all,
                  const std::string& prefix = {}) {
  detail::load_weights_as(model, file, detail::names_in(file, set, prefix));
}
/// What of that can be found wrong before a model of these parameters has memory.
inline void check_weights(const std::vector<Parameter>& parameters, const io::SafetensorsFile& file,
                          WeightSet set = WeightSet::all, const std::string& prefix = {}) {
  detail::check_weights_as(parameters, file, detail::names_in(file, set, prefix));
}

/// For a model that can compute with frozen weights where they lie in the mapped file, which must outlive it:
/// those of the precision that it computes in. Nothing is read, so numbers that are not finite are not found
/// here; ranks of a machine share the pages. load_weights reads the others, and checks names and shapes of all.
inline FrozenViews frozen_views(const io::SafetensorsFile& file, const std::string& prefix) {
  return detail::frozen_views(
      file, [&file, prefix](const Parameter& each) { return detail::stored_name(file, prefix + each.name); });
}

/// Whether the model has what load_weights would give it, in the file's own precision, bit for bit.
template <class Model>
bool has_weights(const Model& model, const io::SafetensorsFile& file, WeightSet set,
                 const std::string& prefix = {}) {
  return std::ranges::all_of(weights_to_write(model, set, prefix), [&](const io::TensorToWrite& mine) {
    const io::TensorView theirs = file.tensor(detail::stored_name(file, mine.name));
    return theirs.dtype == mine.dtype && std::ranges::equal(theirs.bytes, mine.bytes);
  });
}

}  // namespace dvla
