// Fully sharded data parallelism (as PyTorch's FSDP and ZeRO-3, Rajbhandari et al., arXiv 1910.02054): of what
// trains, float32 masters and AdamW's moments exist once over all actors, and between uses so do values and
// gradients. A unit's values are gathered before it is used, in the precision that the model computes in, those
// of the next unit while this one computes, and are released after; its float32 gradient is reduced and
// scattered as soon as a backward pass has finished it. All of that runs in a thread of its own, in one order
// on all actors, which the pass that was announced (actors.hpp) decides. Paper: the actors train under FSDP.
// Torch-free.
//
// `release` says when values go back: after each use; after the backward pass, so that it gathers nothing; or
// never, and then they are gathered once an optimiser step, and gradients, which stay whole, travel once a
// step. `shard_frozen` does the same with frozen units, which are otherwise replicated and not touched. For
// models that compute in host memory; one on a GPU takes `never`. One actor alone holds what a replica does and
// communicates nothing. Memory and bytes sent: docs/slots/sharding.md.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/algorithm/adamw.hpp"
#include "dvla/core/error.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/memory/pages.hpp"
#include "dvla/model/concept.hpp"
#include "dvla/placement/channel.hpp"
#include "dvla/sharding/actors.hpp"
#include "dvla/sharding/descriptors.hpp"
#include "dvla/sharding/job_thread.hpp"
#include "dvla/sharding/pieces.hpp"
#include "dvla/sharding/shard_layout.hpp"
#include "dvla/trace/span.hpp"

namespace dvla {

/// One thread at a time, but pack(), which may run beside anything that is not step() or refresh(). Between the
/// passes that are announced, the model's values are whole where gather_all() came last, and nobody may use the
/// model otherwise: its hooks throw. Errors of a collective are thrown, with their type, by the next call that
/// needs it and by all later ones; they name actor, unit and optimiser step.
template <ModelMachinery Model>
class ShardedWeights final : private UnitHooks {
 public:
  /// All actors make theirs at the same time, with models of the same extents and the same frozen weights, and
  /// begin with the first one's trainable ones. Masters, moments and buffers live in `memory` (the model pool).
  /// `model` must outlive this, and is hooked as long as it lives. Throws ConfigError where the knobs are not
  /// for this model.
  ShardedWeights(Model& model, std::pmr::memory_resource& memory, const FsdpKnobs& knobs = {},
                 const GroupSource& groups = lone_group)
      : model_(model),
        figures_(groups("figures")),
        shards_(groups("shards")),
        layout_(model.units(), figures_->size()),
        shard_(units_to_train(model), layout_, figures_->rank(), memory),
        part_(layout_.packed(actor())),
        alone_(actors() == 1),
        elsewhere_(std::ranges::any_of(model.parameters(),
                                       [](const Parameter& each) { return each.device != Device::cpu; })),
        release_(checked(knobs, alone_, model)),
        frozen_(frozen_stretches(model, !alone_ && knobs.shard_frozen)),
        gathered_at_(units()),
        used_(units()),
        ready_(units()),
        reduced_(units()),
        scattered_(alone_ ? 0 : layout_.shard(), 0.0F, &memory),
        padded_(largest_padded(), 0.0F, &memory),
        addend_(releases() ? layout_.largest_part() : 0, 0.0F, &memory),
        jobs_([this](std::int64_t job) { run(job); }) {
    for (std::size_t unit = 0; unit < units(); ++unit)
      if (trains(unit)) figures_->broadcast(shard_.units()[unit].values, 0);
    weights_written(model_);
    take_parameters();
    model_.hook_units(this);
  }
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;
  ~ShardedWeights() { model_.hook_units(nullptr); }

