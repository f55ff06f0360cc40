// SigLIP's vision tower (Zhai et al., arXiv 2303.15343) as PaliGemma and SmolVLM carry it: a pre-norm transformer over patches
// with learned positions, no class token, a norm at the end and no pooling head. Names are those of Transformers'
// checkpoints (`vision_model.encoder.layers.N.self_attn.q_proj` and so on). Computes in its input's precision.
#pragma once

#include <ATen/ops/cat.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dvla/core/members.hpp"
#include "dvla/model/layers/attention.hpp"
#include "dvla/model/layers/gated_mlp.hpp"
#include "dvla/model/layers/norm.hpp"
#include "dvla/model/layers/patches.hpp"
#include "dvla/model/parts/decoder_layer.hpp"

namespace dvla::parts {

struct VisionShape {
  std::int64_t width = 0, layers = 0, heads = 0, mlp = 0;
  std::int64_t image = 0, patch = 0;  ///< pixels a side
  double norm_eps = 1e-6;
  std::int64_t tokens() const { return (image / patch) * (image / patch); }
};

class SigLip {
 public:
  /// A unit for the embedding, one for each layer; the norm at the end belongs to the unit that is begun after this.
  void declare(Parameters& all, const std::string& name, const VisionShape& shape) {
    shape_ = shape;
    const std::int64_t d = shape.width;
    const auto norm = [&](const std::string& of, Norm& member) {
      all.declare(of + ".weight", {d}, member.weight, {1, 0});
      all.declare(of + ".bias", {d}, member.bias);
    };
    all.begin_unit();
    all.declare(name + ".embeddings.patch_embedding.weight", {d, 3, shape.patch, shape.patch}, kernel_,
                matrix(3 * shape.patch * shape.patch));
    all.declare(name + ".embeddings.patch_embedding.bias", {d}, kernel_bias_);
    all.declare(name + ".embeddings.position_embedding.weight", {shape.tokens(), d}, position_, {0, 0.02});
    layers_.resize(static_cast<std::size_t>(shape.layers));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      Layer& layer = layers_[i];
      const std::string of = name + ".encoder.layers." + std::to_string(i);
      all.begin_unit();
      norm(of + ".layer_norm1", layer.attention_norm);
      all.declare_linear(of + ".self_attn.q_proj", d, d, layer.query, matrix(d), true);
      all.declare_linear(of + ".self_attn.k_proj", d, d, layer.key, matrix(d), true);
      all.declare_linear(of + ".self_attn.v_proj", d, d, layer.value, matrix(d), true);
      all.declare_linear(of + ".self_attn.out_proj", d, d, layer.out, matrix(d), true);
      norm(of + ".layer_norm2", layer.mlp_norm);
      all.declare_linear(of + ".mlp.fc1", shape.mlp, d, layer.fc1, matrix(d), true);
      all.declare_linear(of + ".mlp.fc2", d, shape.mlp, layer.fc2, matrix(shape.mlp), true);
    }
  }
  void declare_end(Parameters& all, const std::string& name) {
    all.declare(name + ".post_layernorm.weight", {shape_.width}, end_.weight, {1, 0});
    all.declare(name + ".post_layernorm.bias", {shape_.width}, end_.bias);
  }

  const VisionShape& shape() const { return shape_; }
  std::size_t units() const { return 1 + layers_.size(); }

  /// image: [n, 3, image, image], in [-1, 1]. The result is [n, tokens, width].
  at::Tensor embed(const at::Tensor& image) const {
    return layers::patch_embedding(image, kernel_, kernel_bias_) + position_.to(image.scalar_type());
  }
  at::Tensor layer(std::size_t i, const at::Tensor& x) const {
    const Layer& layer = layers_[i];
    const std::int64_t k = shape_.width / shape_.heads;
    const at::Tensor in = normalised(x, layer.attention_norm);
    const auto heads = [&](const Linear& by) { return layers::heads_of(by(in), k); };
    const at::Tensor y =
        x + layer.out(layers::attention(heads(layer.query), heads(layer.key), heads(layer.value), {}));
    return y + layer.fc2(layers::activated(layer.fc1(normalised(y, layer.mlp_norm)),
                                           layers::Activation::gelu_tanh));
  }
  at::Tensor end(const at::Tensor& x) const { return normalised(x, end_); }

  /// The views that any row has; mask: [n, V], bool.
  static std::vector<std::int64_t> present(const at::Tensor& mask) {
    std::vector<std::int64_t> views;
    for (std::int64_t view = 0; view < mask.size(1); ++view)
      if (mask.select(1, view).any().item<bool>()) views.push_back(view);
    return views;
  }
  /// These of `images`, [n, 3, image, image] each, one behind the other through embedding and layers, in `type`; undefined
  /// where there are none. The tower's units are the first of `all`, which is told of them; `see(name, activation)`.
  template <class See>
  at::Tensor through(Parameters& all, const std::vector<at::Tensor>& images,
                     const std::vector<std::int64_t>& views, at::ScalarType type, See see) const {
    all.before(0);
    at::Tensor x;
    if (!views.empty()) {
      std::vector<at::Tensor> chosen;
      for (const std::int64_t view : views) chosen.push_back(images[static_cast<std::size_t>(view)]);
      x = embed(at::cat(chosen, 0).to(type));
      see("vision.embedding", x);
    }
    all.after(0, {x});
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (!x.defined()) {
        all.pass_by(i + 1);
        continue;
      }
      x = all.layer(i + 1, [this, i](const auto& in) { return std::vector{layer(i, in[0])}; }, {x})[0];
      see("vision.layer." + std::to_string(i), x);
    }
    return x;
  }

 private:
  struct Norm {
    at::Tensor weight, bias;
  };
  struct Layer {
    Norm attention_norm, mlp_norm;
    Linear query, key, value, out, fc1, fc2;
  };
  at::Tensor normalised(const at::Tensor& x, const Norm& norm) const {
    return layers::layer_norm(x, norm.weight, norm.bias, shape_.norm_eps);
  }

  VisionShape shape_;
  at::Tensor kernel_, kernel_bias_, position_;
  std::vector<Layer> layers_;
  Norm end_;
};

}  // namespace dvla::parts

template <std::same_as<dvla::parts::VisionShape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::width, &K::layers, &K::heads, &K::mlp, &K::image, &K::patch, &K::norm_eps> {};
