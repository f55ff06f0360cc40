// Fully sharded data parallelism (as PyTorch's FSDP and ZeRO, Rajbhandari et al., arXiv 1910.02054): float32
// masters and AdamW's moments exist once over all actors. Paper: the actors train under FSDP. A unit's
// parameters are gathered before its forward pass, all units in the order of need, so later ones travel while
// earlier ones compute; its gradient is reduced and scattered as soon as the last micro-batch's backward pass
// has finished it. Both run in a thread of their own, in one order on all actors. Torch-free; a model without
// units (ModelOfUnits) is one unit and overlaps nothing.
//
// What is not sharded: between optimiser steps the model's flat buffers of parameters and gradients are whole
// on every actor (no resharding after the forward pass). So each of several actors holds 2 n + 4 n / actors
// floats, where a replica (unsharded.hpp) holds 4 n. One actor alone holds 4 n too and communicates nothing.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
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
#include "dvla/sharding/shard_layout.hpp"
#include "dvla/trace/span.hpp"

namespace dvla {

namespace detail {
/// To the nearest bfloat16, halves to even; what is not finite stays so.
inline std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (!std::isfinite(value)) return static_cast<std::uint16_t>(bits >> 16 | (std::isnan(value) ? 0x40 : 0));
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(std::uint16_t value) { return std::bit_cast<float>(std::uint32_t{value} << 16); }
}  // namespace detail

/// One thread at a time, but pack(), which may run beside anything that is not step(). What the model
/// computes with is complete for its own calls at all times; who reads model.parameters() otherwise calls
/// gather_all() first. Errors of a collective are thrown, with their type, by the next call that needs it and
/// by all later ones; they name actor, unit and optimiser step.
template <ModelMachinery Model>
class ShardedWeights final : private UnitHooks {
 public:
  /// All actors make theirs at the same time, with models of the same extents, and begin with the first one's
  /// weights. Masters, moments and buffers live in `memory` (the model pool). `model` must outlive this, and
  /// is hooked as long as it lives.
  ShardedWeights(Model& model, std::pmr::memory_resource& memory, const FsdpKnobs& knobs = {},
                 const GroupSource& groups = lone_group)
      : model_(model),
        knobs_(knobs),
        parameters_(model.parameters()),
        gradients_(model.gradients()),
        figures_(groups("figures")),
        shards_(groups("shards")),
        layout_(units_of(model), std::ssize(parameters_), figures_->size()),
        alone_(actors() == 1 && !knobs.bf16),
        sent_units_(units()),
        store_((alone_ ? 2 : 4) * layout_.shard_floats(), 0.0F, &memory),
        padded_(alone_ ? 0 : layout_.largest_padded(), 0.0F, &memory),
        half_(knobs.bf16 ? layout_.largest_padded() : 0, std::uint16_t{0}, &memory),
        state_{alone_ ? parameters_ : part_of_store(2), part_of_store(0), part_of_store(1), 0},
        scattered_(alone_ ? gradients_ : part_of_store(3)),
        jobs_([this](std::int64_t job) { run(job); }) {
    gathered_at_.resize(units());
    ready_.resize(units());
    figures_->broadcast(std::as_writable_bytes(parameters_), 0);
    take_parameters();
    if constexpr (ModelOfUnits<Model>) model_.hook_units(this);
  }
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;
  ~ShardedWeights() {
    if constexpr (ModelOfUnits<Model>) model_.hook_units(nullptr);
  }

  /// Begins an optimiser step's gradient.
  void zero_gradients() {
    if (sent_units_ < units()) jobs_.wait_all();  // a step that was begun and given up
    begin_step();
    std::fill(gradients_.begin(), gradients_.end(), 0.0F);
  }
  /// See sharding/actors.hpp. Gradients travel during the backward pass that follows a `last`.
  void begin_micro_batch(bool last) { last_ = last; }

  /// One optimiser step with the gradient accumulated by all actors. Returns its norm before clipping, the
  /// same bits on each; throws Error on each if it is not finite, and then changes nothing. Afterwards the
  /// parameters travel back, which the model's next forward pass waits for, unit by unit.
  double step(const AdamWKnobs& knobs) {
    while (sent_units_ > 0) reduce_next();
    jobs_.wait_all();
    begin_step();
    if (late_) {
      late_ = false;
      throw Error(place("any", state_.step) +
                  ": a backward pass came after the one announced as the last; announce the last "
                  "micro-batch of an optimiser step only, and zero the gradients before the next one");
    }
    std::array squares{squared_norm(scattered_)};
    figures_->sum(squares);
    const double norm = std::sqrt(squares[0]);
    if (!std::isfinite(norm)) throw_not_finite(norm);
    adamw_update(state_, scattered_, knobs, clip_scale(norm, knobs.max_grad_norm, state_.step));
    gather();
    return norm;
  }