  /// Begins an optimiser step's gradient.
  void zero_gradients() {
    end_pass();
    if (complete_) jobs_.wait_all();  // a step that was begun and given up
    begin_step();
    late_ = false;
    if (!releases()) return shard_.zero_gradients();
    for (const WeightUnit& unit : shard_.units()) detail::drop_pages(std::as_writable_bytes(unit.gradients));
  }
  /// See sharding/actors.hpp.
  void begin_pass(const Pass& pass) {
    end_pass();
    pass_ = pass;
    if (complete_ && pass.backward && !releases()) late_ = true;
    plan_pass();
    in_pass_ = true;
  }

  /// One optimiser step with the gradient accumulated by all actors. Returns its norm before clipping, the
  /// same bits on each; throws Error on each if it is not finite, and then changes nothing.
  double step(const AdamWKnobs& knobs) {
    end_pass();
    if (!complete_) {  // no pass was announced as the last
      pass_ = {};
      plan_.clear();
      add_reductions();
      end_pass();
    }
    jobs_.wait_all();
    if (late_)
      throw Error(
          place("any", shard_.steps()) +
          ": a backward pass came after the one announced as the last, or was not announced; announce "
          "the last one of an optimiser step only, and zero the gradients before the next one");
    const auto gradient_of = [this](std::size_t unit) { return gradient_here(unit); };
    std::array squares{shard_.squared_norm(gradient_of)};
    figures_->sum(squares);
    const double norm = std::sqrt(squares[0]);
    if (!std::isfinite(norm)) throw_not_finite(norm);
    begin_step();
    shard_.step(gradient_of, knobs, clip_scale(norm, knobs.max_grad_norm, shard_.steps()));
    if (releases()) {
      release_all();
    } else {
      gather();  // which the model's next forward pass waits for, unit by unit
    }
    return norm;
  }

  /// Forgets the moments, keeps the weights.
  void reset_optimiser() { shard_.reset(); }

  int actor() const { return figures_->rank(); }
  int actors() const { return figures_->size(); }
  /// Both end the pass, or an actor for which it was empty would wait here for those that wait for it there.
  void sum(std::span<double> values) {
    end_pass();
    figures_->sum(values);
  }
  void max(std::span<std::int64_t> values) {
    end_pass();
    figures_->max(values);
  }

  /// Of how many units the values are here at the same time, at most; 0: of all, always.
  static std::size_t units_at_once(const FsdpKnobs& knobs) {
    return knobs.release == UnitRelease::after_use        ? 2
           : knobs.release == UnitRelease::after_backward ? std::numeric_limits<std::size_t>::max()
                                                          : 0;
  }
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

  /// Afterwards all of the model's values are what the trainer computes with, until the next pass is announced.
  /// All actors call it; it communicates nothing where no pass and no step came since the last time.
  void gather_all() {
    if (alone_) return;  // from any thread: all of it is here, always
    end_pass();
    if (!whole_) gather();
    for (const std::int64_t count : gathered_at_) jobs_.wait(count);
    whole_ = true;
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
    whole_ = false;
    gather_all();
  }
  /// The other way round: the model's values, all of which were written, alike on every actor, become the
  /// weights.
  void take_parameters() {
    jobs_.wait_all();
    shard_.take_values();
    whole_ = true;
  }

  const ShardLayout& layout() const { return layout_; }
  /// Bytes that this actor sends, and as many it receives, in an optimiser step of so many passes with a
  /// backward pass each, and in a pass without one.
  std::int64_t bytes_a_step(std::int64_t passes) const {
    std::int64_t gathers = 0, reductions = 0;
    for (std::size_t unit = 0; unit < units(); ++unit) {
      gathers +=
          gather_bytes(unit) * (release_ == UnitRelease::after_use && unit != last_travelling() ? 2 : 1);
      reductions += layout_.reduce_bytes(unit);
    }
    return (releases() ? passes : 1) * (gathers + reductions);
  }
  std::int64_t bytes_a_forward() const {
    std::int64_t gathers = 0;
    for (std::size_t unit = 0; unit < units() && releases(); ++unit) gathers += gather_bytes(unit);
    return gathers;
  }
  /// Of the collectives that were begun.
  ShardTraffic traffic() {
    jobs_.wait_all();
    return traffic_;
  }
  /// From now on collectives are spans "all_gather" and "reduce_scatter" of optimiser step s, in a row of
  /// their own. `trace` must outlive this. Call at most once, before anything else.
  template <class Trace>
  void trace_to(Trace& trace) {
    make_tracer_ = [&trace] {
      using Row = decltype(trace.enter(""));
      const std::shared_ptr<Row> row(
          new Row(trace.enter("sharding")));  // this thread's, as long as it records
      return [&trace, row](const char* name, std::int64_t step, std::int64_t begin_ns) {
        trace.record(name, "stage", step, begin_ns, trace::now_ns());
      };
    };
    jobs_.wait(jobs_.post(trace_job));
  }

