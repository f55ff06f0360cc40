// A layer of a decoder-only transformer: Gemma's, Llama's, SmolLM's, and that of pi0's action expert. They differ in their
// norms, their activation and how many heads share keys and values. Names within a layer are those of the published
// checkpoints. How tokens see one another, and whose keys stand before theirs, is the model's to say.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "dvla/core/members.hpp"
#include "dvla/model/layers/attention.hpp"
#include "dvla/model/layers/gated_mlp.hpp"
#include "dvla/model/layers/norm.hpp"
#include "dvla/model/layers/rotary.hpp"
#include "dvla/model/parameters.hpp"

namespace dvla::parts {

/// What a matrix starts as where no checkpoint is given: N(0, 1 / inputs).
inline InitialValues matrix(std::int64_t inputs) { return {0, 1 / std::sqrt(static_cast<double>(inputs))}; }

struct DecoderShape {
  std::int64_t width = 0, layers = 0, mlp = 0;
  std::int64_t heads = 0, kv_heads = 1, head_width = 0;
  layers::Activation activation = layers::Activation::silu;
  double norm_eps = 1e-6, norm_offset = 0, theta = 10000;
  std::int64_t condition = 0;  ///< width of what the norms adapt to; 0: they have weights instead
};

/// RMSNorm with a weight, or adaptive to a condition.
struct DecoderNorm {
  at::Tensor weight;
  Linear dense;

  void declare(Parameters& all, const std::string& name, const DecoderShape& shape) {
    if (shape.condition > 0)
      all.declare_linear(name + ".dense", 3 * shape.width, shape.condition, dense, matrix(shape.condition),
                         true);
    else
      all.declare(name + ".weight", {shape.width}, weight, {1 - shape.norm_offset, 0});
  }
  /// The gate is undefined without a condition.
  std::pair<at::Tensor, at::Tensor> operator()(const at::Tensor& x, const at::Tensor& condition,
                                               const DecoderShape& shape) const {
    if (shape.condition > 0) return layers::adaptive_rms_norm(x, dense(condition), shape.norm_eps);
    return {layers::rms_norm(x, weight, shape.norm_eps, shape.norm_offset), {}};
  }
};

struct DecoderLayer {
  DecoderNorm attention_norm, mlp_norm;
  Linear query, key, value, out, gate, up, down;

  /// `offered`: how wide that is which keys and values are made of, where it isn't the layer's own stream.
  void declare(Parameters& all, const std::string& name, const DecoderShape& shape,
               std::int64_t offered = 0) {
    attention_norm.declare(all, name + ".input_layernorm", shape);
    declare_query(all, name, shape);
    declare_key_value(all, name, shape, offered > 0 ? offered : shape.width);
    declare_end(all, name, shape);
  }
  /// Of a layer that is read in two parts: what makes its keys and values ..
  void declare_keys(Parameters& all, const std::string& name, const DecoderShape& shape) {
    attention_norm.declare(all, name + ".input_layernorm", shape);
    declare_key_value(all, name, shape, shape.width);
  }
  /// .. and the rest.
  void declare_rest(Parameters& all, const std::string& name, const DecoderShape& shape) {
    declare_query(all, name, shape);
    declare_end(all, name, shape);
  }

  /// What a token asks for and offers: query [n, h, T, k], key and value [n, g, T, k], rotated; the gate of what it gets; and what
  /// all were made of, [n, T, d].
  struct Projected {
    at::Tensor query, key, value, gate, in{};
  };
  /// `keys_alone`: the query is left out.
  Projected project(const at::Tensor& x, const layers::Rotary& rotary, const at::Tensor& condition,
                    const DecoderShape& shape, bool keys_alone = false) const {
    const auto [in, gated] = attention_norm(x, condition, shape);
    return {keys_alone ? at::Tensor() : ask_later(in, rotary, shape),
            layers::rotated(layers::heads_of(key(in), shape.head_width), rotary),
            layers::heads_of(value(in), shape.head_width), gated, in};
  }
  /// The query that project() left out, of what it made the others of.
  at::Tensor ask_later(const at::Tensor& in, const layers::Rotary& rotary, const DecoderShape& shape) const {
    return layers::rotated(layers::heads_of(query(in), shape.head_width), rotary);
  }
  /// The query and the gate alone, of a layer whose keys and values are made of another's.
  Projected ask(const at::Tensor& x, const layers::Rotary& rotary, const at::Tensor& condition,
                const DecoderShape& shape) const {
    const auto [in, gated] = attention_norm(x, condition, shape);
    return {ask_later(in, rotary, shape), {}, {}, gated};
  }
  /// Such a layer's keys and values: made of another's, [n, g, S, k], heads side by side, and not rotated again.
  std::pair<at::Tensor, at::Tensor> made_of(const at::Tensor& keys, const at::Tensor& values,
                                            const DecoderShape& shape) const {
    const auto made = [&](const Linear& by, const at::Tensor& x) {
      return layers::heads_of(by(x.transpose(1, 2).flatten(2)), shape.head_width);
    };
    return {made(key, keys), made(value, values)};
  }
  /// The residual stream behind the layer; mixed: [n, T, h * k], what attention gave; `gated`: as project() gave it.
  at::Tensor finish(const at::Tensor& x, const at::Tensor& mixed, const at::Tensor& gated,
                    const at::Tensor& condition, const DecoderShape& shape) const {
    const auto add = [](const at::Tensor& to, const at::Tensor& what, const at::Tensor& by) {
      return by.defined() ? to + what * by : to + what;
    };
    const at::Tensor y = add(x, out(mixed), gated);
    const auto [in, mlp_gated] = mlp_norm(y, condition, shape);
    return add(y, layers::gated_mlp(in, gate, up, down, shape.activation), mlp_gated);
  }

 private:
  static std::int64_t queries(const DecoderShape& shape) { return shape.heads * shape.head_width; }
  void declare_query(Parameters& all, const std::string& name, const DecoderShape& shape) {
    all.declare_linear(name + ".self_attn.q_proj", queries(shape), shape.width, query, matrix(shape.width));
  }
  void declare_key_value(Parameters& all, const std::string& name, const DecoderShape& shape,
                         std::int64_t from) {
    const std::int64_t kv = shape.kv_heads * shape.head_width;
    all.declare_linear(name + ".self_attn.k_proj", kv, from, key, matrix(from));
    all.declare_linear(name + ".self_attn.v_proj", kv, from, value, matrix(from));
  }
  void declare_end(Parameters& all, const std::string& name, const DecoderShape& shape) {
    const std::int64_t d = shape.width, q = queries(shape);
    all.declare_linear(name + ".self_attn.o_proj", d, q, out, matrix(q));
    mlp_norm.declare(all, name + ".post_attention_layernorm", shape);
    all.declare_linear(name + ".mlp.gate_proj", shape.mlp, d, gate, matrix(d));
    all.declare_linear(name + ".mlp.up_proj", shape.mlp, d, up, matrix(d));
    all.declare_linear(name + ".mlp.down_proj", d, shape.mlp, down, matrix(shape.mlp));
  }
};

}  // namespace dvla::parts

template <std::same_as<dvla::parts::DecoderShape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::width, &K::layers, &K::mlp, &K::heads, &K::kv_heads, &K::head_width, &K::activation,
                    &K::norm_eps, &K::norm_offset, &K::theta, &K::condition> {};