  /// Forgets the moments, keeps the weights.
  void reset_optimiser() {
    std::fill(state_.first_moment.begin(), state_.first_moment.end(), 0.0F);
    std::fill(state_.second_moment.begin(), state_.second_moment.end(), 0.0F);
    state_.step = 0;
  }

  int actor() const { return figures_->rank(); }
  int actors() const { return figures_->size(); }
  void sum(std::span<double> values) { figures_->sum(values); }
  void max(std::span<std::int64_t> values) { figures_->max(values); }

  /// What each actor packs, in this order: its part of every unit. For whoever has a model and no weights, as
  /// a rollout.
  static std::vector<WeightPart> parts_of(Model& model, int actors) {
    const ShardLayout layout(units_of(model), std::ssize(model.parameters()), actors);
    std::vector<WeightPart> all;
    for (int actor = 0; actor < actors; ++actor) all.push_back(layout.packed(actor));
    return all;
  }
  std::vector<WeightPart> parts() const { return parts_of(model_, actors()); }
  /// Bytes that `pack` writes: this actor's part of what the control plane carries.
  std::size_t packed_bytes() const {
    return static_cast<std::size_t>(floats_in(layout_.packed(actor()))) * sizeof(float);
  }
  /// The values that the trainer computes with: masters, or these rounded to bfloat16, as float32.
  void pack(std::span<std::byte> out) const {
    if (out.size() != packed_bytes())
      throw Error("ShardedWeights::pack: the buffer has " + std::to_string(out.size()) +
                  " bytes, the shard of actor " + std::to_string(actor()) + " has " +
                  std::to_string(packed_bytes()));
    std::byte* to = out.data();
    for (std::size_t unit = 0; unit < units(); ++unit) {
      const auto count = static_cast<std::size_t>(layout_.range(unit, actor()).count);
      const std::span<const float> from = state_.parameter.subspan(layout_.start(unit), count);
      if (knobs_.bf16) {
        for (std::size_t i = 0; i < count; ++i) {
          const float value = detail::from_bf16(detail::to_bf16(from[i]));
          std::memcpy(to + i * sizeof(float), &value, sizeof(float));
        }
      } else if (count > 0) {
        std::memcpy(to, from.data(), from.size_bytes());
      }
      to += from.size_bytes();
    }
  }

  /// Afterwards model.parameters() is what the trainer computes with, whole. Communicates nothing of its own.
  void gather_all() { jobs_.wait(gathered_at_.back()); }

  /// This actor's shard: masters and moments, padded, and the number of steps taken. After writing masters
  /// call refresh().
  AdamWState& state() {
    jobs_.wait_all();
    return state_;
  }
  /// The same, piece by piece in the order of parts(), without padding: what a checkpoint holds.
  std::vector<ShardPiece> pieces() {
    jobs_.wait_all();
    std::vector<ShardPiece> all;
    for (std::size_t unit = 0; unit < units(); ++unit) {
      const WeightRange range = layout_.range(unit, actor());
      const auto count = static_cast<std::size_t>(range.count);
      const auto cut = [&](std::span<float> whole) { return whole.subspan(layout_.start(unit), count); };
      if (count > 0)
        all.push_back({range, cut(state_.parameter), cut(state_.first_moment), cut(state_.second_moment)});
    }
    return all;
  }
  /// Brings model.parameters() up to date with masters that were written. All actors call it.
  void refresh() {
    gather();
    gather_all();
  }
  /// The other way round: model.parameters(), which were written alike on every actor, become the weights.
  void take_parameters() {
    jobs_.wait_all();
    for (std::size_t unit = 0; !alone_ && unit < units(); ++unit) {
      const WeightRange range = layout_.range(unit, actor());
      std::copy_n(parameters_.begin() + range.offset, range.count,
                  state_.parameter.begin() + static_cast<std::ptrdiff_t>(layout_.start(unit)));
    }
    if (knobs_.bf16)
      for (float& value : parameters_) value = detail::from_bf16(detail::to_bf16(value));
  }

  const ShardLayout& layout() const { return layout_; }
  /// Of the steps whose parameters have come back: layout().bytes_a_step(bf16 ? 2 : 4) each.
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
  static constexpr bool hooked = ModelOfUnits<Model>;
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

  static std::vector<WeightRange> units_of(Model& model) {
    if constexpr (hooked)
      return model.units();
    else
      return {{0, std::ssize(model.parameters())}};
  }
  std::size_t units() const { return layout_.units().size(); }
  /// Two moments, and unless this is alone masters and gradient: each of the size of a shard.
  std::span<float> part_of_store(std::size_t which) {
    return std::span(store_).subspan(which * layout_.shard_floats(), layout_.shard_floats());
  }
  std::string place(const std::string& unit, std::int64_t step) const {
    return "actor " + std::to_string(actor()) + ", unit " + unit + " of " + std::to_string(units()) +
           ", optimiser step " + std::to_string(step);
  }

