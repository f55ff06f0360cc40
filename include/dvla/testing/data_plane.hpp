// Conformance of data planes, inside one process and between two: what every plane must do, for shipped and
// users' own ones. Returns one sentence per violation, none if it conforms; no test framework.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "dvla/core/random.hpp"
#include "dvla/core/record.hpp"
#include "dvla/handoff/mailbox.hpp"
#include "dvla/handoff/token.hpp"
#include "dvla/testing/findings.hpp"

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
  detail::Findings expect;
  {
    auto plane = make();
    const Token first{.batch = 41, .buffer = 0}, second{.batch = 42, .buffer = 0};
    expect.refused("a buffer that does not exist", "7",
                   [&] { plane->produce({.batch = 1, .buffer = 7000}); });
    expect.refused("a negative buffer", "-1", [&] { plane->produce({.batch = 1, .buffer = -1}); });
    expect.refused("reading what nobody sent", "41", [&] { plane->consume(first); });
    auto& filled = plane->produce(first);
    expect(filled.id == 41, "produce must stamp the batch");
    scribble(filled, 1);
    const std::uint64_t sum = record_checksum(filled);
    expect.refused("reading before the hand-over", "41", [&] { plane->consume(first); });
    expect.refused("handing over another batch", "42", [&] { plane->commit(second); });
    plane->commit(first);
    expect.refused("filling an unconsumed buffer", "41", [&] { plane->produce(second); });
    expect.refused("filling an unconsumed buffer", "42", [&] { plane->produce(second); });
    expect.refused("reading another batch", "42", [&] { plane->consume(second); });
    expect.refused("releasing what was not read", "41", [&] { plane->release(first); });
    expect(plane->report().in_flight == 1, "a batch that was sent is in flight");
    auto& read = plane->consume(first);
    expect(read.id == 41 && record_checksum(read) == sum, "the trainer must read what the sampler wrote");
    plane->release(first);
    expect.refused("releasing twice", "41", [&] { plane->release(first); });
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
    detail::Beside sampler([&] {
      for (std::int64_t batch = 0; batch < batches; ++batch) {
        Token token = empty.pop(limit, {}).value();
        token.batch = batch;
        scribble(plane->produce(token), static_cast<std::uint64_t>(batch));
        plane->commit(token);
        full.push(token, limit, {});
      }
    });
    const std::string trained = detail::outcome([&] {
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
    });
    for (const std::string& how : {trained, sampler.how()}) expect(how == "done", "two threads: " + how);
    const auto report = plane->report();
    expect(report.sent == batches && report.trained == batches && report.in_flight == 0,
           "after " + std::to_string(batches) + " batches all must be trained");
  }
  return expect.sentences;
}

/// Between processes: `make()` gives a pair of plane pointers, those of the one rollout and of the one actor
/// of a fresh job, with two buffers each, equal layouts and a deadline of a few tenths of a second. Every
/// check has its own.
template <class Make>
std::vector<std::string> check_split_data_plane(Make make) {
  detail::Findings expect;
  const auto token = [](std::int64_t batch) {
    return Token{.batch = batch, .version = batch + 7, .buffer = static_cast<std::int32_t>(batch % 2)};
  };
  const auto send = [&](auto& rollout, std::int64_t batch) {
    auto& share = rollout.produce(token(batch));
    scribble(share, static_cast<std::uint64_t>(batch));
    const std::uint64_t sum = record_checksum(share);
    rollout.commit(token(batch));
    return sum;
  };
  {
    auto pair = make();
    auto &rollout = std::get<0>(pair), &actor = std::get<1>(pair);
    expect.refused("a buffer that does not exist", "7000",
                   [&] { rollout->produce({.batch = 1, .buffer = 7000}); });
    expect.refused("waiting for what nobody sends", "0", [&] { actor->consume(token(0)); });
    expect.refused("handing over what was not filled", "0", [&] { rollout->commit(token(0)); });
    rollout->produce(token(0));
    expect.refused("handing over another batch", "2", [&] { rollout->commit(token(2)); });
    rollout->drop(token(0));
    expect(rollout->report().sent == 0, "what was dropped while it was filled was not sent");
    const std::uint64_t sum = send(*rollout, 0);
    expect.refused("handing over twice", "0", [&] { rollout->commit(token(0)); });
    Token arrived = token(0);
    arrived.version = 1 << 20;
    expect(actor->arrive(arrived), "a batch that was sent arrives");
    expect(arrived.version == 7, "the oldest version travels with the batch");
    auto& read = actor->consume(token(0));
    expect(read.id == 0 && record_checksum(read) == sum, "the trainer must read what the sampler wrote");
    actor->release(token(0));
    expect.refused("releasing twice", "0", [&] { actor->release(token(0)); });
    expect.refused("reading a batch again", "0", [&] { actor->consume(token(0)); });
  }
  {  // Two buffers here, two there: the fifth batch must wait, and the wait must run out.
    auto pair = make();
    auto &rollout = std::get<0>(pair), &actor = std::get<1>(pair);
    for (std::int64_t batch = 0; batch < 4; ++batch) send(*rollout, batch);
    expect.refused("more batches than there are buffers", "4", [&] { rollout->produce(token(4)); });
    actor->consume(token(0));
    actor->release(token(0));
    send(*rollout, 4);
    for (std::int64_t batch = 1; batch < 5; ++batch) {
      expect(actor->consume(token(batch)).id == batch, "back-pressure must lose nothing");
      actor->release(token(batch));
    }
  }
  {
    auto pair = make();
    auto &rollout = std::get<0>(pair), &actor = std::get<1>(pair);
    constexpr std::int64_t batches = 200;
    std::vector<std::uint64_t> sums(batches);
    detail::Beside sampler([&, &from = *rollout] {
      for (std::int64_t batch = 0; batch < batches; ++batch)
        sums[static_cast<std::size_t>(batch)] = send(from, batch);
      from.goodbye();
    });
    std::vector<std::uint64_t> read;
    const std::string trained = detail::outcome([&] {
      for (std::int64_t batch = 0;; ++batch) {
        Token next = token(batch);
        if (!actor->arrive(next)) break;
        read.push_back(record_checksum(actor->consume(next)));
        actor->release(next);
      }
    });
    for (const std::string& how : {trained, sampler.how()}) expect(how == "done", "two threads: " + how);
    expect(read == sums, "every batch must arrive, unchanged and in order, until the goodbye");
    const auto sent = rollout->report(), taken = actor->report();
    expect(sent.sent > 0 && sent.sent == taken.trained && sent.unacknowledged == 0 && taken.in_flight == 0,
           "sent = trained must hold after the goodbye");
  }
  return expect.sentences;
}

}  // namespace dvla::testing
