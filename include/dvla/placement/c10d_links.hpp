// Links: connections among some ranks on c10d's Gloo, one ProcessGroupGloo, zero-copy sends and receives on
// the caller's spans. What C10dCluster's channels and groups are made of; nobody else includes this.
// Gloo tells a call that waits in the middle of its bytes nothing of its peer's death (measured: it waits to
// its deadline, only calls not yet begun are told). So every peer has a receive that is never answered, a
// *sentinel*; a thread waits in it, and wakes the others.
// Compiled with USE_C10D_GLOO and the headers of Debian's libgloo-dev; never linked with libgloo (dvla::c10d
// in CMake does both).
#pragma once

#ifndef USE_C10D_GLOO
#error "dvla: this header needs -DUSE_C10D_GLOO and Gloo's headers; link the CMake target dvla::c10d"
#endif

#include <ATen/ops/from_blob.h>
#include <gloo/context.h>

#include <atomic>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include "dvla/handoff/waiting.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::detail {

using Clock = std::chrono::steady_clock;

/// The first sentence of what torch or Gloo says, without source file and backtrace.
inline std::string torch_words(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  if (text.starts_with('[')) text.erase(0, std::min(text.find("] ") + 2, text.size()));
  text.erase(std::min({text.find('\n'), text.find(". "), text.size()}));
  return text.empty() ? "no reason given" : text;
}

/// For torch's waits: at least 1 ms, at most a year (longer ones overflow there).
inline std::chrono::milliseconds torch_limit(std::chrono::nanoseconds limit) {
  constexpr std::chrono::milliseconds least{1}, most = std::chrono::hours{24 * 365};
  return std::clamp(limit >= most ? most : std::chrono::ceil<std::chrono::milliseconds>(limit), least, most);
}

/// What is left until `until`.
inline std::chrono::nanoseconds left(Clock::time_point until) {
  return std::max(until - Clock::now(), Clock::duration::zero());
}

/// Threads that bounded() has left behind in a call of torch's, which may come back while the process ends.
inline std::atomic<int> left_behind{0};

/// Runs `work` in a thread and leaves it behind where `limit` runs out: torch and NCCL have calls that wait
/// for what is gone without end. `work` owns what it uses.
template <class Work, class Late>
std::invoke_result_t<Work> bounded(std::chrono::nanoseconds limit, Work work, Late late) {
  using Result = std::invoke_result_t<Work>;
  const auto until = deadline_after(limit);
  auto task = std::make_shared<std::packaged_task<Result()>>(std::move(work));
  std::future<Result> result = task->get_future();
  std::thread thread([task] { (*task)(); });
  // A wait inside that ends at the same limit says more, and may need a moment to say it.
  constexpr std::chrono::milliseconds grace{250};
  if (result.wait_for(torch_limit(limit) + grace) != std::future_status::ready) {
    thread.detach();
    ++left_behind;
    throw late();
  }
  thread.join();
  try {
    return result.get();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    if (Clock::now() >= until) throw late();
    throw PeerError(torch_words(error));
  }
}

/// A call's send or receive was cut short. `late`: by its limit; else the peer is gone, or this end closed.
struct LinkBroken {
  int peer;  ///< place in the group
  bool late;
  std::string why;
};

/// All members may be called from any thread.
class Links {
 public:
  using Store = c10::intrusive_ptr<c10d::Store>;
  using Device = std::shared_ptr<gloo::transport::Device>;

