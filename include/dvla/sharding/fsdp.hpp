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
class ShardedWeights final : public OwnedPieces, private UnitHooks {
 public:
  /// All actors make theirs at the same time, with models of the same extents and the same frozen weights, and
  /// begin with the first one's trainable ones. Masters, moments and buffers live in `memory` (the model pool).
  /// `model` must outlive this, and is hooked as long as it lives. Throws ConfigError where the knobs are not
  /// for this model.
  ShardedWeights(Model& model, std::pmr::memory_resource& memory, const FsdpKnobs& knobs = {},
                 const GroupSource& groups = lone_group)
      : OwnedPieces(groups("figures"), units_to_train(model), true, memory),
        model_(model),
        shards_(groups("shards")),
        alone_(actors() == 1),
        elsewhere_(std::ranges::any_of(model.parameters(),
                                       [](const Parameter& each) { return each.device != Device::cpu; })),
        release_(release_of(knobs, actors(), model)),
        stretches_(stretches(!alone_ && knobs.shard_frozen)),
        gathered_(units()),
        used_(units()),
        ready_(units()),
        reduced_(units()),
        padded_(&memory),
        addend_(&memory) {
    std::size_t padded = 0, largest = 0;  // in floats
    for (std::size_t unit = 0; unit < units(); ++unit) {
      const std::size_t part = layout_.part(unit), all = part * static_cast<std::size_t>(actors());
      sums_.emplace_back(alone_ ? 0 : part, 0.0F, &memory);
      largest = std::max(largest, part);
      if (all != units_[unit].gradients.size()) padded = std::max(padded, all);
      for (const Stretch& each : stretches_[unit])
        if (padded_bytes(each) != each.all.size()) padded = std::max(padded, (padded_bytes(each) + 3) / 4);
    }
    padded_.resize(padded);
    if (releases()) addend_.resize(largest);
    weights_written(model_);
    model_.hook_units(this);
  }
  ~ShardedWeights() { model_.hook_units(nullptr); }

