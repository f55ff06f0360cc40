// dvla-test: asan
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "dvla/core/observation.hpp"
#include "dvla/core/record.hpp"

using dvla::Field;

namespace {
dvla::Transition layout() {
  dvla::ObservationSpec spec;
  spec.cameras = {{"top", 4, 6}, {"wrist", 2, 2}};
  spec.proprioception = 3;
  spec.instructions = {"go"};
  return dvla::transition_layout(spec, {2}, {.decisions = 2, .episodes = 3, .chunk = 4});
}
std::vector<std::string> names(const dvla::Transition& record) {
  std::vector<std::string> all;
  dvla::for_each_field(record, [&](const char* name, const auto&) { all.emplace_back(name); });
  return all;
}
}  // namespace

TEST_CASE("A record's fields come in the order of declaration, nested records inside, absent ones left out") {
  CHECK(names(layout()) == std::vector<std::string>{"frames", "frames", "proprioception", "instruction",
                                                    "action", "reward", "terminated", "truncated", "seed",
                                                    "decision", "step", "end", "success", "group",
                                                    "version"});
  dvla::Transition blind = layout();
  blind.observation.frames = {};
  CHECK(names(blind).front() == "proprioception");
  CHECK(names({}).empty());
}

TEST_CASE("A transition has one more observation than decisions") {
  const dvla::Transition record = layout();
  CHECK(record.observation.frames[0].extents() == dvla::Extents{3, 3, 4, 6, 3});
  CHECK(record.observation.frames[2].absent());
  CHECK(record.observation.proprioception.extents() == dvla::Extents{3, 3, 3});
  CHECK(record.observation.instruction.extents() == dvla::Extents{3, 3});
  CHECK(record.action.extents() == dvla::Extents{2, 3, 4, 2});
  CHECK(record.version.extents() == dvla::Extents{2, 3});
  CHECK(record.group.extents() == dvla::Extents{3});
  CHECK(record.episode.seed.extents() == dvla::Extents{1, 3});
  CHECK(record.episode.final_observation.instruction.absent());
}

TEST_CASE("Placed fields lie in one block, on 64-byte lines, without overlap") {
  dvla::OwnedRecord<dvla::Transition> owned(layout(), *std::pmr::new_delete_resource());
  CHECK(owned.block().size() == dvla::record_bytes(layout()));
  const std::byte* end = owned.block().data();
  dvla::for_each_field(*owned, [&](const char*, const auto& field) {
    const auto* start = reinterpret_cast<const std::byte*>(field.data());
    CHECK(reinterpret_cast<std::uintptr_t>(start) % dvla::record_alignment == 0);
    CHECK(start >= end);
    end = start + field.bytes();
    std::memset(field.data(), 1, field.bytes());
  });
  CHECK(end <= owned.block().data() + owned.block().size());
}

TEST_CASE("The checksum sees every byte of every field and no padding") {
  dvla::OwnedRecord<dvla::Transition> owned(layout(), *std::pmr::new_delete_resource());
  std::memset(owned.block().data(), 0, owned.block().size());
  const std::uint64_t clean = dvla::record_checksum(*owned);
  int missed = 0, bytes = 0;
  dvla::for_each_field(*owned, [&](const char*, const auto& field) {
    for (std::byte& byte : std::as_writable_bytes(field.span())) {
      byte = std::byte{1};
      missed += dvla::record_checksum(*owned) == clean;
      byte = std::byte{0};
      ++bytes;
    }
  });
  CHECK(missed == 0);
  CHECK(static_cast<std::size_t>(bytes) < owned.block().size());  // so there is padding
  owned->episode.success[2] = 0;
  owned.block().back() = std::byte{1};  // behind the last field's 6 * 8 bytes
  CHECK(dvla::record_checksum(*owned) == clean);
}

TEST_CASE("A cut of a record is the same list of fields, each reduced, in the same memory") {
  dvla::OwnedRecord<dvla::Transition> owned(layout(), *std::pmr::new_delete_resource());
  const dvla::Observation now =
      dvla::cut_record(owned->observation, [](auto field) { return field.at(1).rows(1, 2); });
  CHECK(now.proprioception.extents() == dvla::Extents{2, 3});
  CHECK(now.proprioception.data() == owned->observation.proprioception.at(1).at(1).data());
  CHECK(now.frames[1].extents() == dvla::Extents{2, 2, 2, 3});
  CHECK(now.frames[3].absent());
}

TEST_CASE("What lies on another device is described, and refused where host memory is to hold it") {
  dvla::ObservationSpec spec;
  spec.cameras = {{"top", 4, 6}, {"wrist", 2, 2, dvla::Device::cuda}};
  spec.proprioception = 3;
  spec.instructions = {"go"};
  const dvla::Transition record =
      dvla::transition_layout(spec, {2}, {.decisions = 2, .episodes = 3, .chunk = 4, .table = 2});
  CHECK(record.observation.frames[0].device() == dvla::Device::cpu);
  CHECK(record.observation.frames[1].device() == dvla::Device::cuda);
  CHECK(record.observation.proprioception.device() == dvla::Device::cpu);
  CHECK(record.episode.final_observation.frames[1].at(1).device() == dvla::Device::cuda);
  CHECK_THROWS_WITH_AS(dvla::OwnedRecord(record, *std::pmr::new_delete_resource()),
                       "a record in host memory takes the field 'frames' on cpu, and it lies on cuda",
                       dvla::ConfigError);
  spec.cameras.pop_back();
  spec.proprioception_device = dvla::Device::cuda;
  CHECK_THROWS_WITH_AS(
      dvla::check_lies_on(dvla::observation_layout(spec, {1}), dvla::Device::cpu, "the pool"),
      "the pool takes the field 'proprioception' on cpu, and it lies on cuda", dvla::ConfigError);
  dvla::check_lies_on(layout(), dvla::Device::cpu, "the pool");
}
