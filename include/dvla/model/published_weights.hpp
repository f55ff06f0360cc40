// The weights of a folder with a published model, by the names that the library's networks have, which are those of today's
// files: a leading `model.` may be there or not, older names are mapped, a tensor that is tied to another may be there as an alias
// in `__metadata__` or as that other alone, and what no model reads is left out, and said. Anything else that is missing, surplus
// or of another shape is one sentence before memory is taken. Reads no pickle; opens nothing outside the folder
// (io/safetensors_index.hpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/model/weight_files.hpp"

namespace dvla::detail {

/// What a family's files may have otherwise. Names without a leading `model.`.
struct PublishedNames {
  using Pairs = std::vector<std::pair<std::string, std::string>>;
  Pairs older{};       ///< what names once began with, and what they begin with today
  Pairs tied{};        ///< a tensor, and the one that stands in for it
  std::string dead{};  ///< regular expression of whole names that no model reads
};

class PublishedWeights {
 public:
  /// An empty `folder`: there is no checkpoint. Throws as SafetensorsFile does, and ConfigError where a tensor is there twice.
  PublishedWeights(const std::string& folder, const PublishedNames& names)
      : folder_(folder), dead_(names.dead + (names.dead.empty() ? "" : "|") + buffers) {
    if (folder.empty()) return;
    const io::SafetensorsFile& file = file_.emplace(folder);
    const auto found = [&](const std::string& today, const std::string& stored) {
      const auto [at, first] = stored_.emplace(today, stored);
      if (!first)
        throw ConfigError("'", folder, "' has ", today, " twice, as ", at->second, " and as ", stored);
    };
    for (const std::string& name : file.names()) {
      std::string today = bare(name);
      for (const auto& [old, now] : names.older)
        if (today.starts_with(old)) today = now + today.substr(old.size());
      found(today, name);
    }
    for (const auto& [name, other] : file.metadata())
      if (file.contains(other) && !stored_.contains(bare(name))) found(bare(name), other);
    for (const auto& [name, other] : names.tied)
      if (stored_.contains(other) && !stored_.contains(name)) found(name, stored_.at(other));
  }

  /// Throws ConfigError, one sentence, unless the model `name` has exactly these tensors, but for what nobody reads and what stands
  /// apart from the published model. No value is looked at.
  void check(std::string_view name, const std::vector<Parameter>& parameters) {
    if (!file_) return;
    std::vector<std::string> missing, surplus, other;
    std::set<std::string> read;
    for (const Parameter& each : parameters) {
      const std::string stored = stored_name_of(each);
      if (stored.empty()) {
        (each.apart ? anew_ : missing).push_back(quoted(each.name));
        continue;
      }
      read.insert(stored);
      const io::TensorView view = file_->tensor(stored);
      if (!std::ranges::equal(view.shape, each.shape))
        other.push_back(quoted(stored) + " is " + shape_text(view.shape) + " and not " +
                        shape_text(each.shape));
      else if (!is_weight_dtype(view.dtype))
        other.push_back(quoted(stored) + " is " + std::string(io::dtype_name(view.dtype)) +
                        " and not F32, BF16 or F16");
    }
    for (const std::string& stored : file_->names()) {
      if (read.contains(stored)) continue;
      // The library's matcher goes as deep as a text is long.
      if (stored.size() <= longest_name && std::regex_match(bare(stored), dead_))
        left_out_.push_back(quoted(stored));
      else
        surplus.push_back(quoted(stored));
    }
    std::string why;
    const auto tell = [&](const std::vector<std::string>& what, const char* one, const char* more) {
      if (!what.empty())
        why += (why.empty() ? "" : "; ") + std::to_string(what.size()) + (what.size() == 1 ? one : more) +
               some_of(what, named);
    };
    tell(missing, " tensor is missing: ", " tensors are missing: ");
    tell(surplus, " is not the model's: ", " are not the model's: ");
    tell(other, " does not fit: ", " do not fit: ");
    if (!why.empty()) throw ConfigError("'", folder_, "' has other tensors than ", name, ": ", why);
  }
  /// For people: where the weights come from, and which tensors nobody reads.
  std::vector<std::string> notes() const {
    if (!file_) return {};
    std::vector<std::string> all{"weights of '" + folder_ + "': " + std::to_string(file_->names().size()) +
                                 " tensors"};
    if (!left_out_.empty()) all[0] += ", of which nobody reads " + some_of(left_out_, named);
    if (!anew_.empty()) all.push_back("not among them, so they begin anew: " + some_of(anew_, named));
    return all;
  }

  /// Null: there is none.
  const io::SafetensorsFile* file() const { return file_ ? &*file_ : nullptr; }
  /// Empty: the file has none.
  std::string stored_name_of(const Parameter& each) const {
    const auto found = stored_.find(bare(each.name));
    return found == stored_.end() ? "" : found->second;
  }

  /// A tensor by today's name; nothing: the file has none.
  std::optional<io::TensorView> find(const std::string& name) const {
    const auto found = stored_.find(name);
    if (found == stored_.end()) return {};
    return file_->tensor(found->second);
  }
  /// Makes `widths` those of the layers within a head (parts/apart_mlp.hpp) that the file has.
  void take_widths(const std::string& head, std::vector<std::int64_t>& widths) const {
    std::vector<std::int64_t> found;
    while (const auto view = find(head + ".mlp." + std::to_string(2 * found.size()) + ".weight")) {
      if (view->shape.size() != 2 || view->shape[0] < 1) return;  // check says so
      found.push_back(view->shape[0]);
    }
    if (found.size() < 2) return;
    found.pop_back();
    widths = found;
  }

  /// Frozen tensors are computed with where they lie, as far as they have the model's precision.
  Adapters under(Adapters adapters) const {
    if (file_)
      adapters.base = frozen_views(*file_, [this](const Parameter& each) { return stored_name_of(each); });
    return adapters;
  }
  /// Makes the tensors, with the checkpoint's values where there is one. What stands apart and is not in it is drawn. Throws as
  /// load_weights does.
  template <class AllParameters>
  void fill(AllParameters& all, std::uint64_t seed) {
    if (!file_) return all.allocate(seed);
    const auto name_of = [this](const Parameter& each) { return stored_name_of(each); };
    all.allocate(seed, [&](const Parameter& each) { return !name_of(each).empty(); });
    load_weights_as(all, *file_, name_of);
  }

 private:
  static constexpr std::size_t named = 4;  ///< of a list, in a sentence
  static constexpr std::size_t longest_name = 1000;
  /// Transformers' own of older versions, which are no weights.
  static constexpr const char* buffers = R"(.*\.(position_ids|rotary_emb\.inv_freq))";

  static std::string bare(const std::string& name) {
    constexpr std::string_view leading = "model.";
    return name.starts_with(leading) ? name.substr(leading.size()) : name;
  }
  static std::string quoted(const std::string& name) { return "'" + one_line(name, 200) + "'"; }
  static std::string shape_text(std::span<const std::int64_t> shape) {
    std::string text;
    for (const std::int64_t extent : shape) text += (text.empty() ? "" : " x ") + std::to_string(extent);
    return "[" + text + "]";
  }
  std::string folder_;
  std::regex dead_;
  std::optional<io::SafetensorsFile> file_;
  std::map<std::string, std::string> stored_;  ///< by today's name: the file's
  std::vector<std::string> left_out_, anew_;
};

}  // namespace dvla::detail