  /// Begins an optimiser step's gradient.
  void zero_gradients() {
    end_pass();
    if (complete_) jobs_.wait_all();  // a step that was begun and given up
    begin_step();
    late_ = false;
    if (!releases()) return OwnedPieces::zero_gradients();
    for (const WeightUnit& unit : units_) detail::drop_pages(std::as_writable_bytes(unit.gradients));
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
          place("any", steps()),
          ": a backward pass came after the one announced as the last, or was not announced; announce "
          "the last one of an optimiser step only, and zero the gradients before the next one");
    const auto gradient_of = [this](std::size_t unit) { return gradient_here(unit); };
    std::array squares{squared_gradient(gradient_of)};
    group_->sum(squares);
    const double norm = std::sqrt(squares[0]);
    if (!std::isfinite(norm)) throw_not_finite(norm);
    begin_step();
    step_pieces(gradient_of, knobs, clip_scale(norm, knobs.max_grad_norm, steps()));
    if (releases()) {
      release_all();
    } else {
      gather();  // which the model's next forward pass waits for, unit by unit
    }
    return norm;
  }

  /// Both end the pass, or an actor for which it was empty would wait here for those that wait for it there.
  void sum(std::span<double> values) {
    end_pass();
    group_->sum(values);
  }
  void max(std::span<std::int64_t> values) {
    end_pass();
    group_->max(values);
  }

  /// Throws ConfigError where the knobs are not for a model with these parameters.
  static void check(const FsdpKnobs& knobs, int actors, std::span<const Parameter> parameters) {
    if (knobs.shard_frozen && knobs.release == UnitRelease::never)
      throw ConfigError(
          "sharding.shard_frozen is true and sharding.release is never; frozen units that are sharded are "
          "gathered for each use, so choose after_use or after_backward");
    if (actors == 1 || knobs.release == UnitRelease::never) return;
    for (const Parameter& each : parameters)
      if (each.device != Device::cpu)
        throw ConfigError(
            "sharding.release is ", enum_name(knobs.release), ", and ", each.name,
            " is not in host memory; only units that are there can be released, so choose never");
    for (const Parameter& alias : parameters)
      for (const Parameter& each : parameters)
        if (each.name == alias.alias_of && each.unit != alias.unit && (each.trainable || knobs.shard_frozen))
          throw ConfigError(alias.name, " is ", each.name, " in another unit, which would be released when ",
                            alias.name, " is read; take sharding.release never for this model");
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
    return ShardLayout(model.units(), actors).parts();
  }

  /// Afterwards all of the model's values are what the trainer computes with, until the next pass is announced.
  /// All actors call it; it communicates nothing where no pass and no step came since the last time.
  void gather_all() {
    if (alone_) return;  // from any thread: all of it is here, always
    end_pass();
    if (!whole_) gather();
    for (std::size_t unit = 0; unit < units(); ++unit) wait_for(unit);
    whole_ = true;
  }

  /// Also where a collective has failed: what is this actor's own is whole.
  std::vector<ShardPiece> pieces() const {
    jobs_.settle();
    return OwnedPieces::pieces();
  }
  /// Brings the model up to date with masters that were written. All actors call it.
  void refresh() {
    jobs_.wait_all();
    give_values();
    whole_ = false;
    gather_all();
  }
  void take_parameters() {
    jobs_.wait_all();
    OwnedPieces::take_parameters();
    whole_ = true;
  }

  const ShardLayout& layout() const { return layout_; }
  /// Of the collectives that were begun.
  ShardTraffic traffic() {
    jobs_.wait_all();
    return traffic_;
  }
  /// From now on collectives are spans "all_gather" and "reduce_scatter" of optimiser step s, in a row of
  /// their own. `trace` must outlive this. Call at most once, before anything else.
  template <class Trace>
  void trace_to(Trace& trace) {
    jobs_
        .post([this, &trace] {
          using Row = decltype(trace.enter(""));
          const std::shared_ptr<Row> row(
              new Row(trace.enter("sharding")));  // this thread's, as long as it records
          record_ = [&trace, row](const char* name, std::int64_t step, std::int64_t begin_ns) {
            trace.record(name, "stage", step, begin_ns, trace::now_ns());
          };
        })
        .get();
  }

 private:
  /// Bytes of a unit that are cut into a part for each actor, of which the last ones may be shorter, or empty.
  struct Stretch {
    std::span<std::byte> all;
    std::size_t part = 0;
  };
  struct Collective {
    bool gathers;
    std::size_t unit;
  };

  static UnitRelease release_of(const FsdpKnobs& knobs, int actors, const Model& model) {
    check(knobs, actors, model.parameters());
    return actors == 1 ? UnitRelease::never : knobs.release;
  }
  /// By unit, what is gathered: if `frozen`, what is frozen and neither mapped nor another's alias; and what
  /// trains.
  std::vector<std::vector<Stretch>> stretches(bool frozen) const {
    std::vector<std::vector<Stretch>> all(units());
    for (const Parameter& each : model_.parameters()) {
      if (!frozen || each.trainable || each.mapped || !each.alias_of.empty()) continue;
      std::vector<Stretch>& unit = all[each.unit];
      if (unit.empty() || unit.back().all.data() + unit.back().all.size() != each.data)
        unit.push_back({{each.data, 0}});
      unit.back().all = {unit.back().all.data(), unit.back().all.size() + each.bytes()};
    }
    const auto count = static_cast<std::size_t>(actors());
    for (std::size_t unit = 0; unit < units(); ++unit) {
      for (Stretch& each : all[unit]) each.part = (each.all.size() + count - 1) / count;
      if (trains(unit))
        all[unit].push_back({units_[unit].values, layout_.part(unit) * bytes_of(units_[unit].dtype)});
    }
    return all;
  }
  std::size_t padded_bytes(const Stretch& each) const {
    return each.part * static_cast<std::size_t>(actors());
  }
  /// Where this actor's part begins, and its size without padding.
  std::pair<std::size_t, std::size_t> own(const Stretch& each) const {
    const std::size_t first = std::min(each.all.size(), each.part * static_cast<std::size_t>(actor()));
    return {first, std::min(each.part, each.all.size() - first)};
  }

  std::size_t units() const { return layout_.units(); }
  bool trains(std::size_t unit) const { return layout_.part(unit) > 0; }
  bool travels(std::size_t unit) const { return !stretches_[unit].empty(); }
  bool releases() const { return release_ != UnitRelease::never; }
  /// The one that needs not be released between a forward pass and the backward pass.
  std::size_t last_travelling() const {
    std::size_t last = units();
    while (last > 0 && !travels(last - 1)) --last;
    return last - 1;
  }
  /// This actor's part of a unit's gradient over all actors.
  std::span<const float> gradient_here(std::size_t unit) const {
    if (alone_) return units_[unit].gradients;
    return std::span(sums_[unit]).first(static_cast<std::size_t>(layout_.within(unit, actor()).count));
  }
  std::string place(const std::string& unit, std::int64_t step) const {
    return detail::concat("actor ", actor(), ", unit ", unit, " of ", units(), ", optimiser step ", step);
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
      post(gathers, unit);
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
      return wait_for(unit);
    }
    if (!in_pass_) {
      if (whole_) return wait_for(unit);
      throw Error(place(std::to_string(unit), steps()),
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
            place(std::to_string(unit), steps()), ": the backward pass uses it before the gradient of unit ",
            plan_[posted_].unit,
            " is complete; with sharding.release after_use a model uses its units one after the other "
            "(UnitHooks, model/concept.hpp), so choose after_backward for this one");
    } else if (!forward) {  // still there since the forward pass; the next one travels meanwhile
      begin_until(std::min(forward_end_ + 1, plan_.size()));
    }
    if (used_[unit] != 0 && forward)
      throw Error(
          place(std::to_string(unit), steps()),
          ": it is used twice in one announced pass; announce each pass, and let the model use a unit "
          "once in it (UnitHooks, model/concept.hpp), or take sharding.release never");
    used_[unit] = forward ? 1 : 2;  // 2: backwards, too
    wait_for(unit);
  }
  /// A gradient was made with values that were here, if the model has said each time that it reads them.
  void check_told(std::size_t unit) {
    const bool once = release_ != UnitRelease::after_use || unit == last_travelling();
    if (alone_ || elsewhere_ || used_[unit] >= (once ? 1 : 2)) return;
    const std::span<const float> gradient = units_[unit].gradients;
    if (std::any_of(gradient.begin(), gradient.end(), [](float value) { return value != 0; }))
      throw Error(place(std::to_string(unit), steps()),
                  ": the model has a gradient for it and did not say that it reads it",
                  used_[unit] == 0 ? "" : " in the backward pass",
                  " (UnitHooks, model/concept.hpp), so its values were not here; let the model say so",
                  used_[unit] == 0 ? "" : ", or take sharding.release after_backward");
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
    wait_for(unit);
    whole_ = false;
    for (const Stretch& each : stretches_[unit]) {
      const auto [first, count] = own(each);
      detail::drop_pages(each.all.first(first));
      detail::drop_pages(each.all.subspan(first + count));
    }
  }
  void release_all() {
    jobs_.wait_all();
    for (std::size_t unit = 0; unit < units(); ++unit) release(unit);
  }
  void gather() {
    for (std::size_t unit = 0; !alone_ && unit < units(); ++unit)
      if (travels(unit)) post(true, unit);
    weights_written(model_);  // a model that computes elsewhere reads them now, and asks before_unit first
  }
  void post(bool gathers, std::size_t unit) {
    const auto done = jobs_.post([this, gathers, unit, step = steps()] { communicate(gathers, unit, step); });
    if (gathers) gathered_[unit] = done;
  }
  /// Until the unit's values are here.
  void wait_for(std::size_t unit) {
    if (gathered_[unit].valid()) gathered_[unit].get();
  }
  [[noreturn]] void throw_not_finite(double norm) {
    std::string where = "in another actor's shard";
    for (std::size_t unit = units(); unit-- > 0;)
      if (trains(unit) && !std::isfinite(squared_norm(gradient_here(unit))))
        where = "here first in unit " + std::to_string(unit);
    throw Error(place("any", steps()), ": the gradient over all actors has norm ", std::to_string(norm),
                " (the NaN or infinity is ", where,
                ") and was not applied: look for a diverged loss, or lower the learning rate");
  }

  // ---- In the thread of the collectives.
  void communicate(bool gathers, std::size_t unit, std::int64_t step) {
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
    for (const Stretch& each : stretches_[unit]) {
      const auto [first, count] = own(each);
      traffic_.gathered += (actors() - 1) * static_cast<std::int64_t>(each.part);
      if (padded_bytes(each) == each.all.size()) {
        shards_->all_gather(each.all.subspan(first, count), each.all);
        continue;
      }
      const auto staged = std::as_writable_bytes(std::span(padded_)).first(padded_bytes(each));
      const auto mine = staged.subspan(each.part * static_cast<std::size_t>(actor()), each.part);
      std::copy_n(each.all.data() + first, count, mine.data());
      shards_->all_gather(mine, staged);
      std::copy_n(staged.data(), first, each.all.data());  // its own may be packed meanwhile
      std::copy(staged.data() + first + count, staged.data() + each.all.size(),
                each.all.data() + first + count);
    }
  }
  void reduce_unit(std::size_t unit) {
    const std::size_t part = layout_.part(unit), whole = part * static_cast<std::size_t>(actors());
    const std::span<float> gradient = units_[unit].gradients;
    std::span<float> all = gradient;
    if (whole != gradient.size()) {
      all = std::span(padded_).first(whole);
      std::fill(std::copy(gradient.begin(), gradient.end(), all.begin()), all.end(), 0.0F);
    }
    const std::span<float> sum(sums_[unit]);
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
  std::shared_ptr<Group> shards_;                  ///< of the collectives' thread
  bool alone_;                                     ///< nothing is communicated
  bool elsewhere_;                                 ///< hooks are told when the model's weights were written
  UnitRelease release_;                            ///< never, if alone
  std::vector<std::vector<Stretch>> stretches_;    ///< by unit
  std::vector<detail::JobThread::Done> gathered_;  ///< when a unit's values are here
  Pass pass_;
  std::vector<Collective> plan_;  ///< of the pass
  std::size_t posted_ = 0, forward_end_ = 0;
  std::vector<std::uint8_t> used_, ready_;  ///< in this pass: a unit is read, its gradient is complete
  std::vector<std::uint8_t> reduced_;       ///< in this step: a part of its gradient is in sums_
  bool in_pass_ = false;
  bool whole_ = true;  ///< all values are here, or on their way
  bool complete_ = false, late_ = false;
  std::vector<std::pmr::vector<float>> sums_;  ///< by unit, this actor's part of all actors' gradient, padded
  std::pmr::vector<float> padded_;             ///< a unit on its way, where it has to be padded
  std::pmr::vector<float> addend_;             ///< a pass's part of the gradient, where others came before
  ShardTraffic traffic_;
  std::function<void(const char* name, std::int64_t step, std::int64_t begin_ns)> record_;
  detail::JobThread jobs_;  ///< last: its thread ends before anything that it uses
};

template <class Pipeline>
struct machinery<FSDP, Pipeline> {
  using type = ShardedWeights<machinery_t<typename Pipeline::model, Pipeline>>;
};

}  // namespace dvla
