// dvla-bench: torch smoke=--smoke
// TinyVLA at its default size on one thread, at the quickstart's batch sizes: drawing actions for 128 rows,
// and a micro-batch step (forward and backward) of 256 rows; each against the plainest hand-written torch
// code for the same network and the same weights: one masked sequence per row, torch's own log_softmax and
// autograd throughout. Both must give the same log-probabilities, or the program fails. Also the flow head,
// alone. Beside each time of the token head stands its share of two limits that are measured first: of the rate of the
// plain code's products alone, and of the rate of reading memory, by what these products compute and move.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory_resource>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../interleaved.hpp"
#include "dvla/model/tiny_vla.hpp"
#include "dvla/testing/model.hpp"

namespace {

using dvla::Decoding;
using dvla::ModelInputs;
using dvla::TinyVlaModel;

ModelInputs push() {
  ModelInputs inputs;
  inputs.observation.proprioception = 10;
  inputs.observation.instructions = {"push the cube to the left goal", "push the cube to the right goal"};
  inputs.action.dimensions = 2;
  inputs.chunk = 4;
  return inputs;
}

template <class Head>
struct Batch {
  explicit Batch(std::int64_t n)
      : model({}, push(), 1),
        observation(dvla::observation_layout(push().observation, {n}), *std::pmr::new_delete_resource()),
        decision(model.decision_layout({n}), *std::pmr::new_delete_resource()),
        values(static_cast<std::size_t>(n * 8)),
        action({n, 4, 2}, values.data()),
        log_prob(values.size()),
        entropy(values.size()),
        d(values.size(), 1e-3f) {
    dvla::testing::fill_observation(*observation, push().observation, 2);
    for (std::int64_t i = 0; i < n; ++i) rows.push_back(i);
    act();
  }
  void act() { model.act(*observation, rows, Decoding::sample, 3, *decision, action); }
  void step() {
    model.forward(*observation, *decision, rows, log_prob, entropy);
    model.backward(d, d);
  }
  TinyVlaModel<Head> model;
  dvla::OwnedRecord<dvla::Observation> observation;
  dvla::OwnedRecord<typename TinyVlaModel<Head>::Decision> decision;
  std::vector<float> values;
  dvla::Field<float> action;
  std::vector<float> log_prob, entropy, d;
  std::vector<std::int64_t> rows;
};

struct Product {
  std::int64_t rows, inner, columns, count;
};
double operations(const std::vector<Product>& products) {
  double sum = 0;
  for (const Product& each : products)
    sum += 2.0 * static_cast<double>(each.rows * each.inner * each.columns * each.count);
  return sum;
}
/// Each reads its operands once and writes its result once, in float32.
double bytes_moved(const std::vector<Product>& products) {
  double sum = 0;
  for (const auto& [rows, inner, columns, count] : products)
    sum += 4.0 * static_cast<double>((rows * inner + inner * columns + rows * columns) * count);
  return sum;
}

/// The token model as one would first write it, on the weights of `model`.
class Plain {
 public:
  explicit Plain(TinyVlaModel<dvla::TokenHead>& model) {
    for (const dvla::Parameter& each : model.parameters())
      weights_[each.name] = at::from_blob(each.data, each.shape).clone().requires_grad_(true);
    const auto table = dvla::detail::tokenise(push().observation.instructions);
    words_ = at::tensor(table.tokens).view({-1, table.length});
    const std::int64_t tokens = tokens_ = table.length + 12;
    mask_ = at::zeros({tokens, tokens});
    mask_.slice(0, 0, table.length).slice(1, table.length).fill_(-1e30);
    mask_.slice(0, 0, table.length + 4).slice(1, table.length + 4).fill_(-1e30);
  }
  at::Tensor logits(const dvla::Observation& o) {
    const std::int64_t n = o.instruction.count();
    const at::Tensor state = at::from_blob(o.proprioception.data(), {n, 10});
    const at::Tensor which = at::from_blob(o.instruction.data(), {n}, at::kInt);
    const at::Tensor text = at::embedding(w("instruction.embedding.weight"), words_.index_select(0, which)) +
                            w("instruction.position");
    const at::Tensor seen =
        at::linear(state, w("proprioception.weight"), w("proprioception.bias")).view({n, 4, 128});
    at::Tensor x = at::cat({text, seen, w("action.query").expand({n, -1, -1})}, 1);
    for (int i = 0; i < 3; ++i) {
      const std::string block = "blocks." + std::to_string(i);
      at::Tensor h = norm(x, block + ".attention.norm");
      const at::Tensor q =
          at::linear(h, w(block + ".attention.query.weight")).view({n, -1, 4, 32}).transpose(1, 2);
      const auto kv = at::linear(h, w(block + ".attention.key_value.weight")).chunk(2, -1);
      const at::Tensor scores = at::matmul(q, kv[0].unsqueeze(1).transpose(2, 3)) / std::sqrt(32.0) + mask_;
      const at::Tensor mixed = at::matmul(at::softmax(scores, -1), kv[1].unsqueeze(1));
      x = x + at::linear(mixed.transpose(1, 2).reshape({n, -1, 128}), w(block + ".attention.out.weight"));
      h = at::relu(at::linear(norm(x, block + ".mlp.norm"), w(block + ".mlp.in.weight")));
      x = x + at::linear(h, w(block + ".mlp.out.weight"));
    }
    return at::linear(norm(x.slice(1, -8), "output.norm"), w("output.weight"), w("output.bias"));
  }
  void act(Batch<dvla::TokenHead>& batch) {
    const at::NoGradGuard no_graph;
    const at::Tensor log_p = at::log_softmax(logits(*batch.observation), -1);
    const at::Tensor token = at::multinomial(log_p.exp().view({-1, 32}), 1);
    action = (token.to(at::kFloat) * 2 + 1) / 32 - 1;
    log_prob = log_p.view({-1, 32}).gather(1, token);
  }
  void step(Batch<dvla::TokenHead>& batch) {
    const at::Tensor log_p = at::log_softmax(logits(*batch.observation), -1);
    const at::Tensor token =
        at::from_blob(batch.decision->tokens.data(), {log_p.size(0), 8, 1}, at::kInt).to(at::kLong);
    log_prob = log_p.gather(2, token);
    const at::Tensor entropy = -(log_p.exp() * log_p).sum(-1);
    ((log_prob.sum() + entropy.sum()) * 1e-3).backward();
  }
  /// Of a pass over n rows: rows, inner extent and columns of its products, and how many there are of each.
  std::vector<Product> products(std::int64_t n) const {
    std::vector<Product> all;
    for (const auto& [name, weight] : weights_)
      if (weight.dim() == 2 && name.ends_with(".weight") && !name.starts_with("instruction."))
        all.push_back({n * (name.starts_with("blocks.")   ? tokens_
                            : name.starts_with("output.") ? 8
                                                          : 1),
                       weight.size(1), weight.size(0), 1});
    for (const auto& [inner, columns] : {std::pair<std::int64_t, std::int64_t>{32, tokens_}, {tokens_, 32}})
      all.push_back({tokens_, inner, columns, 3 * 4 * n});
    return all;
  }
  at::Tensor action, log_prob;

