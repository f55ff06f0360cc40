// Groups on NCCL, by LibTorch's c10d, for a job whose models compute on GPUs: what the actors sum and gather
// goes from GPU to GPU. Design: "The two planes". A program that includes this has `--collectives nccl`
// (placement/make_group.hpp); trajectories and weights' broadcasts stay on the job's channels. Compiled and
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
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <utility>
#include <vector>

#include "dvla/core/device.hpp"
#include "dvla/memory/cuda.hpp"
#include "dvla/memory/cuda_form.hpp"
#include "dvla/memory/lane_stream.hpp"
#include "dvla/placement/c10d.hpp"
#include "dvla/placement/make_group.hpp"

namespace dvla {

namespace detail {

/// Before main, unless the user has set them. The first: else torch waits in threads of its own, which end
/// the process where a collective fails. The second: NCCL connects all members at once, so that no later call
/// waits for a peer while it puts its work on the GPU.
inline const bool nccl_is_settled =
    ::setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0) == 0 && ::setenv("NCCL_RUNTIME_CONNECT", "0", 0) == 0;

/// Sums of many values: each is formed by one member and handed to the others, so it has the same bits on all
/// of them, whatever algorithm NCCL takes. In which order that member adds is NCCL's choice: the bits may
/// differ from Gloo's, and between machines and versions of NCCL.
/// NCCL does not say who is late, and may not notice that a peer died: whoever watches over the ranks
/// (pipeline/watch.hpp, by the job's heartbeats) closes the group then, which aborts what is under way. A call
/// in which a member takes no part ends at its deadline. Scratch: `stage_bytes` pinned and twice that on the
/// GPU, if ever used, kept.
class NcclGroup final : public JobGroup {
 public:
  static constexpr std::size_t stage_bytes = std::size_t{16} << 20;

  /// Returns when every member has come and NCCL has connected them. `store`: the same on all members; they
  /// tell each other there where NCCL's first one listens.
  NcclGroup(Cluster& cluster, c10::intrusive_ptr<c10d::Store> store, std::string name,
            std::vector<int> members, std::chrono::nanoseconds limit)
      : JobGroup(std::move(name), std::move(members), cluster.rank(), limit) {
    check_version();
    check_device(Device::cuda);
    const auto until = deadline_after(limit);
    cluster.group("meeting of '" + name_ + "'", members_, limit)->barrier();  // names who does not come
    connect(std::move(store), until);
  }
  /// Gently: calls that this member has finished still end well on the others.
  ~NcclGroup() override { close(); }

  void close() noexcept override { finish("this rank closed it"); }

 protected:
  void hand_out(std::span<std::byte> bytes, int root) override {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    in_pieces<std::byte>(GroupCall::broadcast, bytes, bytes, [&](std::size_t count) {
      std::vector<at::Tensor> tensors{as(in_, at::kByte, count)};
      follow(nccl_->broadcast(tensors, options));
      return in_;
    });
  }
  // By the names of torch 2.11, which 2.15 has as well.
  void gather(GroupCall call, std::span<const std::byte> part, std::span<std::byte> all) override {
    in_pieces<std::byte>(call, part, all, [&](std::size_t count) {
      at::Tensor whole = as(out_, at::kByte, count * members_.size()), own = as(in_, at::kByte, count);
      follow(nccl_->_allgather_base(whole, own));
      return out_;
    });
  }
  void scatter(GroupCall call, std::span<const float> all, std::span<float> part) override {
    in_pieces<float>(call, all, part, [&](std::size_t count) {
      at::Tensor own = as(out_, at::kFloat, count), whole = as(in_, at::kFloat, count * members_.size());
      follow(nccl_->_reduce_scatter_base(own, whole));
      return out_;
    });
  }

 private:
  static std::int64_t signed_size(std::size_t size) { return static_cast<std::int64_t>(size); }

  /// c10d's options hold a struct of NCCL's whose size is another in each version.
  static void check_version() {
    constexpr auto number = [](std::uint64_t major, std::uint64_t minor, std::uint64_t patch) {
      return (major << 32) | (minor << 16) | patch;
    };
    const std::uint64_t theirs = torch::cuda::nccl::version();
    const auto spell = [](std::uint64_t version) {
      return detail::concat(version >> 32, ".", (version >> 16) & 0xffff, ".", version & 0xffff);
    };
    constexpr std::uint64_t ours = number(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
    if (theirs != ours)
      throw ConfigError("this program was compiled with the nccl.h of NCCL ", spell(ours),
                        ", LibTorch with that of NCCL ", spell(theirs),
                        "; put the folder of LibTorch's (nvidia/nccl/include beside torch) first");
  }

  /// NCCL's own connecting knows no deadline: a thread does it, and is left behind where the limit runs out.
  void connect(c10::intrusive_ptr<c10d::Store> store, Clock::time_point until) {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = torch_limit(limit_);
    std::string prefix = "nccl/" + name_;
    for (const int member : members_) prefix += " " + std::to_string(member);
    try {
      nccl_ = bounded(
          left(until),
          [=, place = place_, size = size(), limit = torch_limit(left(until))] {
            const c10::cuda::CUDAGuard guard(cuda_device());
            const auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store->clone());  // its own calls
            own->setTimeout(limit);
            auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(own, place, size, options);
            nccl->eagerConnectSingleDevice(cuda_device());
            return nccl;
          },
          [&] {
            return waited(members_[static_cast<std::size_t>(place_)], limit_, "for NCCL to connect group '",
                          name_, "'");
          });
    } catch (const PeerError& error) {
      throw PeerError(member(place_), " cannot connect group '", name_, "' by NCCL: ", error.what());
    }
  }

