// The memory that a rank is about to take, by kind, computed from shapes before any of it is allocated: what
// the run prints, what its pools bring into place, and what is refused where the machine or its cgroup has not
// so much. Design: "Weights". Says nothing about the process itself (code, libraries, the simulator's own
// allocations) and nothing about a GPU's memory, whose pools have bounds of their own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/process_limits.hpp"
#include "dvla/core/text.hpp"
#include "dvla/core/weights.hpp"

namespace dvla {

/// Who gives the memory. A mapped file's pages are the system's, which takes them back where it needs them.
enum class MemoryPlace : std::uint8_t { model_pool, environment_pool, heap, file };

struct MemoryItem {
  std::string kind;  ///< "frozen weights", "gradients", ...
  MemoryPlace place = MemoryPlace::model_pool;
  std::size_t bytes = 0;
};

class MemoryPlan {
 public:
  /// Items of 0 bytes are left out.
  void add(std::string kind, MemoryPlace place, std::size_t bytes) {
    if (bytes > 0) items_.push_back({std::move(kind), place, bytes});
  }

  /// A line before the items, for people.
  void note(std::string line) { notes_.push_back(std::move(line)); }

  /// Addresses of the model pool that are taken and have no memory most of the time.
  void add_addresses(std::size_t bytes) { addresses_ += bytes; }

  const std::vector<MemoryItem>& items() const { return items_; }
  std::size_t addresses() const { return addresses_; }
  std::size_t total() const {
    return sum([](const MemoryItem& item) { return item.place != MemoryPlace::file; });
  }
  std::size_t of(MemoryPlace place) const {
    return sum([&](const MemoryItem& item) { return item.place == place; });
  }

  /// Throws ConfigError, with the three largest items, unless it fits into `available` bytes.
  void check(std::size_t available) const {
    if (total() <= available) return;
    std::vector<MemoryItem> largest = items_;
    std::stable_sort(largest.begin(), largest.end(),
                     [](const MemoryItem& a, const MemoryItem& b) { return a.bytes > b.bytes; });
    std::string what;
    for (std::size_t i = 0; i < std::min<std::size_t>(largest.size(), 3); ++i)
      what += (i > 0 ? ", " : "") + largest[i].kind + " " + mebibytes(largest[i].bytes);
    throw ConfigError("the run would take ", mebibytes(total()), " of memory, and ", mebibytes(available),
                      " can be had here; its largest parts are ", what);
  }

  /// A line a note and an item, and one for the sum.
  std::string text() const {
    std::string out = "memory that is about to be taken:";
    for (const std::string& note : notes_) out += "\n  " + note;
    for (const MemoryItem& item : items_)
      out +=
          printed("\n  %-34s %10s  %s", item.kind.c_str(), mebibytes(item.bytes).c_str(), name(item.place));
    return out + printed("\n  %-34s %10s  beside the process itself", "in all", mebibytes(total()).c_str());
  }

  static const char* name(MemoryPlace place) {
    return place == MemoryPlace::model_pool         ? "model pool"
           : place == MemoryPlace::environment_pool ? "environment pool"
           : place == MemoryPlace::heap             ? "heap"
                                                    : "mapped file, not counted";
  }

 private:
  template <class Which>
  std::size_t sum(Which which) const {
    std::size_t bytes = 0;
    for (const MemoryItem& item : items_)
      if (which(item)) bytes += item.bytes;
    return bytes;
  }