 private:
  static constexpr std::int64_t trace_job = -1;
  using Stretches = std::vector<std::span<std::byte>>;
  struct Collective {
    bool gathers;
    std::size_t unit;
  };

  using Record = std::function<void(const char* name, std::int64_t step, std::int64_t begin_ns)>;

  static UnitRelease checked(const FsdpKnobs& knobs, bool alone, const Model& model) {
    if (knobs.shard_frozen && knobs.release == UnitRelease::never)
      throw ConfigError(
          "sharding.shard_frozen is true and sharding.release is never; frozen units that are sharded are "
          "gathered for each use, so choose after_use or after_backward");
    if (alone) return UnitRelease::never;
    for (const Parameter& each : model.parameters())
      if (each.device != Device::cpu && knobs.release != UnitRelease::never)
        throw ConfigError(
            "sharding.release is " +
            std::string(enum_names<UnitRelease>[static_cast<std::size_t>(knobs.release)]) + ", and " +
            each.name + " is not in host memory; only units that are there can be released, so choose never");
    for (const Parameter& alias : model.parameters())
      for (const Parameter& each : model.parameters())
        if (each.name == alias.alias_of && each.unit != alias.unit && knobs.release != UnitRelease::never &&
            (each.trainable || knobs.shard_frozen))
          throw ConfigError(alias.name + " is " + each.name +
                            " in another unit, which would be released when " + alias.name +
                            " is read; take sharding.release never for this model");
    return knobs.release;
  }
  /// By unit, what is frozen and neither mapped nor another's alias.
  static std::vector<Stretches> frozen_stretches(const Model& model, bool wanted) {
    std::vector<Stretches> all(model.units().size());
    for (const Parameter& each : model.parameters()) {
      if (!wanted || each.trainable || each.mapped || !each.alias_of.empty()) continue;
      Stretches& unit = all[each.unit];
      if (!unit.empty() && unit.back().data() + unit.back().size() == each.data)
        unit.back() = {unit.back().data(), unit.back().size() + each.bytes()};
      else
        unit.push_back({each.data, each.bytes()});
    }
    return all;
  }

  std::size_t units() const { return layout_.units(); }
  bool trains(std::size_t unit) const { return layout_.part(unit) > 0; }
  bool travels(std::size_t unit) const { return trains(unit) || !frozen_[unit].empty(); }
  bool releases() const { return release_ != UnitRelease::never; }
  /// The one that needs not be released between a forward pass and the backward pass.
  std::size_t last_travelling() const {
    std::size_t last = units();
    while (last > 0 && !travels(last - 1)) --last;
    return last - 1;
  }
  /// An actor's part of a frozen stretch, in bytes, padding included.
  std::size_t frozen_part(std::size_t bytes) const {
    const auto count = static_cast<std::size_t>(actors());
    return (bytes + count - 1) / count;
  }
  std::int64_t gather_bytes(std::size_t unit) const {
    std::int64_t bytes = layout_.gather_bytes(unit);
    for (const auto& stretch : frozen_[unit])
      bytes += (actors() - 1) * static_cast<std::int64_t>(frozen_part(stretch.size()));
    return bytes;
  }
  /// In floats.
  std::size_t largest_padded() const {
    std::size_t largest = layout_.largest_padded();
    for (const Stretches& unit : frozen_)
      for (const auto& stretch : unit)
        if (const std::size_t all = frozen_part(stretch.size()) * static_cast<std::size_t>(actors());
            all != stretch.size())
          largest = std::max(largest, all / 4 + 1);
    return largest;
  }
  /// Visits what a unit gathers: `visit(all, first, count)`, bytes, and those that this actor has.
  template <class Visit>
  void each_stretch(std::size_t unit, Visit visit) const {
    if (trains(unit)) {
      const std::size_t element = bytes_of(shard_.units()[unit].dtype);
      const WeightRange own = layout_.within(unit, actor());
      visit(shard_.units()[unit].values, static_cast<std::size_t>(own.offset) * element,
            static_cast<std::size_t>(own.count) * element);
    }
    for (const auto& stretch : frozen_[unit]) {
      const std::size_t part = frozen_part(stretch.size());
      const std::size_t first = std::min(stretch.size(), part * static_cast<std::size_t>(actor()));
      visit(stretch, first, std::min(part, stretch.size() - first));
    }
  }
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

