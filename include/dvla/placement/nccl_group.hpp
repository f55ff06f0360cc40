// Groups on NCCL, by LibTorch's c10d, for a job whose models compute on GPUs: what the actors sum and gather
// goes from GPU to GPU. Design: "The two planes". A program that includes this has `--collectives nccl`
// (placement/collectives.hpp); trajectories and weights' broadcasts stay on the job's channels. Compiled and
// linked, not run: no GPU was at hand. One GPU a process, as everywhere (memory/lane_stream.hpp); NCCL
// refuses two processes on one. Spans are in host memory: their bytes go through pinned memory to the GPU and
// back. Empty where there is no nccl.h. Dear to compile. CMake: dvla::c10d and dvla::cuda.
#pragma once

#if __has_include(<nccl.h>)

#ifndef USE_C10D_NCCL
#define USE_C10D_NCCL  // torch's own; its header declares nothing without it
#endif

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAGuard.h>
#include <nccl.h>
#include <torch/csrc/cuda/nccl.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <utility>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/memory/cuda.hpp"
#include "dvla/memory/lane_stream.hpp"
#include "dvla/placement/c10d_links.hpp"
#include "dvla/placement/cluster.hpp"
#include "dvla/placement/nccl_form.hpp"

namespace dvla {

namespace detail {

/// Before main, unless the user has set them. The first: else torch waits in threads of its own, which end
/// the process where a collective fails. The second: NCCL connects all members at once, so that no later call
/// waits for a peer while it puts its work on the GPU.
inline const bool nccl_is_settled =
    ::setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0) == 0 && ::setenv("NCCL_RUNTIME_CONNECT", "0", 0) == 0;

/// The job's store as c10d asks for it: the members tell each other where NCCL's first one listens.
class StoreOfCluster final : public c10d::Store {
 public:
  StoreOfCluster(Cluster& cluster, std::string prefix, std::chrono::nanoseconds limit)
      : Store(torch_limit(limit)), cluster_(cluster), prefix_(std::move(prefix)), limit_(limit) {}

  c10::intrusive_ptr<Store> clone() override {
    return c10::make_intrusive<StoreOfCluster>(cluster_, prefix_, limit_);
  }
  void set(const std::string& key, const std::vector<std::uint8_t>& value) override {
    cluster_.put(prefix_ + key, {value.begin(), value.end()});
  }
  std::vector<std::uint8_t> get(const std::string& key) override {
    const std::string value = cluster_.get(prefix_ + key, limit_);
    return {value.begin(), value.end()};
  }
  bool check(const std::vector<std::string>& keys) override {
    return std::all_of(keys.begin(), keys.end(), [&](auto& key) { return cluster_.has(prefix_ + key); });
  }
  void wait(const std::vector<std::string>& keys) override { wait(keys, torch_limit(limit_)); }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& limit) override {
    for (const std::string& key : keys) cluster_.get(prefix_ + key, limit);
  }
  std::int64_t add(const std::string&, std::int64_t) override { refuse("counters"); }
  bool deleteKey(const std::string&) override { refuse("deleting"); }
  std::int64_t getNumKeys() override { refuse("counting its keys"); }

 private:
  [[noreturn]] static void refuse(const std::string& what) {
    throw Error("NCCL asked the job's store for " + what + ", which it does not have");
  }

  Cluster& cluster_;
  const std::string prefix_;
  const std::chrono::nanoseconds limit_;
};

/// Sums: every value is formed by one member and handed to the others, so it has the same bits on all of
/// them, whatever algorithm NCCL takes. In which order that member adds is NCCL's choice: the bits may differ
/// from Gloo's, and between machines and versions of NCCL.
/// NCCL does not say who is late, and may not notice that a peer died. So each pair of members keeps a
/// channel, in which a thread waits: it breaks where the peer dies or closes, and what is under way is
/// aborted. In it each member says once, when it leaves, how many calls it has finished; those still end well
/// elsewhere. Scratch: `stage_bytes` pinned and twice that on the GPU, if ever used, kept.
class NcclGroup final : public Group {
 public:
  static constexpr std::size_t stage_bytes = std::size_t{16} << 20;

