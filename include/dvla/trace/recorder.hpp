// The trace: a ring of spans per thread, lock-free to write, of fixed capacity; the oldest spans are
// overwritten and the number of those is reported. About 60 ns a span (two clock reads). For the file see
// chrome.hpp, for the figures report.hpp, for no trace at all off.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/trace/span.hpp"

namespace dvla::trace {

/// Thread-safety: enter, span, record from any thread at any time (the first span of a thread without a row
/// takes a lock and allocates its ring; after that a span takes neither). spans, rows, dropped, clear from
/// any thread, also while others write. It must outlive its scopes.
class Recorder {
  struct ring;
  struct pinned {
    pinned() = default;
    pinned(const pinned&) = delete;
    pinned& operator=(const pinned&) = delete;
  };

 public:
  static constexpr bool enabled = true;
  static constexpr std::size_t max_rows =
      256;  ///< threads with a ring; spans of further ones count as dropped

  /// `capacity`: spans kept per thread (48 bytes each). Throws ConfigError if it is 0.
  explicit Recorder(std::size_t capacity = 1 << 16) : capacity_(capacity), id_(next_id_.fetch_add(1)) {
    if (capacity == 0) throw ConfigError("trace capacity is 0, choose at least 1 span a thread");
    rings_.reserve(max_rows);
  }

  /// This thread writes to the row `name` for as long as it lives; one thread at a time per row. A row whose
  /// thread is gone is continued, so lanes that are started anew keep their rows.
  struct row_scope : pinned {
    ~row_scope() { recorder.leave(mine, outer); }
    Recorder& recorder;
    ring *mine, *outer;
  };

  /// A span from here to the end of the scope.
  struct span_scope : pinned {
    ~span_scope() { recorder.record(name, category, batch, begin_ns, now_ns()); }
    Recorder& recorder;
    const char *name, *category;
    std::int64_t batch, begin_ns;
  };

  [[nodiscard]] row_scope enter(const char* name) {
    const std::lock_guard lock(rows_);
    ring* outer = owned_by(std::this_thread::get_id());
    if (outer) outer->owner = {};
    ring* mine = nullptr;
    for (auto& each : rings_)
      if (each->name == name && each->owner == std::thread::id{}) mine = each.get();
    if (!mine) mine = add(name);
    if (mine) mine->owner = std::this_thread::get_id();
    cache_ = {id_, mine};
    return {{}, *this, mine, outer};
  }

  [[nodiscard]] span_scope span(const char* name, std::int64_t batch, const char* category = "stage") {
    return {{}, *this, name, category, batch, now_ns()};
  }

