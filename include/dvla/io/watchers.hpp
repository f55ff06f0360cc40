// What only watches a run, its logs, events, pictures and the pruning of checkpoints, costs it a warning when it
// fails, and never the run.
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace dvla::io {

/// Thread-safe.
class Watchers {
 public:
  /// `say`: prints one line.
  explicit Watchers(std::function<void(const std::string&)> say) : say_(std::move(say)) {}

  /// Calls `work`, which writes `what`. The first failure is told; later ones are quiet, and every call tries.
  template <class Work>
  void attempt(const std::string& what, Work work) {
    try {
      work();
    } catch (const std::exception& why) {
      tell(what, what + " may lack something from here on: " + why.what());
    }
  }
  /// Says `warning`, the first of its kind only.
  void tell(const std::string& kind, const std::string& warning) {
    const std::scoped_lock lock(mutex_);
    if (told_.insert(kind).second) say_("warning: " + warning);
  }

 private:
  std::function<void(const std::string&)> say_;
  std::mutex mutex_;
  std::set<std::string> told_;
};

}  // namespace dvla::io