  /// Returns when every member has come and NCCL has connected them. `cluster` must outlive it.
  NcclGroup(Cluster& cluster, std::string name, std::vector<int> members, std::chrono::nanoseconds limit)
      : name_(std::move(name)),
        members_(std::move(members)),
        place_(Roles::place(members_, cluster.rank())),
        limit_(limit) {
    const auto until = deadline_after(limit);
    check_version();
    check_device(Device::cuda);
    for (int low = 0; low < size(); ++low)  // the pairs in the same order on every member
      for (int high = low + 1; high < size(); ++high)
        if (place_ == low || place_ == high) {
          const int peer = members_[static_cast<std::size_t>(place_ == low ? high : low)];
          peers_.push_back(std::make_unique<Peer>());
          peers_.back()->name = "rank " + std::to_string(peer);
          peers_.back()->channel = cluster.channel("group '" + name_ + "'", peer, left(until));
        }
    connect(cluster, until);
    for (const auto& peer : peers_) peer->watcher = std::thread([this, &peer = *peer] { watch(peer); });
  }
  /// Gently: calls that this member has finished still end well on the others.
  ~NcclGroup() override {
    const auto until = deadline_after(limit_);
    {
      const std::scoped_lock lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_all();
    for (const auto& peer : peers_) say_done(*peer, until);
    {
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, until, [&] {
        return !why_.empty() ||
               std::all_of(peers_.begin(), peers_.end(), [](const auto& peer) { return peer->left; });
      });
    }
    close();
    for (const auto& peer : peers_) peer->watcher.join();
  }

  int rank() const override { return place_; }
  int size() const override { return static_cast<int>(members_.size()); }

  void broadcast(std::span<std::byte> bytes, int root) override {
    check_root(root, size(), name_);
    c10d::BroadcastOptions options;
    options.rootRank = root;
    call<std::byte>(
        "broadcast", bytes.size(), 1,
        [&](std::size_t first, std::size_t count) {
          if (place_ == root) put(bytes.subspan(first, count), 0);
          up(whole_, count);
          std::vector<at::Tensor> tensors{whole_.narrow(0, 0, signed_size(count))};
          follow(nccl_->broadcast(tensors, options));
          down(whole_, count);
        },
        [&](std::size_t first, std::size_t count) { take(bytes.subspan(first, count), 0); });
  }
  void sum(std::span<float> values) override { add_up(values, at::kFloat); }
  void sum(std::span<double> values) override { add_up(values, at::kDouble); }
  void max(std::span<std::int64_t> values) override {
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    call<std::int64_t>(
        "max", values.size(), 1,
        [&](std::size_t first, std::size_t count) {
          put(values.subspan(first, count), 0);
          up(whole_, count * sizeof(std::int64_t));
          std::vector<at::Tensor> tensors{as(whole_, at::kLong, count)};
          follow(nccl_->allreduce(tensors, options));
          down(whole_, count * sizeof(std::int64_t));
        },
        [&](std::size_t first, std::size_t count) { take(values.subspan(first, count), 0); });
  }
  void all_gather(std::span<const std::byte> part, std::span<std::byte> all) override {
    check_parts(all.size(), part.size(), size(), name_);
    call<std::byte>(
        "all_gather", part.size(), members_.size(),
        [&](std::size_t first, std::size_t count) {
          put(part.subspan(first, count), 0);
          up(part_, count);
          gather(*nccl_, as(whole_, at::kByte, count * members_.size()), as(part_, at::kByte, count));
          down(whole_, count * members_.size());
        },
        [&](std::size_t first, std::size_t count) {
          for (std::size_t i = 0; i < members_.size(); ++i)
            take(all.subspan(i * part.size() + first, count), i * count);
        });
  }
  void reduce_scatter(std::span<const float> all, std::span<float> part) override {
    check_parts(all.size(), part.size(), size(), name_);
    call<float>(
        "reduce_scatter", part.size(), members_.size(),
        [&](std::size_t first, std::size_t count) {
          for (std::size_t i = 0; i < members_.size(); ++i)
            put(all.subspan(i * part.size() + first, count), i * count);
          up(whole_, count * members_.size() * sizeof(float));
          scatter(*nccl_, as(part_, at::kFloat, count), as(whole_, at::kFloat, count * members_.size()));
          down(part_, count * sizeof(float));
        },
        [&](std::size_t first, std::size_t count) { take(part.subspan(first, count), 0); });
  }
  void barrier() override {
    double none = 0;
    add_up(std::span(&none, 1), at::kDouble, "barrier");
  }
  void close() noexcept override { finish("the others", "this rank closed it"); }

