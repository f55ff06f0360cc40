// Fully sharded data parallelism (as PyTorch's FSDP and ZeRO, Rajbhandari et al., arXiv 1910.02054): float32
// masters and AdamW's moments of what trains exist once over all actors. Paper: the actors train under FSDP.
// A unit's values are gathered before its forward pass, in the precision that the model computes in, all
// units in the order of need, so later ones travel while earlier ones compute; its float32 gradient is
// reduced and scattered as soon as the last micro-batch's backward pass has finished it. Both run in a thread
// of their own, in one order on all actors. Torch-free.
//
// What is not sharded: between optimiser steps the trainable units' values and gradients are whole on every
// actor (nothing is released after the forward pass), and frozen parameters are replicated and not touched.
// So each of several actors holds 8 + 12 / actors bytes a trainable float32 parameter, where a replica
// (unsharded.hpp) holds 16; in bf16 6 + 16 / actors, where it holds 18. One actor alone holds what a replica
// does and communicates nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/sharding/actors.hpp"
#include "dvla/sharding/descriptors.hpp"
#include "dvla/sharding/job_thread.hpp"
#include "dvla/sharding/pieces.hpp"
#include "dvla/sharding/shard_layout.hpp"
#include "dvla/trace/span.hpp"

namespace dvla {

/// One thread at a time, but pack(), which may run beside anything that is not step() or refresh(). What the
/// model computes with is complete for its own calls at all times; who reads its units otherwise calls
/// gather_all() first. Errors of a collective are thrown, with their type, by the next call that needs it and
/// by all later ones; they name actor, unit and optimiser step.
template <ModelMachinery Model>
class ShardedWeights final : private UnitHooks {
 public:
  /// All actors make theirs at the same time, with models of the same extents, and begin with the first one's
  /// trainable weights. Masters, moments and buffers live in `memory` (the model pool). `model` must outlive
  /// this, and is hooked as long as it lives.
  ShardedWeights(Model& model, std::pmr::memory_resource& memory, const NoKnobs& = {},
                 const GroupSource& groups = lone_group)
      : model_(model),
        figures_(groups("figures")),
        shards_(groups("shards")),
        layout_(model.units(), figures_->size()),
        shard_(units_to_train(model), layout_, figures_->rank(), memory),
        part_(layout_.packed(actor())),
        alone_(actors() == 1),
        sent_units_(units()),
        gathered_at_(units()),
        ready_(units()),
        scattered_(alone_ ? 0 : layout_.shard(), 0.0F, &memory),
        padded_(layout_.largest_padded(), 0.0F, &memory),
        jobs_([this](std::int64_t job) { run(job); }) {
    for (std::size_t unit = 0; unit < units(); ++unit)
      if (trains(unit)) figures_->broadcast(shard_.units()[unit].values, 0);
    begin_step();
    weights_written(model_);
    take_parameters();
    model_.hook_units(this);
  }
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;
  ~ShardedWeights() { model_.hook_units(nullptr); }

  /// Begins an optimiser step's gradient.
  void zero_gradients() {
    if (sent_units_ < units()) jobs_.wait_all();  // a step that was begun and given up
    begin_step();
    shard_.zero_gradients();
  }
  /// See sharding/actors.hpp. Gradients travel during the backward pass that follows a `last`.
  void begin_micro_batch(bool last) { last_ = last; }

  /// One optimiser step with the gradient accumulated by all actors. Returns its norm before clipping, the
  /// same bits on each; throws Error on each if it is not finite, and then changes nothing. Afterwards the
  /// values travel back, which the model's next forward pass waits for, unit by unit.
  double step(const AdamWKnobs& knobs) {
    while (sent_units_ > 0) reduce_next();
    jobs_.wait_all();
    begin_step();
    if (late_) {
      late_ = false;
      throw Error(place("any", shard_.steps()) +
                  ": a backward pass came after the one announced as the last; announce the last "
                  "micro-batch of an optimiser step only, and zero the gradients before the next one");
    }
    const auto gradient_of = [this](std::size_t unit) { return gradient_here(unit); };
    std::array squares{shard_.squared_norm(gradient_of)};
    figures_->sum(squares);
    const double norm = std::sqrt(squares[0]);
    if (!std::isfinite(norm)) throw_not_finite(norm);
    shard_.step(gradient_of, knobs, clip_scale(norm, knobs.max_grad_norm, shard_.steps()));
    gather();
    return norm;
  }

  /// Forgets the moments, keeps the weights.
  void reset_optimiser() { shard_.reset(); }

  int actor() const { return figures_->rank(); }
  int actors() const { return figures_->size(); }
  void sum(std::span<double> values) { figures_->sum(values); }
  void max(std::span<std::int64_t> values) { figures_->max(values); }

