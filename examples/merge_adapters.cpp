// dvla-example: torch mujoco io
// Merge adapters: a checkpoint of examples/lora as one file of weights without adapters.
//
// The configuration in the checkpoint's metadata makes the frozen base again, or reads it from its
// `base_checkpoint`; each target layer then becomes W + alpha / rank * B A, computed in float32. The file has
// the base's own names, so the base alone, and every loader of its checkpoints, gives what it gave with the
// adapters beside it: export_merged (model/lora.hpp) is one call in a program of your own.
//
//   build/release/examples/merge_adapters --checkpoint runs/lora --output merged.safetensors
#include <CLI/CLI.hpp>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/mujoco.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/checkpoint.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <filesystem>
#include <iostream>

/// Must be the composition that the checkpoint was trained with: here lora.cpp's.
using Adapters =
    dvla::Pipeline<dvla::Sampler<dvla::MuJoCo<dvla::Push>, dvla::LoRA<dvla::TinyVLA<dvla::TokenHead>>>,
                   dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>>;

int main(int argc, char** argv) {
  CLI::App app("Adds a checkpoint's adapters into the weights of its base.");
  std::filesystem::path checkpoint, output;
  app.add_option("--checkpoint", checkpoint, "a step-N.safetensors file, or a run's folder")->required();
  app.add_option("--output", output, "the file to write; several, with an index, where it is large")
      ->required();
  CLI11_PARSE(app, argc, argv);
  try {
    const dvla::io::SafetensorsFile file = dvla::io::open_checkpoint(checkpoint);
    auto knobs = dvla::load_config<Adapters>(file);  // for the model of the run, without a run
    knobs.memory.device = dvla::Device::cpu;         // wherever it was trained
    const dvla::RunSettings<Adapters> settings(knobs);
    using Environment = dvla::machinery_t<Adapters::environment, Adapters>;
    dvla::machinery_t<Adapters::model, Adapters> model(
        knobs.model, settings.model_inputs(Environment::spec(knobs.environment)), settings.weight_seed());
    dvla::load_checkpoint_weights(model, file);
    std::cout << "wrote " << dvla::export_merged(model, output).string() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
