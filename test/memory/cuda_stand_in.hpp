// A program's CUDA for tests without a GPU: it says that there is one, makes no pool, and writes down what
// was asked.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/memory/cuda_form.hpp"

namespace dvla_test {

/// What a GPU's pools would do, written down.
struct StandIn final : dvla::CudaForm {
  struct Pools final : dvla::DevicePools {
    Pools(StandIn& form, std::vector<dvla::DevicePoolOptions> wanted, std::span<std::byte> pinned)
        : form_(form) {
      form.options = std::move(wanted);
      form.pinned = pinned;
      ++form.live;
    }
    ~Pools() override { --form_.live; }
    std::vector<dvla::PoolReport> report() const override {
      std::vector<dvla::PoolReport> all;
      for (const auto& pool : form_.options) {
        dvla::PoolReport report;
        report.name = pool.name;
        report.capacity = pool.bytes;
        all.push_back(report);
      }
      return all;
    }
    StandIn& form_;
  };
  StandIn() { dvla::cuda_form = this; }
  ~StandIn() { dvla::cuda_form = nullptr; }
  std::string missing() const override { return why; }
  std::unique_ptr<dvla::DevicePools> make_pools(const std::vector<dvla::DevicePoolOptions>& wanted,
                                                std::span<std::byte> memory) override {
    return std::make_unique<Pools>(*this, wanted, memory);
  }
  std::string why;
  std::vector<dvla::DevicePoolOptions> options;
  std::span<std::byte> pinned;
  int live = 0;
};

}  // namespace dvla_test