  /// What each actor packs, in this order: its part of every unit. For whoever has a model and no weights, as
  /// a rollout.
  static std::vector<WeightPart> parts_of(const Model& model, int actors) {
    const ShardLayout layout(model.units(), actors);
    std::vector<WeightPart> all;
    for (int actor = 0; actor < actors; ++actor) all.push_back(layout.packed(actor));
    return all;
  }
  std::vector<WeightPart> parts() const { return parts_of(model_, actors()); }
  /// Bytes that `pack` writes: this actor's part of what the control plane carries.
  std::size_t packed_bytes() const { return bytes_in(part_); }
  /// The values that the trainer computes with.
  void pack(std::span<std::byte> out) const { shard_.pack(part_, out); }

  /// Afterwards the values in model.units() are what the trainer computes with, whole. Communicates nothing
  /// of its own.
  void gather_all() {
    for (const std::int64_t count : gathered_at_) jobs_.wait(count);
  }

  /// This actor's part of each unit that trains: everything that a checkpoint has to hold, as views.
  std::vector<ShardPiece> pieces() {
    jobs_.wait_all();
    return shard_.pieces();
  }
  std::int64_t& steps() { return shard_.steps(); }
  /// Brings the model up to date with masters that were written. All actors call it.
  void refresh() {
    jobs_.wait_all();
    shard_.give_values();
    gather();
    gather_all();
  }
  /// The other way round: the model's values, which were written alike on every actor, become the weights.
  void take_parameters() {
    jobs_.wait_all();
    shard_.take_values();
  }

  const ShardLayout& layout() const { return layout_; }
  /// Of the steps whose values have come back: layout().bytes_a_step() each.
  ShardTraffic traffic() {
    jobs_.wait_all();
    return traffic_;
  }
  /// From now on collectives are spans "all_gather" and "reduce_scatter" of optimiser step s, in a row of
  /// their own. `trace` must outlive this. Call at most once, before anything else.
  template <class Trace>
  void trace_to(Trace& trace) {
    make_tracer_ = [&trace] { return std::make_unique<TracerOf<Trace>>(trace); };
    jobs_.wait(jobs_.post(trace_job));
  }

 private:
  static constexpr std::int64_t trace_job = -1;

  struct Tracer {
    virtual ~Tracer() = default;
    virtual void record(const char* name, std::int64_t step, std::int64_t begin_ns) = 0;
  };
  template <class Trace>
  struct TracerOf final : Tracer {
    explicit TracerOf(Trace& whose) : trace(whose), row(whose.enter("sharding")) {}
    void record(const char* name, std::int64_t step, std::int64_t begin_ns) override {
      trace.record(name, "stage", step, begin_ns, trace::now_ns());
    }
    Trace& trace;
    decltype(std::declval<Trace&>().enter("")) row;
  };

  std::size_t units() const { return layout_.units(); }
  bool trains(std::size_t unit) const { return layout_.part(unit) > 0; }
  /// This actor's part of a unit's gradient over all actors.
  std::span<const float> gradient_here(std::size_t unit) const {
    if (alone_) return shard_.units()[unit].gradients;
    return std::span(scattered_)
        .subspan(layout_.start(unit), static_cast<std::size_t>(layout_.within(unit, actor()).count));
  }
  std::string place(const std::string& unit, std::int64_t step) const {
    return "actor " + std::to_string(actor()) + ", unit " + unit + " of " + std::to_string(units()) +
           ", optimiser step " + std::to_string(step);
  }

  // ---- In the thread of the training lane.
  void begin_step() {
    sent_units_ = units();
    for (std::size_t unit = 0; unit < units(); ++unit) ready_[unit] = !trains(unit);
    last_ = false;
  }
  void before_unit(std::size_t unit) override { jobs_.wait(gathered_at_[unit]); }
  /// Gradients go off from the last unit to the first on every actor, whatever the order they got ready in.
  void gradient_ready(std::size_t unit) override {
    if (!trains(unit)) return;
    if (unit >= sent_units_) late_ = true;
    if (!last_) return;
    ready_[unit] = 1;
    while (sent_units_ > 0 && ready_[sent_units_ - 1] != 0) reduce_next();
  }
  void reduce_next() {
    --sent_units_;
    if (!alone_ && trains(sent_units_)) jobs_.post(job(false, sent_units_));
  }
  void gather() {
    for (std::size_t unit = 0; !alone_ && unit < units(); ++unit)
      if (trains(unit)) gathered_at_[unit] = jobs_.post(job(true, unit));
    weights_written(model_);  // a model that computes elsewhere reads them now, and asks before_unit first
  }
  std::int64_t job(bool gathers, std::size_t unit) {
    return (shard_.steps() * 2 + gathers) * static_cast<std::int64_t>(units()) +
           static_cast<std::int64_t>(unit);
  }
  [[noreturn]] void throw_not_finite(double norm) {
    std::string where = "in another actor's shard";
    for (std::size_t unit = units(); unit-- > 0;)
      if (trains(unit) && !std::isfinite(squared_norm(gradient_here(unit))))
        where = "here first in unit " + std::to_string(unit);
    throw Error(place("any", shard_.steps()) + ": the gradient over all actors has norm " +
                std::to_string(norm) + " (the NaN or infinity is " + where +
                ") and was not applied: look for a diverged loss, or lower the learning rate");
  }