 private:
  at::Tensor& w(const std::string& name) { return weights_.at(name); }
  at::Tensor norm(const at::Tensor& x, const std::string& name) {
    return at::layer_norm(x, {128}, w(name + ".weight"), w(name + ".bias"));
  }
  std::map<std::string, at::Tensor> weights_;
  at::Tensor words_, mask_;
  std::int64_t tokens_ = 0;  ///< a row
};

template <class Work>
double seconds(Work work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What the machine does at most, in this thread.
struct Limits {
  double operations = 0,
         bytes = 0;  ///< of `products` alone; read from 256 MiB, far more than lies in caches; a second

  explicit Limits(const std::vector<Product>& products) {
    const at::NoGradGuard no_graph;
    double spent = 0;
    for (const auto& [rows, inner, columns, count] : products) {
      const std::int64_t at_once = std::min<std::int64_t>(count, 512);
      const at::Tensor x = at::randn({at_once, rows, inner}), w = at::randn({at_once, inner, columns});
      const auto run = [&] { (void)at::bmm(x, w); };
      run();
      double least = 1e30;
      for (int i = 0; i < 5; ++i) least = std::min(least, seconds(run));
      spent += least * static_cast<double>(count) / static_cast<double>(at_once);
    }
    operations = ::operations(products) / spent;
    const at::Tensor memory = at::ones({std::int64_t{1} << 26});
    double least = 1e30;
    for (int i = 0; i < 5; ++i) least = std::min(least, seconds([&] { (void)at::sum(memory); }));
    bytes = static_cast<double>(memory.nbytes()) / least;
  }
  /// `times`: 1, or 3 of a pass and its way back.
  void print(const std::vector<double>& of, const char* name, const std::vector<Product>& products,
             double times) const {
    const double products_s = times * ::operations(products) / operations,
                 memory_s = times * bytes_moved(products) / bytes, spent = bench::median(of);
    std::printf("  %-44s %.0f%% of products, %.0f%% of memory: %s bound it\n", name, 100 * products_s / spent,
                100 * memory_s / spent, products_s > memory_s ? "products" : "memory");
  }
};

}  // namespace

int main(int argc, char** argv) {
  const bool smoke = argc > 1 && std::string_view(argv[1]) == "--smoke";
  const int rounds = smoke ? 2 : 40;
  bench::print_header(argc, argv);
  TinyVlaModel<dvla::TokenHead>::use_threads(1);
  Batch<dvla::TokenHead> rollout(128), update(256);
  Batch<dvla::FlowHead> flow_rollout(128), flow_update(256);
  Plain plain(update.model);

  update.model.hold_gradients(true);
  flow_update.model.hold_gradients(true);
  update.step();
  plain.step(update);
  const at::Tensor ours = at::from_blob(update.log_prob.data(), {256, 8, 1});
  const double difference = (ours - plain.log_prob).abs().max().item<double>();
  std::printf("# %lld parameters; largest difference of a log-probability from the plain code's: %.1e\n",
              static_cast<long long>(dvla::trainable_count(update.model.units())), difference);
  if (!(difference < 1e-4)) return EXIT_FAILURE;

  const auto acted = plain.products(128), stepped = plain.products(256);
  const Limits limits(stepped);
  std::printf("# products alone %.1f GFLOP/s, memory is read at %.1f GB/s\n", limits.operations / 1e9,
              limits.bytes / 1e9);
  const auto act = bench::compare(
      "act, 128 rows",
      {{"plain torch, token head", [&] { return seconds([&] { plain.act(rollout); }); }},
       {"TinyVLA<TokenHead>", [&] { return seconds([&] { rollout.act(); }); }},
       {"TinyVLA<FlowHead>, 4 denoise steps", [&] { return seconds([&] { flow_rollout.act(); }); }}},
      rounds, 1e3, "ms");
  const auto step =
      bench::compare("forward and backward, 256 rows",
                     {{"plain torch, token head", [&] { return seconds([&] { plain.step(update); }); }},
                      {"TinyVLA<TokenHead>", [&] { return seconds([&] { update.step(); }); }},
                      {"TinyVLA<FlowHead>", [&] { return seconds([&] { flow_update.step(); }); }}},
                     rounds, 1e3, "ms");
  limits.print(act[0], "act, plain torch", acted, 1);
  limits.print(act[1], "act, TinyVLA<TokenHead>", acted, 1);
  limits.print(step[0], "forward and backward, plain torch", stepped, 3);
  limits.print(step[1], "forward and backward, TinyVLA<TokenHead>", stepped, 3);
  return EXIT_SUCCESS;
}