  // ---- Staging
  /// What a piece [first, first + count) of each of `parts` parts is, in the caller's values and in the stage.
  template <class Type, class Visit>
  void for_each_part(std::span<Type> values, std::size_t parts, std::size_t first, std::size_t count,
                     Visit visit) const {
    const std::size_t part = values.size() / parts, bytes = count * sizeof(Type);
    for (std::size_t i = 0; i < parts; ++i)
      visit(values.data() + i * part + first, pinned_.data_ptr<std::uint8_t>() + i * bytes, bytes);
  }
  static void copy(const at::Tensor& to, const at::Tensor& from, std::size_t bytes) {
    to.narrow(0, 0, signed_size(bytes)).copy_(from.narrow(0, 0, signed_size(bytes)), true);
  }
  static at::Tensor as(const at::Tensor& gpu, at::ScalarType type, std::size_t count) {
    return gpu.narrow(0, 0, signed_size(count * c10::elementSize(type))).view(type);
  }
  /// The stages hold `bytes` each afterwards.
  void reserve(std::size_t bytes) {
    if (pinned_.defined() && pinned_.numel() >= signed_size(bytes)) return;
    const auto here = at::TensorOptions(at::kByte).device(cuda_device());
    pinned_ = at::empty({signed_size(bytes)}, at::TensorOptions(at::kByte).pinned_memory(true));
    in_ = at::empty({signed_size(bytes)}, here);
    out_ = at::empty({signed_size(bytes)}, here);
  }

  // ---- One collective each; what the lane puts on its stream afterwards waits for it, this thread does not.
  void follow(c10::intrusive_ptr<c10d::Work> work) {
    work->synchronize();
    works_.push_back(std::move(work));
  }

  /// In pieces that fit the stages: from `in`, which has a part or one a member, to `out`, which has so too.
  /// `collective(values of a part)` puts one on the lane's stream, from in_ on, and returns what comes back.
  template <class Type, class Collective>
  void in_pieces(GroupCall call, std::span<const Type> in, std::span<Type> out, Collective collective) {
    const auto until = deadline_after(limit_);
    const std::size_t part = std::min(in.size(), out.size());
    const std::size_t ins = part > 0 ? in.size() / part : 1, outs = part > 0 ? out.size() / part : 1;
    const std::size_t parts = std::max(ins, outs);
    const std::size_t most = std::max<std::size_t>(stage_bytes / (parts * sizeof(Type)), 1);
    check_open(call);
    try {
      const c10::StreamGuard guard(lane_stream());
      for (std::size_t first = 0; first < part; first += most) {
        const std::size_t count = std::min(most, part - first);
        reserve(std::max<std::size_t>(count * parts * sizeof(Type), 4096));
        {
          const std::scoped_lock lock(issuing_);  // never on what is aborted: torch would connect it anew
          check_open(call);
          for_each_part(in, ins, first, count, [](const Type* ours, std::uint8_t* stage, std::size_t bytes) {
            std::memcpy(stage, ours, bytes);
          });
          copy(in_, pinned_, count * ins * sizeof(Type));
          copy(pinned_, collective(count), count * outs * sizeof(Type));
          mark_.record(lane_stream());
        }
        wait(call, until);
        for_each_part(out, outs, first, count, [](Type* ours, const std::uint8_t* stage, std::size_t bytes) {
          std::memcpy(ours, stage, bytes);
        });
      }
    } catch (const Error&) {
      finish("a call failed");
      throw;
    } catch (const std::exception& error) {
      finish(torch_words(error));
      check_open(call);
    }
  }
  void check_open(GroupCall call) {
    const std::scoped_lock lock(mutex_);
    if (!why_.empty()) throw lost("the others", call, why_);
  }
  void wait(GroupCall call, Clock::time_point until) {
    for (std::chrono::microseconds pause{1};; pause = std::min(2 * pause, std::chrono::microseconds{200})) {
      const bool done = mark_.query();
      for (const auto& work : works_)
        if (work->isCompleted() && work->exception()) std::rethrow_exception(work->exception());
      check_open(call);  // what was aborted looks done
      if (done) break;
      if (Clock::now() >= until) {
        finish("a call ran out of time");
        throw late("the others", call);
      }
      std::this_thread::sleep_for(pause);
    }
    works_.clear();
  }

  void finish(const std::string& why) noexcept {
    {
      const std::scoped_lock lock(mutex_);
      if (!why_.empty()) return;
      why_ = why;
    }
    const std::scoped_lock lock(issuing_);
    try {
      if (nccl_) nccl_->abort();
    } catch (...) {  // it is given up anyway
    }
  }

  using Nccl = c10::intrusive_ptr<c10d::ProcessGroupNCCL>;

  Nccl nccl_;
  std::mutex issuing_, mutex_;
  std::string why_;               ///< it is finished; empty: open
  at::Tensor pinned_, in_, out_;  ///< bytes
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
  c10::Event mark_{c10::DeviceType::CUDA};
};

inline const bool nccl_is_here = [] {  // before main
  make_nccl_group = [](Cluster& cluster, const std::string& name, const std::vector<int>& members,
                       std::chrono::nanoseconds limit) -> std::unique_ptr<Group> {
    auto* job = dynamic_cast<C10dCluster*>(&cluster);
    if (job == nullptr) throw ConfigError("group '", name, "': NCCL needs a job of processes on c10d");
    return std::make_unique<NcclGroup>(cluster, job->store(), name, members, limit);
  };
  return true;
}();

}  // namespace detail

}  // namespace dvla

#endif
