// dvla-example: torch io
// Export weights: a trained run's, as folders that Python reads.
//
// The checkpoint's metadata makes the model again, on the public checkpoint that it was trained from, whatever environment and algorithm
// trained it; value heads are left out, but where that public checkpoint has one.
// --merged FOLDER gets model.safetensors under the public names: all weights, and those of layers with adapters are
// W + alpha / rank * B A, computed in float32, so that every loader of the model's public checkpoints gives what the adapters gave
// beside it; and the public checkpoint's config, tokeniser and statistics. --adapters FOLDER gets what PEFT reads. export_merged
// (model/lora.hpp) and export_adapters (model/adapter_files.hpp) are a call each in a program of your own.
//
//   build/release/examples/export_weights --checkpoint runs/lora --merged merged --adapters adapters
#include <CLI/CLI.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/openvla_oft.hpp>
#include <dvla/model/pi05.hpp>
#include <dvla/model/smolvla.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/model/with_value.hpp>
#include <dvla/pipeline/checkpoint.hpp>
#include <filesystem>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace fs = std::filesystem;

struct Arguments {
  fs::path checkpoint, merged, adapters;
};

/// What of a checkpoint's folder says how its weights are used.
void copy_beside_weights(const fs::path& from, const fs::path& to) {
  for (const fs::directory_entry& each : fs::directory_iterator(from)) {
    const std::string name = each.path().filename().string();
    if (name == "config.json" || name == "generation_config.json" || name == "special_tokens_map.json" ||
        name == "added_tokens.json" || name == "preprocessor_config.json" ||
        name == "processor_config.json" || name == "dataset_statistics.json" || name == "assets" ||
        name.starts_with("tokenizer") || name.starts_with("policy_preprocessor") ||
        name.starts_with("policy_postprocessor"))
      fs::copy(each.path(), to / name, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  }
}

/// Returns whether the checkpoint is of this model.
template <class Model>
bool exported(const dvla::io::SafetensorsFile& file, const std::string& name, const Arguments& arguments) {
  if (name != Model::name) return false;
  const auto [knobs, inputs, seed] = dvla::load_model_settings<Model>(file);
  dvla::machinery_t<Model, void> model(knobs, inputs, seed);
  dvla::load_checkpoint_weights(model, file);

  // The public files that were trained, if there are any.
  std::optional<dvla::io::SafetensorsFile> opened;
  const dvla::io::SafetensorsFile* base = nullptr;
  std::function<std::string(const dvla::Parameter&)> name_of;
  if constexpr (requires { model.published(); }) {
    base = model.published().file();
    name_of = [&](const dvla::Parameter& each) { return model.published().stored_name_of(each); };
  }
  if constexpr (requires { knobs.base_checkpoint; })
    if (!knobs.base_checkpoint.empty()) {
      opened.emplace(dvla::io::open_weights(knobs.base_checkpoint));
      const bool run = opened->metadata().contains(std::string(dvla::io::CheckpointFolder::format_key));
      if (!run) base = &*opened, name_of = {};  // a run's has no public form
    }

  if (!arguments.merged.empty()) {
    const fs::path written =
        dvla::export_merged(model, arguments.merged / "model.safetensors", base, name_of);
    if (base != nullptr)
      copy_beside_weights(fs::absolute(base->path()).parent_path(), arguments.merged);
    else if constexpr (requires { model.config_text(); })
      dvla::io::write_file(arguments.merged / "config.json", model.config_text());
    std::cout << "wrote " << written.string() << '\n';
  }
  if constexpr (requires { knobs.pictures; })  // what is copied beside does not say so
    if (base != nullptr && knobs.pictures != decltype(knobs.pictures)::checkpoint)
      std::cout << "the run was told whose way pictures are made: give --pictures "
                << dvla::enum_name(knobs.pictures) << " where these weights are used\n";
  if (arguments.adapters.empty()) return true;
  if constexpr (requires { model.adapters(); }) {
    const dvla::Parameter& first = model.parameters().front();
    std::string folder, lead;
    if (base != nullptr) {
      folder = base->path().parent_path().string();
      if (!name_of)
        lead = dvla::leading(*base, first.name);
      else if (name_of(first) == dvla::lerobot_prefix + first.name)
        lead = dvla::lerobot_prefix;
    }
    const std::size_t bytes =
        dvla::export_adapters(model, model.adapters(), arguments.adapters, folder, lead);
    std::cout << "wrote " << (arguments.adapters / dvla::adapter_weights_name).string() << ": "
              << dvla::mebibytes(bytes, 2) << '\n';
  } else {
    throw dvla::ConfigError("the run trained ", name, ", which has no adapters; leave --adapters out");
  }
  return true;
}

/// Of one of these, with adapters, a value head, or both.
template <class... Models>
void export_any(const dvla::io::SafetensorsFile& file, const Arguments& arguments) {
  using namespace dvla;
  const std::string name = nlohmann::json::parse(dvla::detail::config_text(file)).at("pipeline").at("model");
  const auto any = [&]<class Model>(std::type_identity<Model>) {
    return exported<Model>(file, name, arguments) || exported<LoRA<Model>>(file, name, arguments) ||
           exported<WithValue<Model>>(file, name, arguments) ||
           exported<WithValue<LoRA<Model>>>(file, name, arguments) ||
           exported<LoRA<WithValue<Model>>>(file, name, arguments);
  };
  if (!(any(std::type_identity<Models>{}) || ...))
    throw ConfigError("the run trained ", name, "; this program knows these, under LoRA and WithValue too: ",
                      ((std::string(Models::name) + " ") + ...));
}

int main(int argc, char** argv) {
  CLI::App app("Writes a checkpoint's weights as folders that Python reads.");
  Arguments arguments;
  app.add_option("--checkpoint", arguments.checkpoint, "a step-N.safetensors file, or a run's folder")
      ->required();
  app.add_option(
      "--merged", arguments.merged,
      "the folder for whole weights, adapters added in; several files, with an index, where they are large");
  app.add_option("--adapters", arguments.adapters, "the folder for the adapters, as PEFT has them");
  CLI11_PARSE(app, argc, argv);
  try {
    if (arguments.merged.empty() && arguments.adapters.empty())
      throw dvla::ConfigError("there is nothing to write; give --merged or --adapters");
    const dvla::io::SafetensorsFile file = dvla::io::open_checkpoint(arguments.checkpoint);
    using namespace dvla;
    export_any<TinyVLA<TokenHead>, TinyVLA<FlowHead>, Pi05, SmolVLA, OpenVLAOFT>(file, arguments);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
