// dvla-example: torch io
// How far a model's network is from its published Python code: plays a record that a script of test/golden/model/parity has
// made of the reference (any seed, any sizes), and says for each activation, output and gradient how far this
// library is from it, in float32, and in bfloat16 beside the reference's own error. The exit code is 1 where an
// output is further off than 1e-5, a gradient than 1e-4, or bfloat16 than 1.5 times what the reference is.
//
// Where the record has adapters that PEFT has made, the same is said of outputs and gradients with them, and of outputs where they
// are added in. With a second folder, adapters drawn here are written to it as export_adapters and export_merged write
// them, and the outputs with them, for the reference to play (test/golden/model/peft/check_exports).
//
//   .venv-parity/bin/python test/golden/model/parity/pi05.py --seed 11 --layers 4 --adapter=2 /tmp/record
//   build/release/examples/parity /tmp/record [/tmp/exported]
//
// With `--serve f32|bf16 THREADS` behind the record it is what such a script's --beside=build/release/examples/parity
// times the reference against: reads `training` or `inference` a line, perhaps followed by `whole` (what nobody reads is
// computed too, as the reference does), does that once, and says how many seconds it took.
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mse_loss.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/io/safetensors.hpp"
#include "dvla/model/adapter_files.hpp"
#include "dvla/model/lora.hpp"
#include "dvla/model/openvla_network.hpp"
#include "dvla/model/pi0_network.hpp"
#include "dvla/model/smolvla_network.hpp"
#include "dvla/model/weight_files.hpp"

namespace {

/// A record's tensors, by name; with a `part`, those in that folder of it.
class Recorded {
 public:
  explicit Recorded(const std::filesystem::path& from, const std::string& part = "")
      : folder(from),
        config(nlohmann::json::parse(std::ifstream(folder / "config.json"))),
        weights(folder / "model.safetensors"),
        file_(folder / part / "record.safetensors") {}

  bool has(const std::string& name) const { return file_.contains(name); }
  at::Tensor operator()(const std::string& name) const {
    using enum dvla::io::Dtype;
    const dvla::io::TensorView view = file_.tensor(name);
    const at::ScalarType type = view.dtype == F32   ? at::kFloat
                                : view.dtype == I64 ? at::kLong
                                : view.dtype == I32 ? at::kInt
                                : view.dtype == BOOL
                                    ? at::kBool
                                    : throw dvla::Error("record: ", name, " has another type");
    at::Tensor copy = at::empty(at::IntArrayRef(view.shape.data(), view.shape.size()), type);
    std::memcpy(copy.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
    return copy;
  }
  std::vector<std::string> gradients() const {
    return nlohmann::json::parse(file_.metadata().at("gradients")).get<std::vector<std::string>>();
  }

  const std::filesystem::path folder;
  const nlohmann::json config;
  const dvla::io::SafetensorsFile weights;

 private:
  const dvla::io::SafetensorsFile file_;
};

/// The largest difference by the largest magnitude.
double relative(const at::Tensor& ours, const at::Tensor& theirs) {
  if (ours.sizes() != theirs.sizes()) throw dvla::Error("a tensor has other extents than recorded");
  const double largest = theirs.abs().max().item<double>();
  return (ours.to(at::kDouble) - theirs.to(at::kDouble)).abs().max().item<double>() /
         std::max(largest, 1e-30);
}

class Report {
 public:
  void line(const std::string& what, double off, double limit) {
    const bool holds = off <= limit;
    failed_ = failed_ || !holds;
    std::printf("  %-40s %.1e%s\n", what.c_str(), off,
                holds ? "" : ("   more than " + dvla::detail::number_text(limit)).c_str());
  }
  bool failed() const { return failed_; }