  /// Throws torch's errors where not all `size` members come within `limit`.
  Links(const Store& store, const Device& device, int place, int size, std::chrono::nanoseconds limit)
      : place_(place), sentinels_(static_cast<std::size_t>(size)) {
    auto options = c10d::ProcessGroupGloo::Options::create(torch_limit(limit));
    options->threads = 0;  // sends and receives need none
    options->devices.push_back(device);
    gloo_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, place, size, options);
    try {
      for (int peer = 0; peer < size; ++peer) {
        auto& sentinel = sentinels_[static_cast<std::size_t>(peer)];
        if (peer == place) continue;
        sentinel.work = start(peer, std::span(&sentinel.byte, 1), sentinel_tag, false);
        sentinel.watcher = std::thread([this, peer] { watch(peer); });
      }
    } catch (...) {  // a thread that cannot start
      end_watchers();
      throw;
    }
  }
  /// Gently: what was sent still arrives.
  ~Links() { end_watchers(); }

  int place() const { return place_; }

  /// One send or receive under way. Its bytes must outlive run().
  struct Transfer {
    int peer;
    c10::intrusive_ptr<c10d::Work> work;
  };
  using Transfers = std::list<Transfer>;

  /// Within run(). Sends match receives of the same `kind` and size only: ends that disagree wait for their
  /// limit.
  void send(Transfers& transfers, int peer, std::span<const std::byte> bytes, int kind) {
    const std::span<std::byte> writable(const_cast<std::byte*>(bytes.data()), bytes.size());
    add(transfers, peer, writable, kind, true);
  }
  void receive(Transfers& transfers, int peer, std::span<std::byte> bytes, int kind) {
    add(transfers, peer, bytes, kind, false);
  }
  /// `start(transfers)` puts them under way; waits for all of them. Throws LinkBroken; the transfers then no
  /// longer touch their bytes, and the links are closed.
  template <class Start>
  void run(std::chrono::nanoseconds limit, Start start) {
    const auto until = deadline_after(limit);
    Transfers transfers;
    try {
      start(transfers);
      for (const Transfer& transfer : transfers) wait(transfer, until);
    } catch (const LinkBroken& broken) {
      close(broken.why);
      drop(transfers);
      throw;
    }
    drop(transfers);
  }

  /// At once, from any thread: transfers under way here and at the other ends are cut short.
  void close(const std::string& why) noexcept {
    const std::scoped_lock lock(mutex_);
    if (why_.empty()) why_ = why;
    for (auto& context : (*gloo_).*Access::contexts()) context->closeConnections();
    for (const Transfer* transfer : under_way_) transfer->work->abort();
  }

 private:
  /// The way to the connections: c10d has no call that closes them.
  struct Access : c10d::ProcessGroupGloo {
    using Contexts = std::vector<std::shared_ptr<gloo::Context>>;
    static Contexts c10d::ProcessGroupGloo::*contexts() { return &Access::contexts_; }
  };
  struct Sentinel {
    std::byte byte{};
    std::string gone;  ///< why; empty: still there
    c10::intrusive_ptr<c10d::Work> work;
    std::thread watcher;
  };
  static constexpr int sentinel_tag = 1;
  static constexpr const char* ran_out = "an earlier call ran out of time";

  static int tag_of(std::size_t size, int kind) {
    constexpr std::size_t tags = 2147483647 - 2;
    return static_cast<int>(2 + (size % tags * 16 + static_cast<std::size_t>(kind)) % tags);
  }
  c10::intrusive_ptr<c10d::Work> start(int peer, std::span<std::byte> bytes, int tag, bool sending) {
    std::vector<at::Tensor> tensor{
        at::from_blob(bytes.data(), {static_cast<std::int64_t>(bytes.size())}, at::kByte)};
    return sending ? gloo_->send(tensor, peer, tag) : gloo_->recv(tensor, peer, tag);
  }

  void add(Transfers& transfers, int peer, std::span<std::byte> bytes, int kind, bool sending) {
    if (bytes.empty()) return;
    const std::scoped_lock lock(mutex_);
    const std::string& gone = sentinels_[static_cast<std::size_t>(peer)].gone;
    if (!why_.empty() || !gone.empty()) throw LinkBroken{peer, false, why_.empty() ? gone : why_};
    try {
      auto work = start(peer, bytes, tag_of(bytes.size(), kind), sending);
      under_way_.push_back(&transfers.emplace_back(Transfer{peer, std::move(work)}));
    } catch (const std::exception& error) {
      throw LinkBroken{peer, false, torch_words(error)};
    }
  }
  void drop(Transfers& transfers) {
    const std::scoped_lock lock(mutex_);
    for (const Transfer& transfer : transfers) std::erase(under_way_, &transfer);
    transfers.clear();
  }
  void wait(const Transfer& transfer, Clock::time_point until) {
    std::string why;
    try {
      // Woken early, it may be done all the same: its bytes came before the peer left.
      if (transfer.work->wait(torch_limit(left(until))) || transfer.work->wait(torch_limit({}))) return;
    } catch (const std::exception& error) {
      why = torch_words(error);
    }
    const std::scoped_lock lock(mutex_);
    const std::string& gone = sentinels_[static_cast<std::size_t>(transfer.peer)].gone;
    const bool late = why_.empty() && (gone.empty() || gone == ran_out) && Clock::now() >= until;
    if (!gone.empty()) why = gone;
    if (!why_.empty()) why = why_;
    const bool follows = why_.empty() && !late && first_gone_ >= 0;  // others close when they see one go
    if (follows) why = sentinels_[static_cast<std::size_t>(first_gone_)].gone;
    throw LinkBroken{follows ? first_gone_ : transfer.peer, late, late ? ran_out : why};
  }

  void end_watchers() {
    for (auto& sentinel : sentinels_)
      if (sentinel.work) sentinel.work->abort();
    for (auto& sentinel : sentinels_)
      if (sentinel.watcher.joinable()) sentinel.watcher.join();
  }
  void watch(int peer) {
    auto& sentinel = sentinels_[static_cast<std::size_t>(peer)];
    std::string why = "it closed the connection";
    try {
      if (!sentinel.work->wait(torch_limit(std::chrono::nanoseconds::max()))) return;  // ~Links
    } catch (const std::exception& error) {
      why = torch_words(error);
      // A call that runs out closes all connections at once, before its own thread is told.
      if (why.find("Application timeout") != why.npos) why = ran_out;
    }
    const std::scoped_lock lock(mutex_);
    sentinel.gone = why;
    if (first_gone_ < 0 && why_.empty() && why != ran_out) first_gone_ = peer;
    for (const Transfer* transfer : under_way_)
      if (transfer->peer == peer) transfer->work->abort();
  }

  const int place_;
  std::mutex mutex_;
  std::string why_;      ///< closed here; empty: open
  int first_gone_ = -1;  ///< of the peers, before that
  std::vector<const Transfer*> under_way_;
  std::vector<Sentinel> sentinels_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
};

}  // namespace dvla::detail
