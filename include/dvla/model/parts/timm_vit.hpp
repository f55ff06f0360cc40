// The vision transformer of timm (its vision_transformer.py) as OpenVLA carries it twice: DINOv2-L/14 with registers (Oquab et
// al., arXiv 2304.07193, 2309.16588), which scales what a block adds (LayerScale), and SigLIP-So400m/14. A pre-norm
// transformer with one projection for query, key and value, and exact GELU. Its features are what its last block but one
// puts out, without the norm at the end and without the tokens that are no patches. Names are those of OpenVLA's checkpoints.
//
// Declared because a checkpoint has them, and never computed, so frozen and without adapters: the last block, the norm at the end,
// the pooling head.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/members.hpp"
#include "dvla/model/layers/attention.hpp"
#include "dvla/model/layers/gated_mlp.hpp"
#include "dvla/model/layers/norm.hpp"
#include "dvla/model/layers/patches.hpp"
#include "dvla/model/parts/decoder_layer.hpp"
#include "dvla/model/parts/mlp.hpp"

namespace dvla::parts {

struct VitShape {
  std::int64_t width = 0, layers = 0, heads = 0, mlp = 0;
  std::int64_t image = 0, patch = 0;  ///< pixels a side
  bool class_token = false;
  std::int64_t registers = 0;
  double layer_scale = 0;     ///< what the scales of LayerScale start as; 0: there are none
  bool pooling_head = false;  ///< the checkpoint has one
  double norm_eps = 1e-6;

  std::int64_t tokens() const { return (image / patch) * (image / patch); }
  std::int64_t prefix() const { return (class_token ? 1 : 0) + registers; }
};

class TimmVit {
 public:
  /// A unit for the embedding, one for each block that is computed; what is not stands in the last one's.
  void declare(Parameters& all, const std::string& name, const VitShape& shape) {
    if (shape.layers < 2)
      throw ConfigError(name + " has " + std::to_string(shape.layers) +
                        " blocks; it must have 2 or more, the last but one is read");
    shape_ = shape;
    const std::int64_t d = shape.width;
    all.begin_unit();
    if (shape.class_token) all.declare(name + ".cls_token", {1, 1, d}, class_token_, {0, 1e-6});
    if (shape.registers > 0) all.declare(name + ".reg_token", {1, shape.registers, d}, registers_, {0, 1e-6});
    all.declare(name + ".pos_embed", {1, shape.tokens(), d}, position_, {0, 0.02});
    all.declare_convolution(name + ".patch_embed.proj", d, 3, shape.patch, patches_,
                            matrix(3 * shape.patch * shape.patch), true);
    layers_.resize(static_cast<std::size_t>(shape.layers));
    for (std::size_t i = 0; i < computed_layers(); ++i) {
      all.begin_unit();
      layers_[i].declare(all, name + ".blocks." + std::to_string(i), shape);
    }
    const bool frozen = all.frozen();
    all.freeze(true);  // what nobody reads
    layers_.back().declare(all, name + ".blocks." + std::to_string(computed_layers()), shape);
    end_.declare(all, name + ".norm", d);
    if (shape.pooling_head) pooling_.declare(all, name + ".attn_pool", shape);
    all.freeze(frozen);
  }

  const VitShape& shape() const { return shape_; }
  std::size_t units() const { return layers_.size(); }
  std::size_t computed_layers() const { return layers_.size() - 1; }