  // ---- In the thread of the collectives.
  void run(std::int64_t job) {
    if (job == trace_job) {
      tracer_ = make_tracer_();
      return;
    }
    const auto count = static_cast<std::int64_t>(units());
    const auto unit = static_cast<std::size_t>(job % count);
    const std::int64_t step = job / count / 2;
    const bool gathers = job / count % 2 == 1;
    const char* const name = gathers ? "all_gather" : "reduce_scatter";
    const std::int64_t begin = trace::now_ns();
    const auto text = [&](const std::exception& error) {
      return place(std::to_string(unit), step) + ", " + name + ": " + error.what();
    };
    try {
      gathers ? gather_unit(unit) : reduce_unit(unit);
    } catch (const PeerError& error) {
      throw PeerError(text(error));
    } catch (const DeadlineError& error) {
      throw DeadlineError(text(error));
    } catch (const std::exception& error) {
      throw Error(text(error));
    }
    if (tracer_) tracer_->record(name, step, begin);
  }
  void gather_unit(std::size_t unit) {
    const WeightUnit& here = shard_.units()[unit];
    const std::size_t part = layout_.part(unit) * bytes_of(here.dtype);
    const auto place_of = [&](std::span<std::byte> all, int of) {
      return all.subspan(part * static_cast<std::size_t>(of), part);
    };
    if (!layout_.padded(unit)) {
      shards_->all_gather(place_of(here.values, actor()), here.values);
    } else {
      const std::span<std::byte> all =
          std::as_writable_bytes(std::span(padded_)).first(part * static_cast<std::size_t>(actors()));
      const auto copy = [&](int of, bool in) {
        const auto [first, count] = layout_.within(unit, of);
        if (count == 0) return;
        std::byte* value = here.values.data() + static_cast<std::size_t>(first) * bytes_of(here.dtype);
        std::byte* staged = place_of(all, of).data();
        std::memcpy(in ? staged : value, in ? value : staged,
                    static_cast<std::size_t>(count) * bytes_of(here.dtype));
      };
      copy(actor(), true);
      shards_->all_gather(place_of(all, actor()), all);
      for (int other = 0; other < actors(); ++other)
        if (other != actor()) copy(other, false);  // its own may be packed meanwhile
    }
    traffic_.gathered += (actors() - 1) * static_cast<std::int64_t>(part);
  }
  void reduce_unit(std::size_t unit) {
    const std::size_t part = layout_.part(unit);
    std::span<float> all = shard_.units()[unit].gradients;
    if (layout_.padded(unit)) {
      const std::span<float> whole = all;
      all = std::span(padded_).first(part * static_cast<std::size_t>(actors()));
      std::fill(std::copy(whole.begin(), whole.end(), all.begin()), all.end(), 0.0F);
    }
    shards_->reduce_scatter(all, std::span(scattered_).subspan(layout_.start(unit), part));
    traffic_.reduced += (actors() - 1) * static_cast<std::int64_t>(part * sizeof(float));
  }

  Model& model_;
  std::shared_ptr<Group> figures_, shards_;  ///< of the training lane's thread, of the collectives' thread
  ShardLayout layout_;
  OwnedPieces shard_;
  WeightPart part_;                        ///< what this actor packs
  bool alone_;                             ///< nothing is communicated
  std::size_t sent_units_;                 ///< gradients of the units from here on are on their way
  std::vector<std::int64_t> gathered_at_;  ///< by how many jobs a unit's values are there
  std::vector<std::uint8_t> ready_;        ///< a unit's gradient is complete, or it has none
  bool last_ = false, late_ = false;
  std::pmr::vector<float> scattered_;  ///< this actor's part of the gradient over all actors, padded
  std::pmr::vector<float> padded_;     ///< a unit on its way, where it has to be padded
  ShardTraffic traffic_;
  std::function<std::unique_ptr<Tracer>()> make_tracer_;
  std::unique_ptr<Tracer> tracer_;
  detail::JobThread jobs_;  ///< last: its thread ends before anything that it uses
};

template <class Pipeline>
struct machinery<FSDP, Pipeline> {
  using type = ShardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
