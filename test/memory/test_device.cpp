// dvla-test: asan
// What `--device cuda` asks of a program, and what it is refused with; a stand-in for CUDA shows what a
// memory policy does with it. The real pools: test_cuda_pools.cpp, where there is a GPU.
#include <doctest/doctest.h>

#include <dvla/dvla.hpp>
#include <string>
#include <vector>

#include "dvla/memory/dual_pool.hpp"
#include "dvla/memory/single_pool.hpp"
#include "dvla/pipeline/validate.hpp"
#include "dvla/testing/linear_model.hpp"
#include "test/complaint.hpp"
#include "test/memory/cuda_stand_in.hpp"

using namespace dvla;
using dvla_test::complaint;
using dvla_test::StandIn;
constexpr std::size_t mib = std::size_t{1} << 20;

namespace {

MemoryKnobs knobs(Device device) {
  return {.environment_pool_mib = 2,
          .model_pool_mib = 1,
          .device = device,
          .cuda_environment_pool_mib = 30,
          .cuda_model_pool_mib = 500};
}
template <class Pipeline>
std::string complaint_of(Device device) {
  Config<Pipeline> config;
  config.memory.device = device;
  return complaint([&] { validate(config); });
}

using Able = Pipeline<Sampler<Toy, TinyVLA<TokenHead>>, Trainer<GRPO>>;
using Unable = Pipeline<Sampler<Toy, dvla::testing::LinearModel>, Trainer<GRPO>>;
const std::string not_built =
    "memory.device is cuda, but this program was built without CUDA; include dvla/memory/cuda.hpp and link "
    "LibTorch's CUDA "
    "libraries, or choose cpu";

}  // namespace

TEST_CASE("a program without CUDA refuses it in one sentence, by validation and by the pools") {
  CHECK(complaint_of<Able>(Device::cpu) == "none");
  CHECK(complaint_of<Able>(Device::cuda) == not_built);
  CHECK(complaint_of<Able::replace<SinglePool>>(Device::cuda) == not_built);
  CHECK(complaint([] { DualPoolMachinery memory(knobs(Device::cuda)); }) == not_built);
  CHECK(complaint([] { SinglePoolMachinery memory(knobs(Device::cuda)); }) == not_built);
}

TEST_CASE("so does one with CUDA on a machine without a GPU, and one whose model cannot") {
  StandIn form;
  CHECK(complaint_of<Able>(Device::cuda) == "none");
  CHECK(complaint_of<Unable>(Device::cuda) ==
        "memory.device is cuda, but the model LinearModel computes on the CPU only; choose another model, or "
        "cpu");
  Config<Able> whole;
  whole.memory.device = Device::cuda;
  whole.run.checkpoint_weights = CheckpointWeights::whole;
  CHECK(
      complaint([&] { validate(whole); }) ==
      "run.checkpoint_weights is whole, but with memory.device cuda frozen weights lie in the GPU's memory, "
      "from which no file is written; choose trainable");
  form.why = "no CUDA-capable device is detected";
  CHECK(complaint_of<Able>(Device::cuda) ==
        "memory.device is cuda, but no GPU can be used here: no CUDA-capable device is detected; choose cpu");
  CHECK(complaint_of<Able>(Device::cpu) == "none");
}

TEST_CASE("DualPool asks for a pool each with its bound, and has the environment pool pinned") {
  StandIn form;
  {
    DualPoolMachinery none(knobs(Device::cpu));
    CHECK(none.report().size() == 2);
    CHECK(form.options.empty());
    DualPoolMachinery memory(knobs(Device::cuda));
    REQUIRE(form.options.size() == 2);
    const DevicePoolOptions &environment = form.options[0], &model = form.options[1];
    CHECK(environment.bytes == 30 * mib);
    CHECK(environment.environment);
    CHECK_FALSE(environment.model);
    CHECK(environment.knob == "--cuda-environment-pool-mib");
    CHECK(model.bytes == 500 * mib);
    CHECK(model.model);
    CHECK_FALSE(model.environment);
    CHECK(model.knob == "--cuda-model-pool-mib");
    void* block = memory.environment().allocate(1000, 64);
    CHECK(form.pinned.size() == 2 * mib);
    CHECK(static_cast<std::byte*>(block) >= form.pinned.data());
    CHECK(static_cast<std::byte*>(block) < form.pinned.data() + form.pinned.size());
    memory.environment().deallocate(block, 1000, 64);
    const auto report = memory.report();
    REQUIRE(report.size() == 4);
    CHECK(report[2].name == "CUDA environment pool");
    CHECK(report[3].name == "CUDA model pool");
    CHECK(form.live == 1);
  }
  CHECK(form.live == 0);
}

TEST_CASE("SinglePool asks for one of both bounds") {
  StandIn form;
  const SinglePoolMachinery memory(knobs(Device::cuda));
  REQUIRE(form.options.size() == 1);
  CHECK(form.options[0].bytes == 530 * mib);
  CHECK((form.options[0].model && form.options[0].environment));
  CHECK(form.pinned.size() == 3 * mib);
  CHECK(memory.report().size() == 2);
}