  // ---- In the thread of the training lane.
  void begin_step() {
    sent_units_ = units();
    std::fill(ready_.begin(), ready_.end(), std::uint8_t{0});
    last_ = false;
  }
  void before_unit(std::size_t unit) override { jobs_.wait(gathered_at_[unit]); }
  /// Gradients go off from the last unit to the first on every actor, whatever the order they got ready in.
  void gradient_ready(std::size_t unit) override {
    if (unit >= sent_units_) late_ = true;
    if (!last_) return;
    ready_[unit] = 1;
    while (sent_units_ > 0 && ready_[sent_units_ - 1] != 0) reduce_next();
  }
  void reduce_next() {
    --sent_units_;
    if (!alone_) jobs_.post(job(false, sent_units_));
  }
  void gather() {
    if (alone_) return;
    for (std::size_t unit = 0; unit < units(); ++unit) gathered_at_[unit] = jobs_.post(job(true, unit));
    if (!hooked) gather_all();
  }
  std::int64_t job(bool gathers, std::size_t unit) const {
    return (state_.step * 2 + gathers) * static_cast<std::int64_t>(units()) + static_cast<std::int64_t>(unit);
  }
  [[noreturn]] void throw_not_finite(double norm) {
    std::string where = "in another actor's shard";
    for (std::size_t unit = units(); unit-- > 0;)
      if (!std::isfinite(squared_norm(scattered_.subspan(layout_.start(unit), layout_.part(unit)))))
        where = "here first in unit " + std::to_string(unit);
    throw Error(place("any", state_.step) + ": the gradient over all actors has norm " +
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
    const std::size_t part = layout_.part(unit);
    const std::span<const float> mine = state_.parameter.subspan(layout_.start(unit), part);
    const std::span<float> whole = unit_of(parameters_, unit);
    if (knobs_.bf16) {
      const std::span<std::uint16_t> all = std::span(half_).first(part * static_cast<std::size_t>(actors()));
      const std::span<std::uint16_t> own = all.subspan(part * static_cast<std::size_t>(actor()), part);
      std::transform(mine.begin(), mine.end(), own.begin(), detail::to_bf16);
      shards_->all_gather(std::as_bytes(own), std::as_writable_bytes(all));
      std::transform(all.begin(), all.begin() + std::ssize(whole), whole.begin(), detail::from_bf16);
    } else if (const std::span<float> all = padded(unit); all.size() == whole.size()) {
      shards_->all_gather(std::as_bytes(mine), std::as_writable_bytes(whole));
    } else {
      shards_->all_gather(std::as_bytes(mine), std::as_writable_bytes(all));
      std::copy_n(all.begin(), whole.size(), whole.begin());
    }
    traffic_.gathered += (actors() - 1) * static_cast<std::int64_t>(part) * (knobs_.bf16 ? 2 : 4);
  }
  void reduce_unit(std::size_t unit) {
    const std::size_t part = layout_.part(unit);
    const std::span<float> whole = unit_of(gradients_, unit);
    std::span<float> all = padded(unit);
    if (all.size() == whole.size()) {
      all = whole;
    } else {
      std::fill(std::copy(whole.begin(), whole.end(), all.begin()), all.end(), 0.0F);
    }
    shards_->reduce_scatter(all, scattered_.subspan(layout_.start(unit), part));
    traffic_.reduced += (actors() - 1) * static_cast<std::int64_t>(part) * 4;
  }
  std::span<float> unit_of(std::span<float> flat, std::size_t unit) const {
    const auto [offset, count] = layout_.units()[unit];
    return flat.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(count));
  }
  std::span<float> padded(std::size_t unit) {
    return std::span(padded_).first(layout_.part(unit) * static_cast<std::size_t>(actors()));
  }

  Model& model_;
  FsdpKnobs knobs_;
  std::span<float> parameters_, gradients_;
  std::shared_ptr<Group> figures_, shards_;  ///< of the training lane's thread, of the collectives' thread
  ShardLayout layout_;
  bool alone_;                             ///< the shard is the model's own buffers
  std::size_t sent_units_;                 ///< gradients of the units from here on are on their way
  std::vector<std::uint8_t> ready_;        ///< a unit's gradient is complete
  std::vector<std::int64_t> gathered_at_;  ///< by how many jobs a unit's parameters are there
  bool last_ = false, late_ = false;
  std::pmr::vector<float> store_, padded_;
  std::pmr::vector<std::uint16_t> half_;
  AdamWState state_;
  std::span<float> scattered_;  ///< this actor's part of the gradient over all actors
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
