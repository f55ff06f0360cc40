// dvla-test: tsan
// wiring: tokens arrive in place, without a TBB task, on one core and with one TBB thread.
#include <doctest/doctest.h>
#include <oneapi/tbb/global_control.h>

#include <thread>
#include <vector>

#include "dvla/handoff/mailbox.hpp"
#include "dvla/handoff/wiring.hpp"
#include "one_core.hpp"

using namespace std::chrono_literals;
using dvla::Token;
using dvla::wiring;

TEST_CASE("a token is posted along every arrow before send() returns, in the sender's thread") {
  wiring wires;
  std::vector<std::int64_t> first, second;
  const auto here = std::this_thread::get_id();
  bool same_thread = true;
  auto& source = wires.add([](const Token&) { return true; });
  wires.connect(source, wires.add([&](const Token& token) {
    same_thread = same_thread && std::this_thread::get_id() == here;
    return first.push_back(token.batch), true;
  }));
  wires.connect(source, wires.add([&](const Token& token) { return second.push_back(token.batch), true; }));
  for (int i = 0; i < 100; ++i) {
    wires.send(source, {i, 0, 0});
    REQUIRE(first.size() == static_cast<std::size_t>(i) + 1);
    REQUIRE(second.size() == first.size());
  }
  CHECK(same_thread);
}

TEST_CASE("sending where nobody listens is no error") {
  wiring wires;
  wires.send(wires.add([](const Token&) { return true; }), {});
}

TEST_CASE("a receiver without room is an error that names the batch") {
  wiring wires;
  dvla::mailbox<Token> box(1);
  auto& source = wires.add([](const Token&) { return true; });
  wires.connect(source, wires.add([&](const Token& token) { return box.try_push(token); }));
  wires.send(source, {0, 0, 0});
  CHECK_THROWS_WITH_AS(wires.send(source, {1, 0, 0}), doctest::Contains("no room for the token of batch 1"),
                       dvla::Error);
}

namespace {
// Two threads answer each other through the graph's ring.
int ping_pong(int rounds) {
  wiring wires;
  dvla::mailbox<Token> left(1), right(1);
  auto& a = wires.add([&](const Token& token) { return left.try_push(token); });
  auto& b = wires.add([&](const Token& token) { return right.try_push(token); });
  wires.connect(a, b);
  wires.connect(b, a);
  std::thread other([&] {
    while (auto token = right.pop(60s, {})) {
      ++token->version;
      wires.send(b, *token);
    }
  });
  Token token;
  for (int i = 0; i < rounds; ++i) {
    wires.send(a, token);
    token = *left.pop(60s, {});
  }
  right.close();
  other.join();
  return static_cast<int>(token.version);
}
}  // namespace

TEST_CASE("a ring turns on any number of cores") { CHECK(ping_pong(2000) == 2000); }

TEST_CASE("a ring turns with one TBB thread") {
  const oneapi::tbb::global_control one(oneapi::tbb::global_control::max_allowed_parallelism, 1);
  CHECK(ping_pong(2000) == 2000);
}

TEST_CASE("a ring turns on one core") {
  const OneCore core;
  REQUIRE(core.good());
  CHECK(ping_pong(2000) == 2000);
}