 private:
  struct Peer {
    std::string name;
    std::unique_ptr<Channel> channel;
    std::thread watcher;
    bool said = false;       ///< this member's word to it
    bool left = false;       ///< its word to this member: it will finish no more calls than
    std::int64_t calls = 0;  ///< these
  };

  std::string me() const { return "rank " + std::to_string(members_[static_cast<std::size_t>(place_)]); }
  std::string where(const char* what) const {
    return std::string(" in ") + what + " of group '" + name_ + "'";
  }
  static std::int64_t signed_size(std::size_t size) { return static_cast<std::int64_t>(size); }

  /// c10d's options hold a struct of NCCL's whose size is another in each version.
  static void check_version() {
    constexpr auto number = [](std::uint64_t major, std::uint64_t minor, std::uint64_t patch) {
      return (major << 32) | (minor << 16) | patch;
    };
    const std::uint64_t theirs = torch::cuda::nccl::version();
    const auto spell = [](std::uint64_t version) {
      return std::to_string(version >> 32) + "." + std::to_string((version >> 16) & 0xffff) + "." +
             std::to_string(version & 0xffff);
    };
    constexpr std::uint64_t ours = number(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
    if (theirs != ours)
      throw ConfigError("this program was compiled with the nccl.h of NCCL " + spell(ours) +
                        ", LibTorch with that of NCCL " + spell(theirs) +
                        "; put the folder of LibTorch's (nvidia/nccl/include beside torch) first");
  }

  /// NCCL's own connecting knows no deadline: a thread does it, and is left behind where the limit runs out.
  void connect(Cluster& cluster, Clock::time_point until) {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = torch_limit(limit_);
    std::string prefix = "nccl/" + name_;
    for (const int member : members_) prefix += " " + std::to_string(member);
    auto store = c10::make_intrusive<StoreOfCluster>(cluster, prefix + "/", left(until));
    std::packaged_task<Nccl()> task([=, place = place_, size = size()] {
      const c10::cuda::CUDAGuard guard(cuda_device());
      auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, place, size, options);
      nccl->eagerConnectSingleDevice(cuda_device());
      return nccl;
    });
    std::future<Nccl> connected = task.get_future();
    std::thread(std::move(task)).detach();
    if (connected.wait_for(torch_limit(left(until))) != std::future_status::ready)
      throw DeadlineError(me() + " waited " + seconds_text(limit_) + " for NCCL to connect group '" + name_ +
                          "'");
    try {
      nccl_ = connected.get();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw PeerError(me() + " cannot connect group '" + name_ + "' by NCCL: " + torch_words(error));
    }
  }