  /// image: [n, 3, image, image]. The result is [n, prefix + tokens, width]: class token, registers, patches.
  at::Tensor embed(const at::Tensor& image) const {
    const auto like = [&](const at::Tensor& x) { return x.to(image.scalar_type()); };
    // Positions are the patches' alone (no_embed_class; timm 1.0.31 vision_transformer.py:1112).
    const at::Tensor x = layers::patch_embedding(image, patches_) + like(position_);
    std::vector<at::Tensor> all;
    for (const at::Tensor& each : {class_token_, registers_})
      if (each.defined()) all.push_back(like(each).expand({x.size(0), -1, -1}));
    if (all.empty()) return x;
    all.push_back(x);
    return at::cat(all, 1);
  }
  at::Tensor layer(std::size_t i, const at::Tensor& x) const {
    const Layer& layer = layers_[i];
    const auto qkv = layer.qkv(layer.attention_norm(x, shape_)).chunk(3, -1);
    const auto heads = [&](const at::Tensor& of) {
      return layers::heads_of(of, shape_.width / shape_.heads);
    };
    const at::Tensor mixed = layers::attention(heads(qkv[0]), heads(qkv[1]), heads(qkv[2]), {});
    const at::Tensor y = x + scaled(layer.out(mixed), layer.attention_scale);
    return y + scaled(layer.mlp(layer.mlp_norm(y, shape_)), layer.mlp_scale);
  }
  /// Of what the last block that is computed puts out (openvla-oft modeling_prismatic.py:137): the patches', [n, tokens, width], without
  /// the norm at the end (timm 1.0.31 vision_transformer.py:1188).
  at::Tensor features(const at::Tensor& x) const { return x.narrow(1, shape_.prefix(), shape_.tokens()); }

 private:
  struct Norm {
    at::Tensor weight, bias;
    void declare(Parameters& all, const std::string& name, std::int64_t width) {
      all.declare(name + ".weight", {width}, weight, {1, 0});
      all.declare(name + ".bias", {width}, bias);
    }
    at::Tensor operator()(const at::Tensor& x, const VitShape& shape) const {
      return layers::layer_norm(x, weight, bias, shape.norm_eps);
    }
  };
  struct Layer {
    Norm attention_norm, mlp_norm;
    Linear qkv, out;
    Mlp mlp;
    at::Tensor attention_scale, mlp_scale;
    void declare(Parameters& all, const std::string& name, const VitShape& shape) {
      const std::int64_t d = shape.width;
      const auto scale = [&](const std::string& of, at::Tensor& member) {
        // timm's `gamma`, which OpenVLA renames (openvla-oft modeling_prismatic.py:61).
        if (shape.layer_scale > 0)
          all.declare(name + of + ".scale_factor", {d}, member, {shape.layer_scale, 0});
      };
      attention_norm.declare(all, name + ".norm1", d);
      all.declare_linear(name + ".attn.qkv", 3 * d, d, qkv, matrix(d), true);
      all.declare_linear(name + ".attn.proj", d, d, out, matrix(d), true);
      scale(".ls1", attention_scale);
      mlp_norm.declare(all, name + ".norm2", d);
      mlp.declare(all, name + ".mlp", {d, shape.mlp, d});
      scale(".ls2", mlp_scale);
    }
  };
  /// timm's AttentionPoolLatent.
  struct PoolingHead {
    at::Tensor latent;
    Linear query, key_value, out;
    Norm norm;
    Mlp mlp;
    void declare(Parameters& all, const std::string& name, const VitShape& shape) {
      const std::int64_t d = shape.width;
      all.declare(name + ".latent", {1, 1, d}, latent, matrix(d));
      all.declare_linear(name + ".q", d, d, query, matrix(d), true);
      all.declare_linear(name + ".kv", 2 * d, d, key_value, matrix(d), true);
      all.declare_linear(name + ".proj", d, d, out, matrix(d), true);
      norm.declare(all, name + ".norm", d);
      mlp.declare(all, name + ".mlp", {d, shape.mlp, d});
    }
  };
  static at::Tensor scaled(const at::Tensor& x, const at::Tensor& by) {
    return by.defined() ? x * by.to(x.scalar_type()) : x;
  }

  VitShape shape_;
  at::Tensor class_token_, registers_, position_;
  Linear patches_;
  std::vector<Layer> layers_;
  Norm end_;
  PoolingHead pooling_;
};

}  // namespace dvla::parts

template <std::same_as<dvla::parts::VitShape> K>
struct boost::hana::accessors_impl<K>
    : dvla::members<&K::width, &K::layers, &K::heads, &K::mlp, &K::image, &K::patch, &K::class_token,
                    &K::registers, &K::layer_scale, &K::pooling_head, &K::norm_eps> {};
