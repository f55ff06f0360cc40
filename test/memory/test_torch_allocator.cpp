// dvla-test: torch
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <memory>
#include <thread>
#include <vector>

#include "dvla/memory/dual_pool.hpp"
#include "dvla/memory/torch_allocator.hpp"

using dvla::ModelPool;
using dvla::TorchAllocator;
constexpr std::size_t mib = std::size_t{1} << 20;

TEST_CASE("Tensors are born in the pool while it is in place, and not before or after") {
  ModelPool pool(64 * mib);
  at::Tensor before = at::ones({1000});
  at::Tensor inside;
  {
    TorchAllocator allocator(pool);
    inside = at::ones({1000});
    CHECK(pool.contains(inside.data_ptr()));
    CHECK(reinterpret_cast<std::uintptr_t>(inside.data_ptr()) % 64 == 0);
    CHECK_FALSE(pool.contains(before.data_ptr()));
    before.resize_({5000});  // asks the allocator of its storage or the current one: either way it must work
    before = before * 2;
    CHECK(pool.contains(before.data_ptr()));
  }
  const at::Tensor after = at::ones({1000});
  CHECK_FALSE(pool.contains(after.data_ptr()));
  CHECK(inside.sum().item<float>() == 1000);
  inside.resize_({100000});  // its storage remembers the allocator, which must still be there
  inside.fill_(1);
  CHECK(inside.sum().item<float>() == 100000);
  inside = before = at::Tensor();
  CHECK(pool.report().live == 0);
}

TEST_CASE("Tensors outlive the allocator and the pool") {
  at::Tensor survivor;
  {
    dvla::DualPoolMachinery memory({.environment_pool_mib = 1, .model_pool_mib = 8});
    TorchAllocator allocator(memory.model());
    survivor = at::arange(10000, c10::ScalarType::Float);
  }
  CHECK(survivor.sum().item<double>() == doctest::Approx(10000.0 * 9999 / 2));
  survivor += 1;
  CHECK(survivor[9999].item<float>() == 10000);
}

TEST_CASE("A tensor of one thread is freed by another") {
  ModelPool pool(64 * mib);
  TorchAllocator allocator(pool);
  for (int round = 0; round < 50; ++round) {
    std::vector<at::Tensor> tensors;
    for (int i = 0; i < 8; ++i) tensors.push_back(at::full({1000 + 100 * i}, i));
    std::thread other([moved = std::move(tensors)]() mutable {
      for (int i = 0; i < 8; ++i) {
        if (moved[static_cast<std::size_t>(i)][999].item<int>() != i) std::abort();
      }
      moved.clear();
    });
    other.join();
  }
  CHECK(pool.report().live == 0);
}

TEST_CASE("A training step finds the pages of the step before: the high-water mark stands still") {
  ModelPool pool(256 * mib);
  TorchAllocator allocator(pool);
  {
    const at::Tensor input = at::full({256, 64}, 0.5F), wanted = at::ones({256, 8});
    at::Tensor first = at::full({64, 128}, 0.01F), second = at::full({128, 8}, 0.02F);
    auto step = [&] {  // two layers, forward and backward by hand: a dozen temporaries of six sizes
      const at::Tensor hidden = at::mm(input, first).relu();
      const at::Tensor error = (at::mm(hidden, second) - wanted) / 256;
      const at::Tensor d_hidden = at::mm(error, second.t()) * (hidden > 0);
      second -= 0.01 * at::mm(hidden.t(), error);
      first -= 0.01 * at::mm(input.t(), d_hidden);
    };
    for (int i = 0; i < 5; ++i) step();
    const dvla::PoolReport warm = pool.report();
    for (int i = 0; i < 50; ++i) step();
    const dvla::PoolReport later = pool.report();
    CHECK(later.allocations > warm.allocations);
    CHECK(later.high_water == warm.high_water);
    CHECK(later.live == warm.live);
    CHECK(later.in_use == warm.in_use);  // no new pages
  }
  CHECK(pool.report().live == 0);
}

TEST_CASE("A full pool is a sentence out of the operation, and torch goes on") {
  ModelPool pool(1 * mib);
  TorchAllocator allocator(pool);
  CHECK_THROWS_AS(at::zeros({10 * 1000 * 1000}), dvla::Error);
  CHECK(at::zeros({1000}).sum().item<float>() == 0);
  CHECK(at::empty({0}).numel() == 0);
}

TEST_CASE("There is one at a time") {
  ModelPool pool(mib);
  TorchAllocator allocator(pool);
  CHECK_THROWS_AS(TorchAllocator{pool}, dvla::Error);
}
