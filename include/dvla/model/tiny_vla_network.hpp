// The network of TinyVLA: instruction words, proprioception and image patches, and learned action queries go
// through one small pre-LN transformer. Attention is blockwise, as the prefix and suffix of pi0 (and its
// Gemma) have it: instruction tokens see the instruction, observation tokens see instruction and observation,
// action queries see everything, each block of tokens bidirectionally; all query heads share one key/value
// head. So the instruction's keys are computed once per table, not per row, and a denoising step reruns only
// the queries. Where a value head is asked for, one query of its own goes the way of the action queries: it sees
// the prefix and itself, nobody sees it, and no action's noise reaches it; after the last block a norm and a small
// tanh MLP make the values of it. It is computed beside the action queries and not among them, so the policy is
// the same to the bit with it and without. Projections inside the blocks have no bias (LayerNorm's serves); the MLP is a ReLU, the
// cheapest to go back through on a CPU. No dropout, no cache across calls.
//
// Legend: n rows, I instructions in the table, L words, P observation tokens, Q action queries, V values,
// d width, h query heads, k = d / h features a head.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/model/network_model.hpp"
#include "dvla/model/parameters.hpp"
#include "dvla/model/tiny_vla_knobs.hpp"
#include "dvla/model/vla_inputs.hpp"
#include "dvla/model/words.hpp"

namespace dvla::detail {

class TinyVlaNetwork {
 public:
  /// Keys and values of instruction and observation, per block [padded(n), L + P, 2k].
  using Prefix = std::vector<at::Tensor>;

  /// Declares everything and makes no tensor: what parameters() then says is for plans only.
  TinyVlaNetwork(const TinyVlaKnobs& knobs, const ModelInputs& inputs, QueryShape shape,
                 const ComputeDevice& device = {})
      : device_(device),
        spec_(inputs.observation),
        shape_(shape),
        patch_(knobs.patch),
        width_(knobs.width),
        heads_(knobs.attention_heads),
        value_head_(inputs.value_head),
        table_(tokenise(spec_.instructions)),
        parameters_(knobs.dtype, inputs.adapters, device) {
    check(knobs, inputs);
    head_width_ = width_ / heads_;
    declare(knobs.blocks, table_.length);
  }
  /// With tensors of its own, or, as a copy of `original`, with its frozen ones.
  TinyVlaNetwork(const TinyVlaKnobs& knobs, const ModelInputs& inputs, QueryShape shape, std::uint64_t seed,
                 const ComputeDevice& device, const TinyVlaNetwork* original = nullptr)
      : TinyVlaNetwork(knobs, inputs, shape, device) {
    const auto lane = device_.enter();
    words_ = at::empty({static_cast<std::int64_t>(spec_.instructions.size()), table_.length}, at::kLong);
    std::copy(table_.tokens.begin(), table_.tokens.end(), words_.mutable_data_ptr<std::int64_t>());
    StreamMark there;
    words_ = device_.upload(words_);
    device_.set(there);
    there.wait();  // other lanes use it
    original == nullptr ? parameters_.allocate(seed) : parameters_.share(original->parameters_);
  }
  TinyVlaNetwork(const TinyVlaNetwork&) = delete;
  TinyVlaNetwork& operator=(const TinyVlaNetwork&) = delete;

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }

  /// Of these rows of `observation`.
  Prefix prefix(const Observation& observation, std::span<const std::int64_t> rows) const {
    parameters_.before(0);
    PrefixState state = embed_prefix(observation, rows);
    Prefix prefix;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      parameters_.before(i + 1);
      prefix.push_back(prefix_block(i, state));
    }
    return prefix;
  }

  /// Outputs [n, Q * outputs]. `noise` is [n * Q * noise_inputs] and `times` [n], or both are empty.
  at::Tensor queries(const Prefix& prefix, std::int64_t n, std::span<const float> noise,
                     std::span<const float> times) const {
    parameters_.before(0);
    at::Tensor x = embed_queries(n, noise, times);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      parameters_.before(i + 1);
      x = query_block(i, x, prefix[i]);
    }
    parameters_.before(blocks_.size() + 1);
    return output(x, n);
  }

  /// Values [n, V]. Only with a value head, as all that is asked for values.
  at::Tensor values(const Prefix& prefix, std::int64_t n) const {
    parameters_.before(0);
    at::Tensor x = value_query_;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      parameters_.before(i + 1);
      x = query_block(i, x, prefix[i]);
    }
    parameters_.before(value_unit());
    return value(x, n);
  }

  /// All of it, block by block, for a backward pass: each unit is used once, and autograd keeps no second gradient
  /// of a weight until the other part has come to it. What is not asked for is undefined.
  struct Results {
    at::Tensor actions, values;
  };
  Results forward(const Observation& observation, std::span<const std::int64_t> rows,
                  std::span<const float> noise, std::span<const float> times,
                  Outputs outputs = Outputs::actions) {
    const bool acts = outputs != Outputs::values, judges = outputs != Outputs::actions;
    const std::int64_t n = std::ssize(rows);
    at::Tensor x, v;
    parameters_.before(0);
    PrefixState state = embed_prefix(observation, rows);
    if (acts) x = embed_queries(n, noise, times).clone();  // it may be a parameter itself
    if (judges) v = value_query_.clone();
    parameters_.after(0, {x, v, state.language, state.x});
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      parameters_.before(i + 1);
      const at::Tensor kv = prefix_block(i, state);
      if (acts) x = query_block(i, x, kv);
      if (judges) v = query_block(i, v, kv);
      parameters_.after(i + 1, {x, v, state.language, state.x});
    }
    if (acts) {
      parameters_.before(blocks_.size() + 1);
      x = output(x, n);
      parameters_.after(blocks_.size() + 1, {x});
    }
    if (judges) {
      parameters_.before(value_unit());
      v = value(v, n);
      parameters_.after(value_unit(), {v});
    } else if (value_head_.values > 0) {
      parameters_.pass_by(value_unit());
    }
    return {x, v};
  }
  /// A backward pass of such a forward begins, of one that gave values or of one that gave none.
  void backward_begins(bool of_values) {
    parameters_.backward_begins(value_head_.values > 0 && !of_values ? value_unit() : Parameters::none);
  }

  /// Activations at the peak of an inference of so many rows: the prefix of all blocks, and what one block
  /// has at once.
  std::size_t sampling_bytes(std::int64_t rows) const {
    const std::int64_t n = padded(rows), P = observation_token_count(), Q = shape_.queries,
                       S = table_.length + P;
    const std::int64_t prefix = std::ssize(blocks_) * S * 2 * head_width_;
    const std::int64_t observing = P * (8 * width_ + 2 * S * heads_);
    const std::int64_t asking = Q * (8 * width_ + 2 * (S + Q) * heads_) + (S + Q) * 2 * head_width_;
    return static_cast<std::size_t>(n * (prefix + std::max(observing, asking))) * bytes_of(dtype()) +
           static_cast<std::size_t>(n * Q * shape_.outputs) * 8 + widened();
  }
  /// The same of a forward and backward pass: what the graph keeps of every block, and the largest gradients
  /// on their way.
  std::size_t training_bytes(std::int64_t rows) const {
    const std::int64_t n = padded(rows), P = observation_token_count(), Q = shape_.queries,
                       S = table_.length + P;
    const std::int64_t B = std::ssize(blocks_), d = width_;
    // A token of a block: the norms' inputs and outputs, the query, the attention's result, the hidden layer.
    const std::int64_t token = 10 * d;
    const std::int64_t observing = (B - 1) * P * (token + S * heads_) + P * 2 * d;
    const auto by = [&](std::int64_t queries) {
      return B * (queries * (token + (S + queries) * heads_) + (S + queries) * 2 * head_width_);
    };
    const std::int64_t asking = by(Q) + (value_head_.values > 0 ? by(1) : 0);
    const std::int64_t prefix = B * S * 2 * head_width_;
    // Instructions go through once, whatever the rows.
    const auto words = static_cast<std::int64_t>(spec_.instructions.size()) * table_.length;
    const std::int64_t reading =
        (B - 1) * words * (token + table_.length * heads_) + B * words * 2 * head_width_;
    const std::int64_t backward = std::max(P, Q) * 9 * d;
    std::int64_t weight = 0;  // the largest gradient of a parameter
    for (const Parameter& each : parameters_.parameters())
      if (each.trainable) weight = std::max(weight, each.count());
    std::int64_t pixels = 0;
    for (const CameraSpec& camera : spec_.cameras) pixels += patches(camera) * patch_features();
    return static_cast<std::size_t>(n * (observing + asking + prefix + backward) + reading + weight) *
               bytes_of(dtype()) +
           static_cast<std::size_t>(n * pixels) * 4 + static_cast<std::size_t>(n * Q * shape_.outputs) * 16 +
           (value_head_.values > 0 ? static_cast<std::size_t>(n * (5 * d + 4 * value_head_.values)) * 4 : 0) +
           widened();
  }

 private:
  struct Norm {
    at::Tensor weight, bias;
  };
  struct Block {
    Norm attention_norm, mlp_norm;
    Linear query, key_value, attention_out, mlp_in, mlp_out;
  };

  /// What goes from block to block of the prefix: language [I, L, d], the observation's tokens [n, P, d] or
  /// nothing, and which row has which instruction.
  struct PrefixState {
    at::Tensor choice, language, x;
  };

  static void check(const TinyVlaKnobs& knobs, const ModelInputs& inputs) {
    const auto need = [](bool holds, const std::string& why) {
      if (!holds) throw ConfigError("TinyVLA: " + why);
    };
    const ObservationSpec& spec = inputs.observation;
    need(knobs.width > 0 && knobs.attention_heads > 0 && knobs.width % knobs.attention_heads == 0,
         "width " + std::to_string(knobs.width) + " must be a multiple of attention_heads " +
             std::to_string(knobs.attention_heads));
    need(knobs.blocks > 0, "blocks must be 1 or more");
    need(knobs.chunk > 0 && inputs.chunk == knobs.chunk,
         "chunk is " + std::to_string(knobs.chunk) + " in the knobs and " + std::to_string(inputs.chunk) +
             " in the pipeline; they must be the same, 1 or more");
    need(inputs.action.dimensions > 0, "the environment gives no action dimension");
    need(!spec.instructions.empty(), "the environment gives no instruction; a VLA needs at least one");
    need(spec.cameras.size() <= max_cameras,
         "more than " + std::to_string(max_cameras) + " cameras are not supported");
    need(spec.proprioception >= 0 && (spec.proprioception > 0 || !spec.cameras.empty()),
         "the environment gives neither proprioception nor a camera");
    for (const CameraSpec& camera : spec.cameras) {
      need(knobs.patch > 0 && camera.height > 0 && camera.width > 0 && camera.height % knobs.patch == 0 &&
               camera.width % knobs.patch == 0,
           "camera '" + camera.name + "' has " + std::to_string(camera.height) + " x " +
               std::to_string(camera.width) + " pixels, which is not a multiple of the patch of " +
               std::to_string(knobs.patch) + "; change one of them");
    }
  }

  /// Initial values: norms 1 and 0, biases 0, embeddings of unit scale; matrices N(0, 1 / inputs), those that
  /// end a residual branch smaller by sqrt(2 * blocks), the output and the values smaller by 10 so that the
  /// first policy is nearly uniform and the first values nearly 0.
  void declare(int blocks, std::int64_t words) {
    const std::int64_t d = width_;
    Parameters& all = parameters_;
    const auto matrix = [](std::int64_t inputs, double factor = 1) {
      return InitialValues{0, factor / std::sqrt(static_cast<double>(inputs))};
    };
    const InitialValues embedding{0, 0.5};
    const auto norm = [&](const std::string& name, Norm& member) {
      all.declare(name + ".weight", {d}, member.weight, {1, 0});
      all.declare(name + ".bias", {d}, member.bias);
    };
    all.begin_unit();
    all.declare("instruction.embedding.weight", {vocabulary_size, d}, word_embedding_, embedding);
    all.declare("instruction.position", {words, d}, word_position_, embedding);
    if (spec_.proprioception > 0)
      all.declare_linear("proprioception", proprioception_tokens * d, spec_.proprioception, proprioception_,
                         matrix(spec_.proprioception), /*bias=*/true);
    for (std::size_t i = 0; i < spec_.cameras.size(); ++i) {
      const CameraSpec& camera = spec_.cameras[i];
      const std::string name = "camera." + std::to_string(i) + (camera.name.empty() ? "" : "." + camera.name);
      all.declare_linear(name + ".patch", d, patch_features(), patch_embedding_[i], matrix(patch_features()));
      all.declare(name + ".position", {patches(camera), d}, patch_position_[i], embedding);
    }
    all.declare("action.query", {1, shape_.queries, d}, query_embedding_, embedding);
    if (shape_.noise_inputs > 0) {
      all.declare_linear("action.noise", d, shape_.noise_inputs, noise_, matrix(shape_.noise_inputs));
      all.declare_linear("action.time", d, d, time_, matrix(d));
    }
    // The value head trains beside a frozen model too, and draws from a stream of its own.
    const auto of_values = [&](const std::string& name, std::vector<std::int64_t> shape, at::Tensor& member,
                               InitialValues initial = {}) {
      initial.stream = 1;
      all.declare_apart("value." + name, std::move(shape), member, initial, value_head_.group);
    };
    const std::int64_t V = value_head_.values;
    if (V > 0) of_values("query", {1, 1, d}, value_query_, embedding);
    blocks_.resize(static_cast<std::size_t>(blocks));
    const double end = 1 / std::sqrt(2.0 * blocks);  // of a residual branch
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      Block& block = blocks_[i];
      all.begin_unit();
      const std::string name = "blocks." + std::to_string(i);
      norm(name + ".attention.norm", block.attention_norm);
      all.declare_linear(name + ".attention.query", d, d, block.query, matrix(d));
      all.declare_linear(name + ".attention.key_value", 2 * head_width_, d, block.key_value, matrix(d));
      all.declare_linear(name + ".attention.out", d, d, block.attention_out, matrix(d, end));
      norm(name + ".mlp.norm", block.mlp_norm);
      all.declare_linear(name + ".mlp.in", 4 * d, d, block.mlp_in, matrix(d));
      all.declare_linear(name + ".mlp.out", d, 4 * d, block.mlp_out, matrix(4 * d, end));
    }
    all.begin_unit();
    norm("output.norm", output_norm_);
    all.declare_linear("output", shape_.outputs, d, output_, matrix(d, 0.1), /*bias=*/true);
    if (V == 0) return;
    all.begin_unit();
    of_values("norm.weight", {d}, value_norm_.weight, {1, 0});
    of_values("norm.bias", {d}, value_norm_.bias);
    of_values("in.weight", {d, d}, value_in_.weight, matrix(d));
    of_values("in.bias", {d}, value_in_.bias);
    of_values("out.weight", {V, d}, value_out_.weight, matrix(d, 0.1));
    of_values("out.bias", {V}, value_out_.bias);
  }
  std::size_t value_unit() const { return blocks_.size() + 2; }

  PrefixState embed_prefix(const Observation& observation, std::span<const std::int64_t> rows) const {
    check(observation);
    const at::Tensor choice = instruction_choice(observation, rows);
    at::Tensor x = observation_tokens(observation, rows);
    return {choice, at::embedding(word_embedding_, words_) + word_position_, x};
  }
  /// Keys and values of block i, for the queries; `state` becomes what the next block sees of the prefix.
  at::Tensor prefix_block(std::size_t i, PrefixState& state) const {
    const Block& block = blocks_[i];
    const PrefixState in = std::exchange(state, {state.choice, {}, {}});
    const bool last = i + 1 == blocks_.size();
    const at::Tensor language = normalised(in.language, block.attention_norm);
    const at::Tensor language_kv = block.key_value(language);  // [I, L, 2k]
    at::Tensor kv =
        in.choice.mm(language_kv.flatten(1)).view({in.choice.size(0), language_kv.size(1), 2 * head_width_});
    if (!last) state.language = after_attention(in.language, attend(language, language_kv, block), block);
    if (!in.x.defined()) return kv;
    const at::Tensor x = normalised(in.x, block.attention_norm);
    kv = at::cat({kv, block.key_value(x)}, 1);
    if (!last) state.x = after_attention(in.x, attend(x, kv, block), block);
    return kv;
  }
  /// The queries as they enter the first block, [1, Q, d]: the same for every row until the first attention;
  /// with noise [n, Q, d].
  at::Tensor embed_queries(std::int64_t n, std::span<const float> noise, std::span<const float> times) const {
    if (shape_.noise_inputs == 0) return query_embedding_;
    at::Tensor noise_in = at::zeros({padded(n), shape_.queries, shape_.noise_inputs}, device_.host());
    std::copy(noise.begin(), noise.end(), noise_in.mutable_data_ptr<float>());
    return query_embedding_ + noise_(device_.upload(noise_in).to(precision())) +
           time_(time_features(times)).unsqueeze(1);
  }
  /// The queries after block i, which see the prefix's keys and values `prefix_kv` and one another.
  at::Tensor query_block(std::size_t i, const at::Tensor& x, const at::Tensor& prefix_kv) const {
    const Block& block = blocks_[i];
    const std::int64_t rows = prefix_kv.size(0);
    const at::Tensor in = normalised(x, block.attention_norm);
    const at::Tensor kv = block.key_value(in).expand({rows, -1, -1});
    const at::Tensor mixed = attend(in, at::cat({prefix_kv, kv}, 1), block);
    return after_attention(x.expand({rows, -1, -1}), mixed, block);
  }
  at::Tensor output(const at::Tensor& x, std::int64_t n) const {
    // What becomes log-probabilities is float32 whatever the rest is.
    return output_(normalised(x, output_norm_).to(at::kFloat)).flatten(1).narrow(0, 0, n);
  }

  /// [n, V], in float32 as the output.
  at::Tensor value(const at::Tensor& x, std::int64_t n) const {
    const at::Tensor hidden = at::tanh(value_in_(normalised(x, value_norm_).to(at::kFloat)));
    return value_out_(hidden).flatten(1).narrow(0, 0, n);
  }

  at::Tensor normalised(const at::Tensor& x, const Norm& norm) const {
    return at::layer_norm(x, {width_}, norm.weight, norm.bias);
  }

  /// Attention of queries made from `in` [n or 1, T, d] over `kv` [n, S, 2k]; the result is [n, T, d].
  /// With one key/value head, tokens and heads fold into one dimension: nothing is transposed or copied.
  at::Tensor attend(const at::Tensor& in, const at::Tensor& kv, const Block& block) const {
    const std::int64_t n = kv.size(0), tokens = in.size(1);
    const at::Tensor query =
        block.query(in).view({in.size(0), tokens * heads_, head_width_}).expand({n, -1, -1});
    const auto parts = kv.view({n, kv.size(1), 2, head_width_}).unbind(2);
    // Scores stand transposed, [n, S, T * h]: a softmax across rows runs at full vector width.
    at::Tensor scores = at::bmm(parts[0], query.transpose(1, 2));
    scores.mul_(1 / std::sqrt(static_cast<double>(head_width_)));
    return at::bmm(at::softmax(scores, 1).transpose(1, 2), parts[1]).view({n, tokens, width_});
  }

  /// The rest of a block: attention's output projection and the MLP, each added to the residual stream.
  at::Tensor after_attention(const at::Tensor& x, const at::Tensor& mixed, const Block& block) const {
    const at::Tensor y = block.attention_out.add_to(x.reshape({-1, width_}), mixed.view({-1, width_}));
    const at::Tensor hidden = block.mlp_in(normalised(y, block.mlp_norm)).relu_();
    return block.mlp_out.add_to(y, hidden).view_as(x);
  }

  /// One row of 0 and a 1 for each observation: as a matrix product, choosing an instruction costs nothing.
  at::Tensor instruction_choice(const Observation& observation, std::span<const std::int64_t> rows) const {
    at::Tensor choice = at::zeros({padded(std::ssize(rows)), words_.size(0)}, device_.host());
    float* out = choice.mutable_data_ptr<float>();
    for (const std::int64_t row : rows) {
      if (row < 0 || row >= observation.instruction.count()) {
        throw Error("TinyVLA: row " + std::to_string(row) + " was asked for, but the batch has " +
                    std::to_string(observation.instruction.count()) + " rows");
      }
      const std::int32_t which = observation.instruction[row];
      if (which < 0 || which >= words_.size(0)) {
        throw Error("TinyVLA: row " + std::to_string(row) + " has instruction " + std::to_string(which) +
                    ", but the environment's table has " + std::to_string(words_.size(0)));
      }
      out[which] = 1;
      out += words_.size(0);
    }
    return device_.upload(choice).to(precision());
  }

  /// Tokens of proprioception and of all cameras' patches, [n, P, d]. Rows were checked before.
  at::Tensor observation_tokens(const Observation& observation, std::span<const std::int64_t> rows) const {
    const std::int64_t n = padded(std::ssize(rows));
    std::vector<at::Tensor> parts;
    if (spec_.proprioception > 0) {
      at::Tensor values = at::zeros({n, spec_.proprioception}, device_.host());
      float* out = values.mutable_data_ptr<float>();
      for (const std::int64_t row : rows) {
        const std::span<const float> numbers = observation.proprioception.at(row).span();
        out = std::copy(numbers.begin(), numbers.end(), out);
      }
      values = device_.upload(values).to(precision());
      parts.push_back(proprioception_(values).view({n, proprioception_tokens, width_}));
    }
    for (std::size_t i = 0; i < spec_.cameras.size(); ++i) {
      const at::Tensor pixels = patch_pixels(observation.frames.at(i), spec_.cameras[i], rows);
      parts.push_back(patch_embedding_.at(i)(pixels.to(precision())) + patch_position_.at(i));
    }
    return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
  }

  /// Frames as rows of patches, [n, patches, patch * patch * 3], scaled from [0, 255] to [-1, 1].
  at::Tensor patch_pixels(const Field<std::uint8_t>& frames, const CameraSpec& camera,
                          std::span<const std::int64_t> rows) const {
    at::Tensor pixels =
        at::empty({padded(std::ssize(rows)), patches(camera), patch_features()}, device_.host());
    float* out = pixels.mutable_data_ptr<float>();
    const std::int64_t line = std::int64_t{3} * camera.width, part = std::int64_t{3} * patch_;
    for (const std::int64_t row : rows) {
      const std::uint8_t* frame = frames.data() + row * camera.height * line;
      for (std::int64_t top = 0; top < camera.height; top += patch_) {
        for (std::int64_t left = 0; left < line; left += part) {
          for (std::int64_t y = top; y < top + patch_; ++y, out += part) {
            const std::uint8_t* in = frame + y * line + left;
            for (std::int64_t x = 0; x < part; ++x)
              out[x] = static_cast<float>(in[x]) * (2.0f / 255.0f) - 1.0f;
          }
        }
      }
    }
    std::fill(out, pixels.mutable_data_ptr<float>() + pixels.numel(), 0.0f);
    return device_.upload(pixels);
  }

  /// sin and cos of the denoising time at periods from 4e-3 to 4, as pi0 has it: [n, d].
  at::Tensor time_features(std::span<const float> times) const {
    const std::int64_t half = width_ / 2;
    at::Tensor features = at::zeros({padded(std::ssize(times)), width_}, device_.host());
    float* out = features.mutable_data_ptr<float>();
    for (const float time : times) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double place = half > 1 ? static_cast<double>(i) / static_cast<double>(half - 1) : 0;
        const double angle = 2 * std::numbers::pi * static_cast<double>(time) / (4e-3 * std::pow(1e3, place));
        out[i] = static_cast<float>(std::sin(angle));
        out[half + i] = static_cast<float>(std::cos(angle));
      }
      out += width_;
    }
    return device_.upload(features).to(precision());
  }

  /// Rows that the network runs for n: matrix products round differently for fewer than 16 rows, or for
  /// counts that threads can't share evenly, and the ratio of sampler and trainer must be 1 whatever their
  /// batch sizes. The added rows are zeros; their outputs are dropped.
  static std::int64_t padded(std::int64_t n) { return std::max<std::int64_t>(16, (n + 7) / 8 * 8); }

  /// Throws Error unless it has the extents that the model was built for.
  void check(const Observation& observation) const {
    const std::int64_t n = observation.instruction.count();
    const auto need = [](bool holds, const std::string& what) {
      if (!holds)
        throw Error("TinyVLA: the observation's " + what + " do not have the extents that were agreed");
    };
    need(observation.instruction.extents().rank() == 1 && n > 0, "instructions");
    if (spec_.proprioception > 0) {
      need(observation.proprioception.extents() == Extents{n, spec_.proprioception}, "proprioception values");
    }
    for (std::size_t i = 0; i < spec_.cameras.size(); ++i) {
      const CameraSpec& camera = spec_.cameras[i];
      need(observation.frames.at(i).extents() == Extents{n, camera.height, camera.width, 3},
           "frames of camera '" + camera.name + "'");
    }
  }

  /// Of the largest matrix.
  std::size_t widened() const {
    if (device_.is_cuda()) return 0;
    std::int64_t largest = 0;
    for (const Parameter& each : parameters_.parameters()) largest = std::max(largest, each.count());
    return widened_bytes(dtype(), largest);
  }
  std::int64_t observation_token_count() const {
    std::int64_t count = spec_.proprioception > 0 ? proprioception_tokens : 0;
    for (const CameraSpec& camera : spec_.cameras) count += patches(camera);
    return count;
  }
  Dtype dtype() const { return parameters_.parameters().front().dtype; }
  at::ScalarType precision() const { return output_norm_.weight.scalar_type(); }
  std::int64_t patch_features() const { return std::int64_t{3} * patch_ * patch_; }
  std::int64_t patches(const CameraSpec& camera) const {
    return std::int64_t{camera.height / patch_} * (camera.width / patch_);
  }

  static constexpr std::int64_t proprioception_tokens = 4;

  ComputeDevice device_;
  ObservationSpec spec_;
  QueryShape shape_;
  int patch_;
  std::int64_t width_, heads_, head_width_ = 0;
  ValueHead value_head_;
  InstructionTable table_;
  at::Tensor words_;  ///< [I, L] slots, int64
  at::Tensor word_embedding_, word_position_, query_embedding_, value_query_;
  Linear proprioception_, noise_, time_, output_, value_in_, value_out_;
  std::array<Linear, max_cameras> patch_embedding_;
  std::array<at::Tensor, max_cameras> patch_position_;
  std::vector<Block> blocks_;
  Norm output_norm_, value_norm_;
  Parameters parameters_;
};

}  // namespace dvla::detail
