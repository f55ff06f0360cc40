// dvla-test: gpu serial
// The two pools in a GPU's memory: what they hold, what they refuse.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/StreamGuard.h>

#include <string>
#include <thread>

#include "dvla/memory/dual_pool.hpp"
#include "dvla/memory/single_pool.hpp"
#include "dvla/model/compute_device.hpp"
#include "test/gpu.hpp"

using namespace dvla;
using dvla::detail::ComputeDevice;
constexpr std::size_t mib = std::size_t{1} << 20;

namespace {
MemoryKnobs small() {
  return {.environment_pool_mib = 2,
          .model_pool_mib = 1,
          .device = Device::cuda,
          .cuda_environment_pool_mib = 40,
          .cuda_model_pool_mib = 100};
}
at::Tensor on_gpu(const ComputeDevice& device, std::int64_t floats) {
  return at::empty({floats}, device.here());
}
}  // namespace

DOCTEST_TEST_CASE(
    "tensors of a lane come from the model pool, copies of observations from the environment pool") {
  DualPoolMachinery memory(small());
  const ComputeDevice device(Device::cuda);
  const auto in_use = [&](std::size_t pool) { return memory.report().at(2 + pool).in_use; };
  DOCTEST_CHECK(memory.report().size() == 4);
  DOCTEST_CHECK(in_use(0) == 0);
  DOCTEST_CHECK(in_use(1) == 0);
  {
    const auto lane = device.enter();
    const at::Tensor tensor = on_gpu(device, 1000);
    DOCTEST_CHECK(in_use(0) == 0);
    DOCTEST_CHECK(in_use(1) > 0);
    const at::Tensor copy = device.upload(at::ones({1000}, device.host()));
    DOCTEST_CHECK(in_use(0) > 0);
    dvla::detail::StreamMark mark;
    DOCTEST_CHECK(device.download(copy, mark).sum().item<float>() == 1000);
  }
  const auto before = in_use(1);
  const at::Tensor elsewhere =
      at::empty({1000}, at::TensorOptions(at::kFloat).device(dvla::detail::cuda_device()));
  DOCTEST_CHECK(in_use(1) == before);  // no lane asked
  std::jthread([&] {
    dvla::detail::this_lane = lane_kind::reception;
    const auto lane = device.enter();
    const at::Tensor tensor = on_gpu(device, 1000);
    DOCTEST_CHECK(in_use(1) > before);  // another stream, another segment
  }).join();
}

DOCTEST_TEST_CASE("a cap that is met is one sentence, and room that is given back is used again") {
  DualPoolMachinery memory(small());
  const ComputeDevice device(Device::cuda);
  const auto lane = device.enter();
  std::string said;
  try {
    (void)on_gpu(device, 30 * static_cast<std::int64_t>(mib));  // 120 MiB
  } catch (const Error& error) {
    said = error.what();
  }
  DOCTEST_CHECK(
      said ==
      "CUDA model pool: no room for a segment of 125829120 bytes: 0 of 104857600 bytes are taken; raise "
      "--cuda-model-pool-mib (now 100)");
  for (int i = 0; i < 20; ++i)
    (void)on_gpu(device, 20 * static_cast<std::int64_t>(mib));  // 80 MiB, the same each time
  DOCTEST_CHECK(memory.report().at(3).high_water == 80 * mib);
  DOCTEST_CHECK(memory.report().at(3).allocations == 1);
}

DOCTEST_TEST_CASE("the environment pool is pinned while the machinery lives") {
  const auto pinned = [](const void* pointer) {
    cudaPointerAttributes attributes{};
    return cudaPointerGetAttributes(&attributes, pointer) == cudaSuccess &&
           attributes.type == cudaMemoryTypeHost;
  };
  DualPoolMachinery memory(small());
  void* block = memory.environment().allocate(1000, 64);
  DOCTEST_CHECK(pinned(block));
  memory.environment().deallocate(block, 1000, 64);
  void* other = memory.model().allocate(1000, 64);
  DOCTEST_CHECK_FALSE(pinned(other));
  memory.model().deallocate(other, 1000, 64);
}

DOCTEST_TEST_CASE("one set of pools a process; a second begins where the first ended") {
  {
    DualPoolMachinery memory(small());
    DOCTEST_CHECK_THROWS_AS(const SinglePoolMachinery second(small()), Error);
  }
  const SinglePoolMachinery memory(small());
  DOCTEST_CHECK(memory.report().size() == 2);
  DOCTEST_CHECK(memory.report()[1].in_use == 0);
}