  // ---- In the thread of the training lane. A pass's collectives stand in plan_ in the order in which every
  // actor makes them; where a model is called, its hooks say how far they may begin.
  void begin_step() {
    std::fill(reduced_.begin(), reduced_.end(), std::uint8_t{0});
    complete_ = false;
  }
  void plan_pass() {
    plan_.clear();
    posted_ = forward_end_ = 0;
    std::fill(used_.begin(), used_.end(), std::uint8_t{0});
    std::fill(ready_.begin(), ready_.end(), std::uint8_t{0});
    if (releases())
      for (std::size_t unit = 0; unit < units(); ++unit)
        if (travels(unit)) plan_.push_back({true, unit});
    forward_end_ = plan_.size();
    if (!pass_.backward || !(releases() || pass_.last)) return;
    if (release_ != UnitRelease::after_use) return add_reductions();
    // A unit's values are gathered before the gradient of the one above it is reduced: they are needed sooner.
    std::size_t above = units();
    for (std::size_t unit = units(); unit-- > 0;) {
      if (!travels(unit)) continue;
      if (above < units()) plan_.push_back({true, unit});
      if (above < units() && trains(above)) plan_.push_back({false, above});
      above = unit;
    }
    if (above < units() && trains(above)) plan_.push_back({false, above});
  }
  void add_reductions() {
    for (std::size_t unit = units(); unit-- > 0;)
      if (trains(unit)) plan_.push_back({false, unit});
  }
  /// Begins collectives up to `end`, but none after a gradient that is not complete.
  void begin_until(std::size_t end) {
    for (; posted_ < end; ++posted_) {
      const auto [gathers, unit] = plan_[posted_];
      // Not used forwards, as a head that a pass does without: there is no gradient to wait for.
      if (!gathers && ready_[unit] == 0 && (used_[unit] != 0 || !releases())) return;
      if (alone_) continue;
      const std::int64_t count = jobs_.post(job(gathers, unit));
      if (gathers) gathered_at_[unit] = count;
    }
  }
  /// What was not begun by the model's calls, as where there were none, and then nothing is in use.
  void end_pass() {
    for (std::size_t unit = 0; in_pass_ && pass_.backward && releases() && unit < units(); ++unit)
      if (trains(unit) && ready_[unit] == 0) check_told(unit);
    std::fill(ready_.begin(), ready_.end(), std::uint8_t{1});
    begin_until(plan_.size());
    if (in_pass_ && releases()) release_all();
    complete_ = complete_ || (pass_.backward && !plan_.empty());
    plan_.clear();
    posted_ = 0;
    in_pass_ = false;
  }
  void before_unit(std::size_t unit, Direction direction) override {
    if (!releases()) {
      used_[unit] = 1;
      return jobs_.wait(gathered_at_[unit]);
    }
    if (!in_pass_) {
      if (whole_) return jobs_.wait(gathered_at_[unit]);
      throw Error(place(std::to_string(unit), shard_.steps()) +
                  ": the model was called outside of the passes that all actors announce, and its values are "
                  "not here; call begin_pass on every actor before each pass, or gather_all");
    }
    if (!travels(unit)) return;
    const bool forward = direction == Direction::forward;
    const std::size_t from = forward ? 0 : forward_end_, to = forward ? forward_end_ : plan_.size();
    std::size_t at = from;  // of the unit's own gather, where it has one
    while (at < to && !(plan_[at].gathers && plan_[at].unit == unit)) ++at;
    if (at < to) {
      std::size_t next = at + 1;  // the gather after it travels meanwhile
      while (next < to && !plan_[next].gathers) ++next;
      begin_until(std::min(next + 1, to));
      if (posted_ <= at)
        throw Error(
            place(std::to_string(unit), shard_.steps()) +
            ": the backward pass uses it before the gradient of unit " + std::to_string(plan_[posted_].unit) +
            " is complete; with sharding.release after_use a model uses its units one after the other "
            "(UnitHooks, model/concept.hpp), so choose after_backward for this one");
    } else if (!forward) {  // still there since the forward pass; the next one travels meanwhile
      begin_until(std::min(forward_end_ + 1, plan_.size()));
    }
    if (used_[unit] != 0 && forward)
      throw Error(
          place(std::to_string(unit), shard_.steps()) +
          ": it is used twice in one announced pass; announce each pass, and let the model use a unit "
          "once in it (UnitHooks, model/concept.hpp), or take sharding.release never");
    used_[unit] = forward ? 1 : 2;  // 2: backwards, too
    jobs_.wait(gathered_at_[unit]);
  }
  /// A gradient was made with values that were here, if the model has said each time that it reads them.
  void check_told(std::size_t unit) {
    const bool once = release_ != UnitRelease::after_use || unit == last_travelling();
    if (alone_ || elsewhere_ || used_[unit] >= (once ? 1 : 2)) return;
    const std::span<const float> gradient = shard_.units()[unit].gradients;
    if (std::any_of(gradient.begin(), gradient.end(), [](float value) { return value != 0; }))
      throw Error(place(std::to_string(unit), shard_.steps()) +
                  ": the model has a gradient for it and did not say that it reads it" +
                  (used_[unit] == 0 ? "" : " in the backward pass") +
                  " (UnitHooks, model/concept.hpp), so its values were not here; let the model say so" +
                  (used_[unit] == 0 ? "" : ", or take sharding.release after_backward"));
  }
  void after_unit(std::size_t unit, Direction direction) override {
    if (!in_pass_ || !releases()) return;
    const bool again = pass_.backward && direction == Direction::forward;
    if (again && (release_ == UnitRelease::after_backward || unit == last_travelling())) return;
    release(unit);
  }
  void gradient_ready(std::size_t unit) override {
    if (!trains(unit)) return;
    if (!in_pass_) {
      late_ = late_ || complete_;
      return;
    }
    if (!pass_.backward || ready_[unit] != 0) {
      late_ = true;
      return;
    }
    if (!releases() && !pass_.last) return;
    check_told(unit);
    ready_[unit] = 1;
    while (posted_ < plan_.size() && posted_ >= forward_end_ && !plan_[posted_].gathers &&
           ready_[plan_[posted_].unit] != 0)
      begin_until(posted_ + 1);
  }
  /// The unit's values here, but for this actor's part, go back.
  void release(std::size_t unit) {
    jobs_.wait(gathered_at_[unit]);
    whole_ = false;
    each_stretch(unit, [](std::span<std::byte> all, std::size_t first, std::size_t count) {
      detail::drop_pages(all.first(first));
      detail::drop_pages(all.subspan(first + count));
    });
  }
  void release_all() {
    jobs_.wait_all();
    for (std::size_t unit = 0; unit < units(); ++unit) release(unit);
  }
  void gather() {
    for (std::size_t unit = 0; !alone_ && unit < units(); ++unit)
      if (travels(unit)) gathered_at_[unit] = jobs_.post(job(true, unit));
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
      record_ = make_tracer_();
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
    if (record_) record_(name, step, begin);
  }
  void gather_unit(std::size_t unit) {
    const auto count = static_cast<std::size_t>(actors());
    each_stretch(unit, [&](std::span<std::byte> all, std::size_t first, std::size_t own) {
      const bool weights = all.data() == shard_.units()[unit].values.data();
      const std::size_t part =
          weights ? layout_.part(unit) * bytes_of(shard_.units()[unit].dtype) : frozen_part(all.size());
      traffic_.gathered += (actors() - 1) * static_cast<std::int64_t>(part);
      if (part * count == all.size()) return shards_->all_gather(all.subspan(first, own), all);
      const std::span<std::byte> staged = std::as_writable_bytes(std::span(padded_)).first(part * count);
      std::copy_n(all.data() + first, own, staged.data() + part * static_cast<std::size_t>(actor()));
      shards_->all_gather(staged.subspan(part * static_cast<std::size_t>(actor()), part), staged);
      std::copy_n(staged.data(), first, all.data());  // its own may be packed meanwhile
      std::copy_n(staged.data() + first + own, all.size() - first - own, all.data() + first + own);
    });
  }
  void reduce_unit(std::size_t unit) {
    const std::size_t part = layout_.part(unit);
    const std::span<float> gradient = shard_.units()[unit].gradients;
    std::span<float> all = gradient;
    if (layout_.padded(unit)) {
      all = std::span(padded_).first(part * static_cast<std::size_t>(actors()));
      std::fill(std::copy(gradient.begin(), gradient.end(), all.begin()), all.end(), 0.0F);
    }
    const std::span<float> sum = std::span(scattered_).subspan(layout_.start(unit), part);
    if (reduced_[unit] == 0) {
      shards_->reduce_scatter(all, sum);
    } else {
      const std::span<float> addend = std::span(addend_).first(part);
      shards_->reduce_scatter(all, addend);
      for (std::size_t i = 0; i < part; ++i) sum[i] += addend[i];
    }
    reduced_[unit] = 1;
    if (releases()) detail::drop_pages(std::as_writable_bytes(gradient));
    traffic_.reduced += layout_.reduce_bytes(unit);
  }