 private:
  bool failed_ = false;
};

/// Of a model, by the names that a file has them by.
using dvla::detail::SomeParameters;

/// What is done with a record besides, or instead.
struct Asked {
  std::filesystem::path exported;     ///< where adapters are written to; empty: nowhere
  std::optional<dvla::Dtype> served;  ///< passes are timed, in this precision, and nothing is compared
};

/// What is timed: with a backward pass, and without a graph.
struct Passes {
  std::function<void()> training, inference;
  std::function<void(bool)> whole;  ///< whether what nobody reads is computed
};
void serve(const Passes& passes) {
  for (std::string line; std::getline(std::cin, line);) {
    passes.whole(line.ends_with(" whole"));
    const auto begin = std::chrono::steady_clock::now();
    (line.starts_with("training") ? passes.training : passes.inference)();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%.6f\n", seconds.count());
    std::fflush(stdout);
  }
}
template <class Network>
auto whole_of(Network& network) {
  return [&network](bool all) {
    if (all)
      network.watch([](const std::string&, const at::Tensor&) {});
    else
      network.watch({});
  };
}
/// One pass with a gradient.
template <class Loss>
void train(dvla::Parameters& weights, Loss loss) {
  for (const dvla::WeightUnit& unit : weights.units()) std::ranges::fill(unit.gradients, 0.0f);
  weights.backward_begins();
  torch::autograd::backward({loss()}, {});
  weights.backward_done();
}

/// Loads what a checkpoint has in files of its own, if the model has it at all; the result is the rest.
SomeParameters load_apart(const dvla::Parameters& weights, const std::filesystem::path& folder) {
  std::map<std::string, SomeParameters> parts;
  SomeParameters rest;
  for (dvla::Parameter each : weights.parameters()) {
    const std::string part = each.name.substr(0, each.name.find('.'));
    if (part != "action_head" && part != "proprio_projector") {
      rest.all.push_back(each);
      continue;
    }
    each.name.erase(0, part.size() + 1);
    parts[part].all.push_back(each);
  }
  for (const auto& [part, parameters] : parts)
    dvla::load_weights(parameters, dvla::io::SafetensorsFile(folder / (part + ".safetensors")));
  return rest;
}

/// A network with the record's weights, which it declares in `weights`, in one precision; with adapters as they begin, if there are any.
template <class Network, class Shape>
struct Made {
  Made(const Shape& shape, dvla::Dtype dtype, const Recorded& recorded, const dvla::Adapters& adapters = {})
      : weights(dtype, adapters), network(shape, weights) {
    weights.allocate(1);
    const SomeParameters together = load_apart(weights, recorded.folder);
    dvla::load_weights(together, recorded.weights,
                       adapters.rank > 0 ? dvla::WeightSet::frozen : dvla::WeightSet::all,
                       recorded.config.value("layout", "") == "lerobot" ? "model." : "");
    weights.hold_gradients(true);
  }
  dvla::Parameters weights;
  Network network;
};

/// Activations by their recorded names; of several of one name the one that is furthest off.
class Activations {
 public:
  explicit Activations(const Recorded& recorded) : recorded_(recorded) {}
  /// `valid`, if it is defined, says which places count: what a masked place holds is nobody's.
  void compare(const std::string& name, const at::Tensor& ours, const at::Tensor& valid = {}) {
    if (!recorded_.has("activation." + name)) return;
    const auto counted = [&](const at::Tensor& x) { return valid.defined() ? x.index({valid}) : x; };
    double& worst = off_[name];
    worst = std::max(worst, relative(counted(ours.detach()), counted(recorded_("activation." + name))));
  }
  void report(Report& to) const {
    std::printf("float32, activations:\n");
    for (const auto& [name, off] : off_) to.line(name, off, 1e-5);
  }