  /// A span that was timed elsewhere.
  void record(const char* name, const char* category, std::int64_t batch, std::int64_t begin_ns,
              std::int64_t end_ns) {
    ring* mine = cache_.recorder == id_ ? cache_.mine : find();
    if (!mine) {
      homeless_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    const std::int64_t index = mine->written.load(std::memory_order_relaxed);
    slot& to = mine->slots[static_cast<std::size_t>(index) % (capacity_ + 1)];
    to.name.store(name, std::memory_order_release);  // why release and not relaxed: see read()
    to.category.store(category, std::memory_order_release);
    to.batch.store(batch, std::memory_order_release);
    to.begin_ns.store(begin_ns, std::memory_order_release);
    to.end_ns.store(end_ns, std::memory_order_release);
    mine->written.store(index + 1, std::memory_order_release);
  }

  /// What the rings hold: row by row, oldest first.
  std::vector<span_record> spans() const {
    const std::lock_guard lock(rows_);
    std::vector<span_record> all;
    for (std::size_t row = 0; row < rings_.size(); ++row)
      read(*rings_[row], static_cast<std::int32_t>(row), all);
    return all;
  }
  std::vector<std::string> rows() const {
    const std::lock_guard lock(rows_);
    std::vector<std::string> names;
    for (const auto& each : rings_) names.push_back(each->name);
    return names;
  }
  /// Spans that were overwritten, or had no ring, since the start or the last clear().
  std::int64_t dropped() const {
    const std::lock_guard lock(rows_);
    std::int64_t count = homeless_.load(std::memory_order_relaxed);
    for (const auto& each : rings_) {
      const std::int64_t kept_or_lost = each->written.load(std::memory_order_acquire) - each->cleared;
      count += std::max<std::int64_t>(0, kept_or_lost - static_cast<std::int64_t>(capacity_));
    }
    return count;
  }
  /// Forgets all spans so far; rows stay.
  void clear() {
    const std::lock_guard lock(rows_);
    for (auto& each : rings_) each->cleared = each->written.load(std::memory_order_acquire);
    homeless_.store(0, std::memory_order_relaxed);
  }

 private:
  struct slot {
    std::atomic<const char*> name{nullptr}, category{nullptr};
    std::atomic<std::int64_t> batch{0}, begin_ns{0}, end_ns{0};
  };
  struct ring {
    std::string name;
    std::unique_ptr<slot[]> slots;  // one more than the capacity: the one that is being written
    std::thread::id owner{};        // under rows_
    std::int64_t cleared = 0;       // under rows_
    std::atomic<std::int64_t> written{0};
  };
  struct cached {
    std::uint64_t recorder;
    ring* mine;
  };

  ring* owned_by(std::thread::id thread) const {
    for (const auto& each : rings_)
      if (each->owner == thread) return each.get();
    return nullptr;
  }
  ring* add(std::string name) {
    if (rings_.size() == max_rows) return nullptr;
    auto fresh = std::make_unique<ring>();
    fresh->name = std::move(name);
    fresh->slots = std::make_unique<slot[]>(capacity_ + 1);
    return rings_.emplace_back(std::move(fresh)).get();
  }
  ring* find() {  // first span of this thread here, or another recorder was used in between
    const std::lock_guard lock(rows_);
    ring* mine = owned_by(std::this_thread::get_id());
    if (!mine && (mine = add("thread " + std::to_string(rings_.size()))))
      mine->owner = std::this_thread::get_id();
    cache_ = {id_, mine};
    return mine;
  }
  void leave(ring* mine, ring* outer) {
    const std::lock_guard lock(rows_);
    if (mine) mine->owner = {};
    if (outer) outer->owner = std::this_thread::get_id();
    cache_ = outer ? cached{id_, outer} : cached{};
  }

  // Reads a ring that may be written meanwhile. A slot that held span i when `written` was read may hold a
  // newer one by the time it is copied. Each field is stored with release and loaded with acquire, so whoever
  // sees a field of span j also sees `written` >= j afterwards; span j lives where span j - (capacity + 1)
  // was: that one is left out.
  void read(const ring& from, std::int32_t row, std::vector<span_record>& into) const {
    const auto places = static_cast<std::int64_t>(capacity_) + 1;
    const std::int64_t end = from.written.load(std::memory_order_acquire);
    const std::int64_t first = std::max(from.cleared, end - places + 1);
    const std::size_t old_size = into.size();
    for (std::int64_t index = std::max<std::int64_t>(0, first); index < end; ++index) {
      const slot& at = from.slots[static_cast<std::size_t>(index % places)];
      into.push_back({at.name.load(std::memory_order_acquire), at.category.load(std::memory_order_acquire),
                      at.batch.load(std::memory_order_acquire), at.begin_ns.load(std::memory_order_acquire),
                      at.end_ns.load(std::memory_order_acquire), row});
    }
    const std::int64_t torn = from.written.load(std::memory_order_acquire) - places + 1 - first;
    if (torn > 0) {
      const auto begin = into.begin() + static_cast<std::ptrdiff_t>(old_size);
      into.erase(begin, begin + std::min<std::ptrdiff_t>(torn, into.end() - begin));
    }
  }

  inline static std::atomic<std::uint64_t> next_id_{1};
  inline static thread_local cached cache_{};

  const std::size_t capacity_;
  const std::uint64_t id_;
  mutable std::mutex rows_;
  std::vector<std::unique_ptr<ring>> rings_;
  std::atomic<std::int64_t> homeless_{0};
};

}  // namespace dvla::trace
