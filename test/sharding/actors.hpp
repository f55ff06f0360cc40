// For tests of weights that several actors share: actors as threads, and a sampled batch whose groups are
// dealt to them.
#pragma once

#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dvla/algorithm/grpo.hpp"
#include "dvla/control_plane/parts.hpp"
#include "dvla/environment/toy.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/sharding/actors.hpp"
#include "dvla/testing/linear_model.hpp"
#include "dvla/testing/thread_cluster.hpp"
#include "dvla/trace/off.hpp"

namespace actors_test {

using dvla::testing::LinearModel;

/// Runs `body(actor, groups)` in a thread for each of `count` actors; throws what the first of them threw
/// that was not just left alone by another.
inline void run_actors(int count, const std::function<void(int, const dvla::GroupSource&)>& body,
                       std::chrono::nanoseconds limit = std::chrono::seconds(60)) {
  const auto clusters = dvla::testing::ThreadCluster::make(count);
  std::vector<int> members;
  for (int i = 0; i < count; ++i) members.push_back(i);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(count));
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      try {
        body(i, [&](const std::string& purpose) {
          return clusters[static_cast<std::size_t>(i)]->group(purpose, members, limit);
        });
      } catch (...) {
        errors[static_cast<std::size_t>(i)] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  std::exception_ptr left;
  for (const std::exception_ptr& error : errors) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const dvla::PeerError&) {
      left = error;
    }
  }
  if (left) std::rethrow_exception(left);
}

/// One batch of 64 episodes in 8 groups, 4 decisions of two control steps each, sampled by the first weights.
struct Batch {
  static constexpr int episodes = 64, groups = 8;
  using Transition = dvla::OwnedRecord<dvla::Transition>;

  Batch() { worker.rollout(*transition, *decision, 0); }
  static constexpr dvla::testing::LinearKnobs usual{.bins = 5, .chunk = 2};
  std::unique_ptr<LinearModel> model(const dvla::testing::LinearKnobs& knobs = usual) const {
    dvla::ModelInputs inputs;
    inputs.observation = environment.observation_spec();
    inputs.action = environment.action_spec();
    inputs.chunk = 2;
    return std::make_unique<LinearModel>(knobs, inputs, 3);
  }
  /// What the actor `owner(group) == actor` gets: the other groups are absent, and what stands there is
  /// poison.
  std::unique_ptr<Transition> dealt(const std::function<int(int)>& owner, int actor) {
    auto mine = std::make_unique<Transition>(worker.layout(4, 2), heap);
    std::memcpy(mine->block().data(), transition.block().data(), mine->block().size());
    dvla::Transition& all = **mine;
    for (int b = 0; b < episodes; ++b) {
      if (owner(b / (episodes / groups)) == actor) continue;
      all.group[b] = -1;
      all.episode.success[b] = 1;
      for (int t = 0; t < 4; ++t) {
        all.version.at(t)[b] = 77;
        for (int c = 0; c < 2; ++c) {
          all.reward.at(t).at(b)[c] = std::numeric_limits<float>::quiet_NaN();
          all.terminated.at(t).at(b)[c] = all.truncated.at(t).at(b)[c] = 0;
        }
      }
    }
    return mine;
  }
  static dvla::GrpoKnobs knobs() {
    dvla::GrpoKnobs knobs;
    knobs.learning_rate = 0.01;
    knobs.epochs = 3;
    knobs.global_batch = 0;
    knobs.micro_batch = 16;
    return knobs;
  }
  /// One update on every actor, of weights made by `make(model, groups)`, which outlive it as `done` sees.
  template <class Weights, class Make, class Done>
  void update(int actors, const std::function<int(int)>& owner, const dvla::GrpoKnobs& knobs, Make make,
              Done done) {
    run_actors(actors, [&](int actor, const dvla::GroupSource& source) {
      const auto fresh = model();
      const std::unique_ptr<Weights> weights = make(*fresh, source);
      dvla::GrpoTrainer<LinearModel, Weights, dvla::Uncorrected> trainer(knobs, worker.shape(), 2, 1, actors);
      const auto mine = dealt(owner, actor);
      dvla::trace::Off silent;
      const dvla::UpdateStats stats = trainer.update(
          *fresh, *weights, **mine, *decision, 0, [] {}, silent);
      weights->gather_all();
      done(actor, *fresh, *weights, stats);
    });
  }

  std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
  dvla::ToyEnvironment environment{{.environments = episodes, .horizon = 8, .actions = 2}, heap};
  dvla::trace::Off off;
  std::unique_ptr<LinearModel> sampler = model();
  dvla::RolloutWorker<dvla::ToyEnvironment, LinearModel, dvla::trace::Off> worker{
      environment, *sampler, *sampler, {.seed = 1, .chunk = 2, .group = episodes / groups}, off};
  Transition transition{worker.layout(4, 2), heap};
  dvla::OwnedRecord<dvla::testing::LinearDecision> decision{model()->decision_layout({4, episodes}), heap};
};

/// All values of a model, frozen ones included, and the gradients that it holds, as one row each.
inline std::vector<float> values_of(const LinearModel& model) {
  std::vector<float> all;
  for (const dvla::Parameter& each : model.parameters()) {
    std::vector<float> values(static_cast<std::size_t>(each.count()));
    dvla::to_floats({each.data, each.bytes()}, each.dtype, values);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}
inline std::vector<float> gradients_of(const LinearModel& model) {
  std::vector<float> all;
  for (const dvla::WeightUnit& unit : model.units())
    all.insert(all.end(), unit.gradients.begin(), unit.gradients.end());
  return all;
}
/// The trainable values, as bytes.
inline std::vector<std::byte> bytes_of_model(const LinearModel& model) {
  std::vector<std::byte> all(dvla::trainable_bytes(model.units()));
  dvla::read_weights(model.units(), 0, all);
  return all;
}
/// What the actors have packed, put together by their parts.
inline std::vector<std::byte> put_together(const std::vector<std::vector<std::byte>>& packed,
                                           const std::vector<dvla::WeightPart>& parts) {
  std::size_t size = 0;
  for (const dvla::WeightPart& part : parts) size += dvla::bytes_in(part);
  dvla::check_weight_parts(size, parts, packed.size());
  std::vector<std::byte> whole(size);
  for (std::size_t actor = 0; actor < parts.size(); ++actor) {
    const std::byte* from = packed[actor].data();
    for (const dvla::ByteRange& range : parts[actor]) {
      std::copy_n(from, range.bytes, whole.begin() + static_cast<std::ptrdiff_t>(range.offset));
      from += range.bytes;
    }
  }
  return whole;
}

inline double largest_difference(std::span<const float> one, std::span<const float> two) {
  double largest = one.size() == two.size() ? 0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < one.size() && i < two.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(one[i]) - static_cast<double>(two[i])));
  return largest;
}

/// Ways to deal 8 groups to `actors`: in turn; and all but one group to the last, some actors none.
inline std::vector<std::function<int(int)>> deals(int actors) {
  return {[actors](int group) { return group % actors; },
          [actors](int group) { return group == 0 ? 0 : actors - 1; }};
}

}  // namespace actors_test