  // ---- Staging; `at` counts values from the stage's beginning.
  template <class Type>
  void put(std::span<const Type> values, std::size_t at) {
    if (!values.empty())
      std::memcpy(pinned_.data_ptr<std::uint8_t>() + at * sizeof(Type), values.data(), values.size_bytes());
  }
  template <class Type>
  void put(std::span<Type> values, std::size_t at) {
    put(std::span<const Type>(values), at);
  }
  template <class Type>
  void take(std::span<Type> values, std::size_t at) const {
    if (!values.empty())
      std::memcpy(values.data(), pinned_.data_ptr<std::uint8_t>() + at * sizeof(Type), values.size_bytes());
  }
  void up(at::Tensor& gpu, std::size_t bytes) {
    gpu.narrow(0, 0, signed_size(bytes)).copy_(pinned_.narrow(0, 0, signed_size(bytes)), true);
  }
  void down(const at::Tensor& gpu, std::size_t bytes) {
    pinned_.narrow(0, 0, signed_size(bytes)).copy_(gpu.narrow(0, 0, signed_size(bytes)), true);
  }
  static at::Tensor as(const at::Tensor& gpu, at::ScalarType type, std::size_t count) {
    return gpu.narrow(0, 0, signed_size(count * c10::elementSize(type))).view(type);
  }
  /// The stages hold `bytes` each afterwards.
  void reserve(std::size_t bytes) {
    if (pinned_.defined() && pinned_.numel() >= signed_size(bytes)) return;
    const auto here = at::TensorOptions(at::kByte).device(cuda_device());
    pinned_ = at::empty({signed_size(bytes)}, at::TensorOptions(at::kByte).pinned_memory(true));
    whole_ = at::empty({signed_size(bytes)}, here);
    part_ = at::empty({signed_size(bytes)}, here);
  }

  // ---- One collective each; what the lane puts on its stream afterwards waits for it, this thread does not.
  void follow(c10::intrusive_ptr<c10d::Work> work) {
    work->synchronize();
    works_.push_back(std::move(work));
  }
  /// torch 2.11 has these two by their older names only.
  template <class Backend>
  void gather(Backend& nccl, at::Tensor whole, at::Tensor part) {
    if constexpr (requires { nccl.all_gather_single(whole, part); })
      follow(nccl.all_gather_single(whole, part));
    else
      follow(nccl._allgather_base(whole, part));
  }
  template <class Backend>
  void scatter(Backend& nccl, at::Tensor part, at::Tensor whole) {
    if constexpr (requires { nccl.reduce_scatter_single(part, whole); })
      follow(nccl.reduce_scatter_single(part, whole));
    else
      follow(nccl._reduce_scatter_base(part, whole));
  }
  template <class Type>
  void add_up(std::span<Type> values, at::ScalarType type, const char* what = "sum") {
    const std::size_t members = members_.size();
    call<Type>(
        what, values.size(), 1,
        [&](std::size_t first, std::size_t count) {
          const std::size_t share = (count + members - 1) / members;  // what is beyond count is never read
          put(values.subspan(first, count), 0);
          up(whole_, count * sizeof(Type));
          scatter(*nccl_, as(part_, type, share), as(whole_, type, share * members));
          gather(*nccl_, as(whole_, type, share * members), as(part_, type, share));
          down(whole_, count * sizeof(Type));
        },
        [&](std::size_t first, std::size_t count) { take(values.subspan(first, count), 0); });
  }

  /// In pieces that fit the stages: `issue` puts one on the lane's stream, `finished` takes what came back.
  template <class Type, class Issue, class Finished>
  void call(const char* what, std::size_t values, std::size_t parts, Issue issue, Finished finished) {
    const auto until = deadline_after(limit_);
    const std::size_t most = std::max<std::size_t>(stage_bytes / (parts * sizeof(Type)), 1);
    begin(what);
    try {
      const c10::StreamGuard guard(lane_stream());
      for (std::size_t first = 0; first < values; first += most) {
        const std::size_t count = std::min(most, values - first);
        reserve((std::max<std::size_t>(count * parts, 512) + members_.size()) * sizeof(Type));
        {
          const std::scoped_lock lock(issuing_);  // never on what is aborted: torch would connect it anew
          check_open(what);
          issue(first, count);
          mark_.record(lane_stream());
        }
        wait(what, until);
        finished(first, count);
      }
    } catch (const Error&) {
      finish("the others", "a call failed");
      throw;
    } catch (const std::exception& error) {
      finish("the others", torch_words(error));
      check_open(what);
    }
    const std::scoped_lock lock(mutex_);
    ++done_;
    calling_ = false;
    changed_.notify_all();
  }
  void begin(const char* what) {
    check_open(what);
    const std::scoped_lock lock(mutex_);
    for (const auto& peer : peers_)
      if (peer->left && done_ >= peer->calls)
        throw PeerError(me() + " lost " + peer->name + where(what) + ": it has left");
    calling_ = true;
  }
  void check_open(const char* what) {
    const std::scoped_lock lock(mutex_);
    if (!why_.empty()) throw PeerError(me() + " lost " + whom_ + where(what) + ": " + why_);
  }
  void wait(const char* what, Clock::time_point until) {
    for (std::chrono::microseconds pause{1};; pause = std::min(2 * pause, std::chrono::microseconds{200})) {
      const bool done = mark_.query();
      for (const auto& work : works_)
        if (work->isCompleted() && work->exception()) std::rethrow_exception(work->exception());
      check_open(what);  // what was aborted looks done
      if (done) break;
      if (Clock::now() >= until) {
        finish("the others", "a call ran out of time");
        throw DeadlineError(me() + " waited " + seconds_text(limit_) + " for the others" + where(what));
      }
      std::this_thread::sleep_for(pause);
    }
    works_.clear();
  }