 private:
  const Recorded& recorded_;
  std::map<std::string, double> off_;
};

/// The gradients that `weights` hold, against the recorded ones.
void report_gradients(const dvla::Parameters& weights, const Recorded& recorded, Report& report) {
  std::printf("float32, gradients (the tensor that is furthest off):\n");
  const at::Tensor norm = recorded("gradient.norm"), index = recorded("gradient.index").to(at::kLong),
                   value = recorded("gradient.value");
  // What is nothing but rounding (a key's bias moves all scores alike) is measured by the largest gradient's size.
  const double floor = 1e-4 * norm.max().item<double>();
  std::map<std::string, at::Tensor> gradients;
  std::map<std::size_t, std::size_t> next;
  for (const dvla::Parameter& each : weights.parameters()) {
    if (!each.trainable) {  // no pass reads it
      gradients[each.name] = at::zeros({each.count()});
      continue;
    }
    const auto& unit = weights.units()[each.unit];
    gradients[each.name] = at::from_blob(unit.gradients.data() + next[each.unit], {each.count()}).clone();
    next[each.unit] += static_cast<std::size_t>(each.count());
  }
  double worst_norm = 0, worst_value = 0;
  std::string norm_at = "none", value_at = "none";
  const auto names = recorded.gradients();
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    const double theirs = norm[row].item<double>();
    const auto found = gradients.find(names[i]);
    if (found == gradients.end() && theirs == 0)
      continue;  // the network lacks it, and no output depends on it
    if (found == gradients.end())
      throw dvla::Error("the record has a gradient of ", names[i], ", which this network lacks");
    const at::Tensor& ours = found->second;
    const double root = std::sqrt(static_cast<double>(ours.numel()));
    const double off =
        std::abs(ours.to(at::kDouble).norm().item<double>() - theirs) / std::max(theirs, floor);
    const double far = (ours.index_select(0, index[row]) - value[row]).abs().max().item<double>() /
                       std::max(value[row].abs().max().item<double>(), std::max(theirs, floor) / root);
    if (off > worst_norm) worst_norm = off, norm_at = names[i];
    if (far > worst_value) worst_value = far, value_at = names[i];
  }
  report.line("norms of " + std::to_string(names.size()) + " tensors", worst_norm, 1e-4);
  std::printf("    %s\n", norm_at.c_str());
  report.line(std::to_string(index.size(1)) + " entries of each", worst_value, 1e-4);
  std::printf("    %s\n", value_at.c_str());
}

/// An output in bfloat16, which may be 1.5 times as far from the float32 reference as the reference's own, in the root mean
/// square: what a single entry's rounding comes to is chance, and the largest of some hundred is printed beside it.
void report_rounded(const std::string& name, const at::Tensor& ours, const Recorded& recorded, Report& report,
                    const std::string& form = "") {
  const at::Tensor wide = recorded(form + "output." + name),
                   theirs = recorded("bf16." + form + "output." + name);
  const auto off = [&](const at::Tensor& by) { return ((by - wide).norm() / wide.norm()).item<double>(); };
  report.line("bfloat16, " + name + "; the reference's own: " + dvla::detail::number_text(off(theirs)),
              off(ours), 1.5 * off(theirs));
  std::printf("    the entry furthest off %.1e, the reference's own %.1e\n", relative(ours, wide),
              relative(theirs, wide));
}

// ---- Adapters ---------------------------------------------------------------------------------------------------
using Outputs = std::vector<std::pair<std::string, at::Tensor>>;

/// Those of the folder `adapter`, if the record has one. `outputs(network)`: by name, the last one the loss, whose gradients are compared
/// too. `exported`: where others are written, or empty.
template <class Network, class Shape, class Evaluate>
void play_adapters(const Shape& shape, const Recorded& recorded, const std::filesystem::path& exported,
                   Report& report, Evaluate outputs) {
  const std::filesystem::path folder = recorded.folder / "adapter";
  if (!std::filesystem::exists(folder)) return;
  const Recorded with_adapters(recorded.folder, "adapter");
  const auto config = nlohmann::json::parse(std::ifstream(folder / dvla::adapter_config_name));
  const dvla::Adapters adapters{config.at("r"), config.at("lora_alpha"),
                                dvla::detail::AdapterConfig(folder).targets()};
  const auto compare = [&](const std::string& form, const Outputs& ours) {
    std::printf("float32, %s:\n", form.c_str());
    for (const auto& [name, value] : ours)
      report.line(name, relative(value.detach(), with_adapters("output." + name)), 1e-5);
  };
  Made<Network, Shape> made(shape, dvla::Dtype::f32, recorded, adapters);
  dvla::load_adapters(made.weights, adapters, folder);
  made.weights.backward_begins();
  const Outputs ours = outputs(made.network);
  torch::autograd::backward({ours.back().second}, {});
  made.weights.backward_done();
  compare("with adapters", ours);
  report_gradients(made.weights, with_adapters, report);

  if (exported.empty()) return;
  dvla::SplitMix64 random(1);
  for (const dvla::WeightUnit& unit : made.weights.units())
    for (float& value : unit.floats()) value = static_cast<float>(0.1 * random.normal());
  const c10::InferenceMode no_graph;
  const Outputs drawn = outputs(made.network);
  const std::string lead = dvla::leading(recorded.weights, made.weights.parameters().front().name);
  dvla::export_adapters(made.weights, adapters, exported / "adapters", {}, lead);
  const std::filesystem::path merged =
      dvla::export_merged(made.weights, exported / "merged" / "model.safetensors", &recorded.weights);
  std::vector<dvla::io::TensorToWrite> tensors;
  for (const auto& [name, value] : drawn)
    tensors.push_back({"output." + name,
                       dvla::io::Dtype::F32,
                       value.sizes().vec(),
                       {static_cast<const std::byte*>(value.const_data_ptr()), value.nbytes()}});
  dvla::io::write_safetensors(exported / "record.safetensors", tensors);

  const auto again = [&](const std::string& form, Made<Network, Shape>& other, double limit) {
    std::printf("float32, %s:\n", form.c_str());
    const Outputs theirs = outputs(other.network);
    for (std::size_t i = 0; i < drawn.size(); ++i)
      report.line(drawn[i].first, relative(theirs[i].second, drawn[i].second), limit);
  };
  Made<Network, Shape> read(shape, dvla::Dtype::f32, recorded, adapters);
  dvla::load_adapters(read.weights, adapters, exported / "adapters");
  again("exported adapters, read again", read, 0);
  Made<Network, Shape> plain(shape, dvla::Dtype::f32, recorded);
  const SomeParameters together = load_apart(plain.weights, recorded.folder);
  dvla::load_weights(together, dvla::io::SafetensorsFile(merged), dvla::WeightSet::all, lead);
  again("exported with adapters added in", plain, 1e-5);
}

// ---- Networks that turn noise into actions --------------------------------------------------------------------------
/// pi0's and SmolVLA's: a prefix, a velocity over it, and both in one pass. The prefix is `tokens_a_view` for each camera,
/// then the rest.
template <class Network, class Shape>
void flow(const Shape& shape, std::int64_t tokens_a_view, const Recorded& recorded, const Asked& asked,
          Report& report) {
  typename Network::Inputs inputs;
  for (std::int64_t view = 0; view < shape.views; ++view)
    inputs.images.push_back(recorded("input.image." + std::to_string(view)));
  const at::Tensor image_mask = inputs.image_mask = recorded("input.image_mask");
  inputs.tokens = recorded("input.token");
  inputs.token_mask = recorded("input.token_mask");
  if (recorded.has("input.state")) inputs.state = recorded("input.state");
  const at::Tensor noise = recorded("input.noise"), time = recorded("input.time");
  const std::int64_t n = noise.size(0);

  const auto velocity = [&](Network& network) { return network.forward(inputs, recorded("input.x"), time); };
  const auto chain = [&](Network& network) {
    const c10::InferenceMode no_graph;
    const auto prefix = network.prefix(inputs);
    const at::Tensor times = recorded("output.chain_time");
    std::vector<at::Tensor> all{noise};
    for (std::int64_t k = 0; k < times.size(0); ++k)
      all.push_back(all.back() - network.velocity(prefix, all.back(), times[k].expand({n})) /
                                     static_cast<double>(times.size(0)));
    return at::stack(all);
  };

  if (asked.served) {
    Made<Network, Shape> made(shape, *asked.served, recorded);
    const at::Tensor target = noise - recorded("input.action");
    const auto training = [&] {
      train(made.weights, [&] { return at::mse_loss(velocity(made.network), target); });
    };
    return serve({training, [&] { (void)chain(made.network); }, whole_of(made.network)});
  }
  Made<Network, Shape> wide(shape, dvla::Dtype::f32, recorded);
  wide.weights.backward_begins();
  const at::Tensor ours = velocity(wide.network), loss = at::mse_loss(ours, noise - recorded("input.action"));
  torch::autograd::backward({loss}, {});
  wide.weights.backward_done();

  Activations activations(recorded);
  const at::Tensor valid = recorded("activation.prefix.pad");
  wide.network.watch([&](const std::string& name, const at::Tensor& value) {
    if (name.starts_with("prefix.")) {
      // Cameras that no row has are left out here, and masked there.
      std::vector<at::Tensor> kept;
      std::int64_t at = 0;
      for (std::int64_t view = 0; view < shape.views; ++view) {
        const bool there = image_mask.select(1, view).any().item<bool>();
        kept.push_back(there ? value.narrow(1, tokens_a_view * at++, tokens_a_view)
                             : at::zeros({n, tokens_a_view, value.size(2)}, value.options()));
      }
      kept.push_back(value.slice(1, tokens_a_view * at));
      return activations.compare(name, at::cat(kept, 1), valid);
    }
    const bool projected = name == "projector" || name == "connector";
    if (!name.starts_with("vision.") && !projected) return activations.compare(name, value);
    for (std::int64_t view = 0, at = 0; view < shape.views; ++view) {
      if (!image_mask.select(1, view).any().item<bool>()) continue;
      const std::string of = std::to_string(view);
      activations.compare(projected ? name + "." + of : "vision." + of + name.substr(6),
                          value.narrow(0, n * at++, n));
    }
  });
  {
    const c10::InferenceMode no_graph;
    (void)velocity(wide.network);
  }
  wide.network.watch({});
  activations.report(report);
  std::printf("float32, outputs:\n");
  report.line("velocity", relative(ours.detach(), recorded("output.velocity")), 1e-5);
  report.line("chain", relative(chain(wide.network), recorded("output.chain")), 1e-5);
  report.line("loss", relative(loss.detach(), recorded("output.loss")), 1e-5);
  report_gradients(wide.weights, recorded, report);

  Made<Network, Shape> half(shape, dvla::Dtype::bf16, recorded);
  report_rounded("velocity", velocity(half.network).detach(), recorded, report);
  report_rounded("chain", chain(half.network), recorded, report);

  play_adapters<Network>(shape, recorded, asked.exported, report, [&](Network& network) {
    const at::Tensor adapted = velocity(network);
    return Outputs{{"chain", chain(network)},
                   {"velocity", adapted},
                   {"loss", at::mse_loss(adapted, noise - recorded("input.action"))}};
  });
}

dvla::parts::VisionShape vision_shape(const nlohmann::json& from, dvla::parts::VisionShape shape) {
  shape.width = from["width"];
  shape.layers = from["layers"];
  shape.heads = from["heads"];
  shape.mlp = from["mlp"];
  shape.image = from["image"];
  shape.patch = from["patch"];
  return shape;
}
dvla::parts::DecoderShape decoder_shape(const nlohmann::json& from, dvla::parts::DecoderShape shape) {
  shape.width = from["width"];
  shape.layers = from["layers"];
  shape.mlp = from["mlp"];
  shape.heads = from["heads"];
  shape.kv_heads = from["kv_heads"];
  shape.head_width = from["head_dim"];
  return shape;
}

// ---- pi0.5 and pi0 ----------------------------------------------------------------------------------------------
void pi0(const Recorded& recorded, const Asked& asked, Report& report) {
  const nlohmann::json& config = recorded.config;
  dvla::detail::Pi0Shape shape;
  shape.state_token = config["type"] == "pi0";
  shape.views = config["views"];
  shape.text = config["text"];
  shape.horizon = config["horizon"];
  shape.actions = config["action"];
  shape.vocabulary = config["language"]["vocabulary"];
  shape.shortest_period = config["min_period"];
  shape.longest_period = config["max_period"];
  shape.vision = vision_shape(config["vision"], shape.vision);
  shape.language = decoder_shape(config["language"], shape.language);
  shape.expert = decoder_shape(config["expert"], shape.expert);
  shape.expert.condition = shape.state_token ? 0 : shape.expert.width;
  flow<dvla::detail::Pi0Network>(shape, shape.vision.tokens(), recorded, asked, report);
}

// ---- SmolVLA ----------------------------------------------------------------------------------------------------
void smolvla(const Recorded& recorded, const Asked& asked, Report& report) {
  const nlohmann::json& config = recorded.config;
  dvla::detail::SmolVlaShape shape;
  shape.views = config["views"];
  shape.text = config["text"];
  shape.horizon = config["horizon"];
  shape.actions = config["action"];
  shape.states = config["state"];
  shape.shuffle = config["shuffle"];
  shape.joint_every = config["self_attention_every"];
  shape.vocabulary = config["language"]["vocabulary"];
  shape.shortest_period = config["min_period"];
  shape.longest_period = config["max_period"];
  shape.vision = vision_shape(config["vision"], shape.vision);
  shape.language = decoder_shape(config["language"], shape.language);
  shape.expert = decoder_shape(config["expert"], shape.expert);
  shape.language.norm_eps = config["language"]["rms_norm_eps"];
  shape.expert.norm_eps = config["expert"]["rms_norm_eps"];
  flow<dvla::detail::SmolVlaNetwork>(shape, shape.image_tokens(), recorded, asked, report);
}

// ---- OpenVLA and OpenVLA-OFT ------------------------------------------------------------------------------------
dvla::detail::OpenVlaShape openvla_shape(const nlohmann::json& config) {
  dvla::detail::OpenVlaShape shape;
  shape.parallel = config["type"] == "openvla_oft";
  shape.stop = false;  // RLinf's form
  shape.views = config["views"];
  shape.dimensions = config["action"];
  shape.chunk = config.value("horizon", 1);
  const auto& language = config["language"];
  shape.vocabulary = language["vocabulary"];
  shape.unused = config["vocabulary_padding"];
  shape.bins = config["bins"];
  shape.stop_token = config["stop"];
  const auto tower = [](dvla::parts::VitShape& to, const nlohmann::json& from) {
    to.width = from["width"];
    to.layers = from["layers"];
    to.heads = from["heads"];
    to.mlp = from["mlp"];
    to.image = from["image"];
    to.patch = from["patch"];
  };
  tower(shape.dinov2, config["featurizer"]);
  tower(shape.siglip, config["fused_featurizer"]);
  shape.language.width = language["width"];
  shape.language.layers = language["layers"];
  shape.language.mlp = language["mlp"];
  shape.language.heads = language["heads"];
  shape.language.kv_heads = language["kv_heads"];
  shape.language.head_width = language["head_dim"];
  shape.language.norm_eps = language["rms_norm_eps"];
  shape.language.theta = language["rope_theta"];
  return shape;
}

/// Log-probabilities of action tokens, and entropies, [n, E].
std::pair<at::Tensor, at::Tensor> token_odds(const dvla::detail::OpenVlaShape& shape,
                                             const at::Tensor& logits, const at::Tensor& tokens,
                                             double temperature) {
  const at::Tensor all = at::log_softmax(logits / temperature, -1);
  return {all.gather(-1, (tokens - shape.first_action_token()).unsqueeze(-1)).squeeze(-1),
          -(all.exp() * all).sum(-1)};
}

/// OpenVLA's decoding, always the likeliest token, and the first layer's keys and values of the prompt.
void report_decoded(const dvla::detail::OpenVlaNetwork& network,
                    const dvla::detail::OpenVlaNetwork::Inputs& inputs, const Recorded& recorded,
                    Report& report) {
  auto [outputs, context] = network.begin(inputs);
  const auto cached = [&](const std::string& what, const at::Tensor& ours) {
    const std::string name = "cache." + what + ".0";
    report.line(
        name, relative(ours.narrow(2, 0, context.length), recorded(name).narrow(2, 0, context.length)), 1e-5);
  };
  cached("key", context.layers[0].first);
  cached("value", context.layers[0].second);
  const dvla::detail::OpenVlaShape& shape = network.shape();
  std::vector<at::Tensor> tokens, logits;
  for (;;) {
    logits.push_back(outputs.logits.select(1, 0));
    tokens.push_back(logits.back().argmax(-1) + shape.first_action_token());
    if (std::ssize(tokens) == shape.actions()) break;
    outputs = network.next(context, tokens.back());
  }
  report.line("greedy", relative(at::stack(tokens, 1), recorded("output.greedy")), 0);
  report.line("greedy_logits", relative(at::stack(logits, 1), recorded("output.greedy_logits")), 1e-5);
}

void openvla(const Recorded& recorded, const Asked& asked, Report& report) {
  using dvla::detail::OpenVlaNetwork, dvla::detail::OpenVlaShape;
  const OpenVlaShape shape = openvla_shape(recorded.config);
  const OpenVlaNetwork::Inputs inputs{.pixels = recorded("input.pixels"),
                                      .tokens = recorded("input.token"),
                                      .token_mask = recorded("input.token_mask"),
                                      .state = {}};
  const at::Tensor tokens = recorded("input.action_token");

  if (asked.served) {
    Made<OpenVlaNetwork, OpenVlaShape> made(shape, *asked.served, recorded);
    const auto training = [&] {
      train(made.weights, [&] {
        return -token_odds(shape, made.network.forward(inputs, tokens).logits, tokens, 1).first.mean();
      });
    };
    const auto inference = [&] {
      const c10::InferenceMode no_graph;
      (void)made.network.forward(inputs, tokens);
    };
    return serve({training, inference, whole_of(made.network)});
  }
  Made<OpenVlaNetwork, OpenVlaShape> wide(shape, dvla::Dtype::f32, recorded);
  wide.weights.backward_begins();
  const OpenVlaNetwork::Outputs ours = wide.network.forward(inputs, tokens);
  const at::Tensor loss = -token_odds(shape, ours.logits, tokens, 1).first.mean();
  torch::autograd::backward({loss}, {});
  wide.weights.backward_done();

  Activations activations(recorded);
  wide.network.watch([&](const std::string& name, const at::Tensor& value) {
    const auto dot = name.find('.');
    if (dot == std::string::npos || !name.substr(0, dot).ends_with("featurizer"))
      return activations.compare(name, value);
    const at::Tensor first = value.unflatten(0, {-1, shape.views}).select(1, 0);
    activations.compare(name.substr(0, dot) + ".0" + name.substr(dot), first);
  });
  play_adapters<OpenVlaNetwork>(shape, recorded, asked.exported, report, [&](const OpenVlaNetwork& network) {
    const at::Tensor logits = network.forward(inputs, tokens).logits;
    const at::Tensor log_prob = token_odds(shape, logits, tokens, 1).first;
    return Outputs{{"logits", logits}, {"log_prob", log_prob}, {"loss", -log_prob.mean()}};
  });
  const c10::InferenceMode no_graph;
  const OpenVlaNetwork::Outputs watched = wide.network.forward(inputs, tokens);
  wide.network.watch({});
  activations.report(report);
  std::printf("float32, outputs:\n");
  const auto exact = [&](const std::string& name, const at::Tensor& value) {
    if (recorded.has("output." + name)) report.line(name, relative(value, recorded("output." + name)), 1e-5);
  };
  const at::Tensor logits = ours.logits.detach();
  const auto [log_prob, entropy] = token_odds(shape, logits, tokens, 1);
  exact("logits", logits);
  exact("log_prob", log_prob);
  exact("log_prob_1.6", token_odds(shape, logits, tokens, 1.6).first);
  exact("entropy", entropy);
  exact("loss", loss.detach());
  exact("hidden", ours.hidden.detach());
  report.line("logits, nothing skipped", relative(watched.logits, recorded("output.logits")), 1e-5);
  if (shape.parallel)
    exact("greedy", logits.argmax(-1) + shape.first_action_token());
  else
    report_decoded(wide.network, inputs, recorded, report);
  report_gradients(wide.weights, recorded, report);

  Made<OpenVlaNetwork, OpenVlaShape> half(shape, dvla::Dtype::bf16, recorded);
  const at::Tensor rounded_logits = half.network.forward(inputs, tokens).logits;
  report_rounded("logits", rounded_logits, recorded, report);
  report_rounded("log_prob", token_odds(shape, rounded_logits, tokens, 1).first, recorded, report);
  if (!shape.parallel) return;

  // As OpenVLA-OFT's authors run it: no padding, STOP kept; then with a token of the state, and the regression head.
  std::printf("float32, the authors' form:\n");
  OpenVlaNetwork::Inputs official = inputs;
  official.tokens = recorded("official.input.token");
  official.token_mask = at::Tensor();
  OpenVlaShape theirs = shape;
  theirs.stop = true;
  theirs.places = dvla::detail::TokenPlaces::in_sequence;
  report.line("logits",
              relative(Made<OpenVlaNetwork, OpenVlaShape>(theirs, dvla::Dtype::f32, recorded)
                           .network.forward(official)
                           .logits,
                       recorded("official.output.logits")),
              1e-5);
  theirs.state = recorded.config["state"];
  theirs.regression = true;
  official.state = recorded("official.input.state");
  const OpenVlaNetwork::Outputs exactly =
      Made<OpenVlaNetwork, OpenVlaShape>(theirs, dvla::Dtype::f32, recorded).network.forward(official);
  report.line("hidden", relative(exactly.hidden, recorded("official.output.hidden")), 1e-5);
  report.line("actions", relative(exactly.actions, recorded("official.output.actions")), 1e-5);
  const at::Tensor rounded = Made<OpenVlaNetwork, OpenVlaShape>(theirs, dvla::Dtype::bf16, recorded)
                                 .network.forward(official)
                                 .actions;
  report_rounded("actions", rounded, recorded, report, "official.");
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const bool serves = words.size() == 4 && words[1] == "--serve" && (words[2] == "f32" || words[2] == "bf16");
  if (words.empty() || (words.size() > 2 && !serves)) {
    std::fprintf(
        stderr,
        "usage: parity RECORD [EXPORTED | --serve f32|bf16 THREADS], RECORD a folder that a script of "
        "test/golden/model/parity has made, EXPORTED one to write adapters to\n");
    return 2;
  }
  try {
    Asked asked;
    if (words.size() == 2) asked.exported = words[1];
    if (serves) {
      asked.served = words[2] == "f32" ? dvla::Dtype::f32 : dvla::Dtype::bf16;
      at::set_num_threads(std::stoi(words[3]));
    }
    const Recorded recorded(words[0]);
    const std::string type = recorded.config.at("type");
    Report report;
    if (!serves) std::printf("%s, %s\n", words[0].c_str(), type.c_str());
    if (type == "pi05" || type == "pi0")
      pi0(recorded, asked, report);
    else if (type == "smolvla")
      smolvla(recorded, asked, report);
    else if (type == "openvla" || type == "openvla_oft")
      openvla(recorded, asked, report);
    else
      throw dvla::Error("config.json: type is '", type,
                        "'; it must be pi05, pi0, smolvla, openvla_oft or openvla");
    return report.failed() ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
