// Conformance of a data plane inside one process: what every plane must do, for shipped and users' own ones.
// Returns one sentence per violation, none if it conforms; no test framework.
#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/handoff/mailbox.hpp"
#include "dvla/handoff/token.hpp"

namespace dvla::testing {

/// Fills every field of a record with bytes that depend on `seed` alone.
template <Record Type>
void scribble(const Type& record, std::uint64_t seed) {
  SplitMix64 random(seed);
  for_each_field(record, [&](const char*, const auto& field) {
    for (std::byte& byte : std::as_writable_bytes(field.span())) byte = static_cast<std::byte>(random());
  });
}

/// `make()` gives a fresh plane with two buffers or more; every check has its own.
template <class Make>
std::vector<std::string> check_data_plane(Make make) {
  std::vector<std::string> violations;
  auto expect = [&](bool holds, const std::string& what) {
    if (!holds) violations.push_back(what);
  };
  auto must_refuse = [&](const std::string& what, const std::string& names, auto&& call) {
    try {
      call();
      violations.push_back("must be refused: " + what);
    } catch (const Error& error) {
      expect(std::string(error.what()).find(names) != std::string::npos,
             "the refusal must say '" + names + "': " + what + ": " + error.what());
    }
  };
  {
    auto plane = make();
    const Token first{.batch = 41, .buffer = 0}, second{.batch = 42, .buffer = 0};
    must_refuse("a buffer that does not exist", "7", [&] { plane->produce({.batch = 1, .buffer = 7000}); });
    must_refuse("a negative buffer", "-1", [&] { plane->produce({.batch = 1, .buffer = -1}); });
    must_refuse("reading what nobody sent", "41", [&] { plane->consume(first); });
    auto& filled = plane->produce(first);
    expect(filled.id == 41, "produce must stamp the batch");
    scribble(filled, 1);
    const std::uint64_t sum = record_checksum(filled);
    must_refuse("reading before the hand-over", "41", [&] { plane->consume(first); });
    must_refuse("handing over another batch", "42", [&] { plane->commit(second); });
    plane->commit(first);
    must_refuse("filling an unconsumed buffer", "41", [&] { plane->produce(second); });
    must_refuse("filling an unconsumed buffer", "42", [&] { plane->produce(second); });
    must_refuse("reading another batch", "42", [&] { plane->consume(second); });
    must_refuse("releasing what was not read", "41", [&] { plane->release(first); });
    expect(plane->report().in_flight == 1, "a batch that was sent is in flight");
    auto& read = plane->consume(first);
    expect(read.id == 41 && record_checksum(read) == sum, "the trainer must read what the sampler wrote");
    plane->release(first);
    must_refuse("releasing twice", "41", [&] { plane->release(first); });
    plane->produce(second);
    plane->drop(second);
    expect(plane->report().dropped == 0, "what was never sent cannot be dropped from the count");
    plane->produce(second);
    plane->commit(second);
    plane->drop(second);
    const auto report = plane->report();
    expect(report.sent == 2 && report.trained == 1 && report.dropped == 1 && report.in_flight == 0,
           "sent = trained + dropped + in flight must hold");
  }
  {
    auto plane = make();
    constexpr std::int64_t batches = 200;
    const auto limit = std::chrono::seconds(20);
    mailbox<Token> full(2), empty(2);
    for (std::int32_t buffer = 0; buffer < 2; ++buffer) empty.push({.buffer = buffer}, limit, {});
    std::string failure;
    std::thread sampler([&] {
      try {
        for (std::int64_t batch = 0; batch < batches; ++batch) {
          Token token = empty.pop(limit, {}).value();
          token.batch = batch;
          scribble(plane->produce(token), static_cast<std::uint64_t>(batch));
          plane->commit(token);
          full.push(token, limit, {});
        }
      } catch (const std::exception& error) {
        failure = error.what();
      }
    });
    try {
      auto reference = make();
      for (std::int64_t batch = 0; batch < batches; ++batch) {
        const Token token = full.pop(limit, {}).value();
        scribble(reference->produce(token), static_cast<std::uint64_t>(batch));
        expect(record_checksum(plane->consume(token)) == record_checksum(reference->produce(token)),
               "batch " + std::to_string(batch) + " arrived changed");
        reference->drop(token);
        plane->release(token);
        empty.push(token, limit, {});
      }
    } catch (const std::exception& error) {
      violations.push_back(std::string("two threads: ") + error.what());
    }
    sampler.join();
    expect(failure.empty(), "two threads: " + failure);
    const auto report = plane->report();
    expect(report.sent == batches && report.trained == batches && report.in_flight == 0,
           "after " + std::to_string(batches) + " batches all must be trained");
  }
  return violations;
}

}  // namespace dvla::testing