  void finish(const std::string& whom, const std::string& why) noexcept {
    {
      const std::scoped_lock lock(mutex_);
      if (!why_.empty()) return;
      whom_ = whom;
      why_ = why;
    }
    changed_.notify_all();
    for (const auto& peer : peers_) peer->channel->close();
    const std::scoped_lock lock(issuing_);
    try {
      nccl_->abort();
    } catch (...) {  // it is given up anyway
    }
  }
  /// Once: how many calls this member has finished.
  void say_done(Peer& peer, Clock::time_point until) {
    std::int64_t calls = 0;
    {
      const std::scoped_lock lock(mutex_);
      if (!why_.empty() || std::exchange(peer.said, true)) return;
      calls = done_;
    }
    try {
      peer.channel->send(std::as_bytes(std::span(&calls, 1)), left(until));
    } catch (const Error&) {  // its watcher says why
    }
  }
  void watch(Peer& peer) {
    std::int64_t calls = 0;
    try {
      peer.channel->receive(std::as_writable_bytes(std::span(&calls, 1)), std::chrono::hours{24 * 365});
    } catch (const Error& error) {
      std::string why = error.what();  // of the channel's sentence that part
      if (const auto from = why.find(": "); from != why.npos) why.erase(0, from + 2);
      return finish(peer.name, why.substr(0, why.rfind(" (channel ")));
    }
    std::unique_lock lock(mutex_);
    peer.calls = calls;
    peer.left = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !why_.empty() || leaving_ || done_ >= calls; });
    const bool in_vain = calling_ && done_ >= calls;  // a call that it takes no part in
    lock.unlock();
    if (in_vain) return finish(peer.name, "it has left");
    say_done(peer, deadline_after(limit_));
  }

  using Nccl = c10::intrusive_ptr<c10d::ProcessGroupNCCL>;

  const std::string name_;
  const std::vector<int> members_;
  const int place_;
  const std::chrono::nanoseconds limit_;
  std::vector<std::unique_ptr<Peer>> peers_;
  Nccl nccl_;
  std::mutex issuing_, mutex_;
  std::condition_variable changed_;
  std::string whom_, why_;  ///< why it is finished; empty: open
  bool leaving_ = false, calling_ = false;
  std::int64_t done_ = 0;
  at::Tensor pinned_, whole_, part_;  ///< bytes
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
  c10::Event mark_{c10::DeviceType::CUDA};
};

class NcclProgram final : public NcclForm {
 public:
  std::unique_ptr<Group> group(Cluster& cluster, const std::string& name, const std::vector<int>& members,
                               std::chrono::nanoseconds limit) override {
    return std::make_unique<NcclGroup>(cluster, name, members, limit);
  }
};
inline NcclProgram nccl_program;
inline const bool nccl_is_here = (nccl_form.store(&nccl_program), true);  // before main

}  // namespace detail

}  // namespace dvla

#endif