  Model& model_;
  std::shared_ptr<Group> figures_, shards_;  ///< of the training lane's thread, of the collectives' thread
  ShardLayout layout_;
  OwnedPieces shard_;
  WeightPart part_;                        ///< what this actor packs
  bool alone_;                             ///< nothing is communicated
  bool elsewhere_;                         ///< hooks are told when the model's weights were written
  UnitRelease release_;                    ///< never, if alone
  std::vector<Stretches> frozen_;          ///< by unit, those that are sharded
  std::vector<std::int64_t> gathered_at_;  ///< by how many jobs a unit's values are there
  Pass pass_;
  std::vector<Collective> plan_;  ///< of the pass
  std::size_t posted_ = 0, forward_end_ = 0;
  std::vector<std::uint8_t> used_, ready_;  ///< in this pass: a unit is read, its gradient is complete
  std::vector<std::uint8_t> reduced_;       ///< in this step: a part of its gradient is in scattered_
  bool in_pass_ = false;
  bool whole_ = true;  ///< all values are here, or on their way
  bool complete_ = false, late_ = false;
  std::pmr::vector<float> scattered_;  ///< this actor's part of the gradient over all actors, padded
  std::pmr::vector<float> padded_;     ///< a unit on its way, where it has to be padded
  std::pmr::vector<float> addend_;     ///< a pass's part of the gradient, where others came before
  ShardTraffic traffic_;
  std::function<Record()> make_tracer_;
  Record record_;
  detail::JobThread jobs_;  ///< last: its thread ends before anything that it uses
};

template <class Pipeline>
struct machinery<FSDP, Pipeline> {
  using type = ShardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
