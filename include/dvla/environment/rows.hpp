// Rows: which environments of a batch one call is about, the cores that it has, and what went wrong in any of
// them. What a row throws stays in that row: the others go on. Design: "Rows that fail". Torch-free.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/arena.hpp"
#include "dvla/core/error.hpp"

namespace dvla {

/// Of each row of a batch: what it failed of, if it did. Different rows may be marked from different threads
/// at once; all else from one.
class RowFailures {
 public:
  explicit RowFailures(std::int64_t rows)
      : why_(static_cast<std::size_t>(rows)), at_work_(static_cast<std::size_t>(rows)) {}

  /// The first reason stays.
  void add(std::int64_t row, std::string why) {
    std::string& place = why_[static_cast<std::size_t>(row)];
    if (place.empty()) place = why.empty() ? "it gave no reason" : std::move(why);
  }
  std::int64_t size() const { return std::ssize(why_); }
  bool has(std::int64_t row) const { return !why(row).empty(); }
  const std::string& why(std::int64_t row) const { return why_[static_cast<std::size_t>(row)]; }
  void clear() {
    for (std::string& each : why_) each.clear();
  }

  /// Whether Rows::for_each is in the body of this row. Any thread may ask.
  bool at_work(std::int64_t row) const {
    return at_work_[static_cast<std::size_t>(row)].load(std::memory_order_relaxed);
  }

 private:
  friend class Rows;
  std::vector<std::string> why_;
  std::vector<std::atomic<bool>> at_work_;
};

/// One call's rows: indices into the batch, ascending, each once. All of it must outlive this.
class Rows {
 public:
  /// Throws Error where `failures` has no place for one of them.
  Rows(std::span<const std::int64_t> rows, Arena& arena, RowFailures& failures)
      : rows_(rows), arena_(arena), failures_(failures) {
    if (!rows.empty()) check("Rows", failures.size());
  }

  std::int64_t count() const { return std::ssize(rows_); }
  std::int64_t operator[](std::int64_t i) const { return rows_[static_cast<std::size_t>(i)]; }
  std::span<const std::int64_t> indices() const { return rows_; }
  Arena& arena() const { return arena_; }
  RowFailures& failures() const { return failures_; }

  /// body(row, i), row = (*this)[i], on the lane's cores; `block` of them one after the other, where one alone
  /// is less than a microsecond's work. A body that throws has failed in its row, and only there.
  template <class Body>
  void for_each(const Body& body, std::int64_t block = 1) const {
    arena_.for_each((count() + block - 1) / block, [&](std::int64_t part) {
      for (std::int64_t i = part * block; i < std::min(count(), (part + 1) * block); ++i) {
        std::atomic<bool>& at_work = failures_.at_work_[static_cast<std::size_t>((*this)[i])];
        at_work.store(true, std::memory_order_relaxed);
        try {
          body((*this)[i], i);
        } catch (...) {
          failures_.add((*this)[i], detail::error_text(std::current_exception()));
        }
        at_work.store(false, std::memory_order_relaxed);
      }
    });
  }
  /// For an environment's own check: Error where a row is not among `size`.
  void check(std::string_view who, std::int64_t size) const {
    if (!rows_.empty() && (rows_.front() < 0 || rows_.back() >= size))
      throw Error(std::string(who) + ": row " +
                  std::to_string(rows_.front() < 0 ? rows_.front() : rows_.back()) + " of a batch of " +
                  std::to_string(size) + "; ask for rows that exist");
  }

 private:
  std::span<const std::int64_t> rows_;
  Arena& arena_;
  RowFailures& failures_;
};

}  // namespace dvla