  std::vector<MemoryItem> items_;
  std::vector<std::string> notes_;
  std::size_t addresses_ = 0;
};

/// What of a model's weights and of their training lies in the model pool.
struct WeightsPlan {
  std::span<const Parameter> parameters;
  int copies = 0;       ///< beside the model itself, of what is trainable
  bool trains = false;  ///< gradients, masters and moments are held
  int actors = 1;       ///< that share masters and moments; 1: each has all
  /// Whether units are released between uses (sharding/fsdp.hpp): only so many of the largest, and this
  /// actor's part of all, then have values, and so many gradients. 0: all of them have, always.
  std::size_t units_at_once = 0;
  bool shard_frozen = false;
};

/// How many numbers there are, in how many tensors.
inline std::string parameters_text(std::span<const Parameter> parameters) {
  std::int64_t all = 0, trainable = 0, tensors = 0;
  for (const Parameter& each : parameters) {
    if (!each.alias_of.empty()) continue;
    all += each.count();
    trainable += each.trainable ? each.count() : 0;
    ++tensors;
  }
  return printed("parameters: %lld in %lld tensors, of which %lld train", static_cast<long long>(all),
                 static_cast<long long>(tensors), static_cast<long long>(trainable));
}

inline void plan_weights(MemoryPlan& plan, const WeightsPlan& weights) {
  std::size_t frozen = 0, mapped = 0, trainable = 0, elements = 0, in_16_bits = 0;
  std::vector<std::size_t> values, gradients,
      sharded;  // by unit; values that are released, of them frozen ones
  for (const Parameter& each : weights.parameters) {
    if (!each.alias_of.empty()) continue;
    (each.trainable ? trainable : each.mapped ? mapped : frozen) += each.bytes();
    values.resize(std::max(values.size(), each.unit + 1));
    gradients.resize(values.size());
    sharded.resize(values.size());
    if (each.trainable || (weights.shard_frozen && !each.mapped)) values[each.unit] += each.bytes();
    if (!each.trainable && weights.shard_frozen && !each.mapped) sharded[each.unit] += each.bytes();
    if (!each.trainable) continue;
    elements += static_cast<std::size_t>(each.count());
    gradients[each.unit] += 4 * static_cast<std::size_t>(each.count());
    if (each.dtype != Dtype::f32) in_16_bits += static_cast<std::size_t>(each.count());
  }
  const MemoryPlace pool = MemoryPlace::model_pool;
  const auto actors = static_cast<std::size_t>(weights.actors);
  const auto share = [&](std::size_t all) { return (all + actors - 1) / actors; };
  const auto largest = [](std::vector<std::size_t> units, std::size_t count) {
    std::sort(units.begin(), units.end(), std::greater<>());
    units.resize(std::min(units.size(), count));
    return std::accumulate(units.begin(), units.end(), std::size_t{0});
  };
  const auto padded = [&](std::size_t bytes, std::size_t element) {  // 0: it needs not be
    const std::size_t part = share(bytes / element) * element;
    return bytes == part * actors ? 0 : part * actors;
  };
  const bool releases = weights.trains && actors > 1 && weights.units_at_once > 0;
  const std::size_t all = std::accumulate(values.begin(), values.end(), std::size_t{0});
  const std::size_t kept_frozen = releases && weights.shard_frozen ? share(frozen) : frozen,
                    kept = releases ? share(trainable) : trainable,
                    gathered =
                        releases ? std::min(largest(values, weights.units_at_once), all - share(all)) : 0,
                    gradient = !weights.trains ? 0
                               : releases      ? largest(gradients, weights.units_at_once)
                                               : 4 * elements;
  plan.add("frozen weights", MemoryPlace::file, mapped);
  plan.add("frozen weights", pool, kept_frozen);
  plan.add("trainable weights", pool, kept);
  plan.add("units that are gathered", pool, gathered);
  if (weights.trains) {
    plan.add("gradients", pool, gradient + (actors > 1 ? 4 * share(elements) : 0));
    plan.add("masters", pool, 4 * share(in_16_bits));  // in float32 they are the model's own values
    plan.add("moments", pool, 8 * share(elements));
  }
  if (weights.trains && actors > 1) {
    std::size_t buffer = 0;
    for (std::size_t unit = 0; unit < values.size(); ++unit)
      buffer = std::max({buffer, padded(gradients[unit], 4), releases ? padded(sharded[unit], 1) : 0});
    const std::size_t received = largest(gradients, 1);
    plan.add("a unit on its way", pool, buffer + (releases ? 4 * share(received / 4) : 0));
    plan.add("a gradient that is received", MemoryPlace::heap, received);  // C10dGroup's
  }
  if (releases) {
    const std::size_t whole = frozen + trainable, at_work = kept_frozen + kept + gathered + gradient;
    // While it is made, for a checkpoint, at the end, and where the trainer's own model samples.
    if (whole > at_work) plan.add("the model, when it is whole", pool, whole - at_work);
    plan.add_addresses(whole + 4 * elements - std::min(whole + 4 * elements, std::max(whole, at_work)));
  }
  plan.add("copies of them to sample from", pool, static_cast<std::size_t>(weights.copies) * trainable);
}

}  // namespace dvla
