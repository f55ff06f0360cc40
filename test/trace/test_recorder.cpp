// dvla-test: tsan
// The trace: rings that wrap, rows that are continued, reading while others write, a file that parses.
#include <doctest/doctest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <type_traits>
#include <vector>

#include "dvla/trace/chrome.hpp"
#include "dvla/trace/off.hpp"
#include "dvla/trace/recorder.hpp"
#include "test/core/foreign_locale.hpp"

using dvla::trace::Off;
using dvla::trace::Recorder;

TEST_CASE("a span holds name, category, batch, row and times") {
  Recorder recorder(8);
  auto row = recorder.enter("training");
  { auto span = recorder.span("train", 7, "lane"); }
  { auto span = recorder.span("backward", 7); }
  const auto spans = recorder.spans();
  REQUIRE(spans.size() == 2);
  CHECK(std::string(spans[0].name) == "train");
  CHECK(std::string(spans[0].category) == "lane");
  CHECK(std::string(spans[1].category) == "stage");
  CHECK(spans[0].batch == 7);
  CHECK(spans[0].begin_ns <= spans[0].end_ns);
  CHECK(spans[0].end_ns <= spans[1].begin_ns);
  CHECK(recorder.rows() == std::vector<std::string>{"training"});
}

TEST_CASE("a full ring keeps the newest spans and counts the lost ones") {
  for (std::size_t capacity : {1u, 2u, 5u}) {
    Recorder recorder(capacity);
    for (int i = 0; i < 13; ++i) recorder.record("x", "stage", i, i, i + 1);
    const auto spans = recorder.spans();
    REQUIRE(spans.size() == capacity);
    for (std::size_t i = 0; i < capacity; ++i) CHECK(spans[i].batch == static_cast<int>(13 - capacity + i));
    CHECK(recorder.dropped() == 13 - static_cast<std::int64_t>(capacity));
    recorder.clear();
    CHECK(recorder.spans().empty());
    CHECK(recorder.dropped() == 0);
    recorder.record("x", "stage", 99, 0, 1);
    REQUIRE(recorder.spans().size() == 1);
    CHECK(recorder.spans()[0].batch == 99);
  }
}

TEST_CASE("a ring without room is refused") { CHECK_THROWS_AS(Recorder(0), dvla::ConfigError); }

TEST_CASE("each thread has its row; a lane that starts anew continues its own") {
  Recorder recorder(100);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> threads;
    for (const char* name : {"sampling", "training"})
      threads.emplace_back([&recorder, name, round] {
        auto row = recorder.enter(name);
        recorder.record(name, "lane", round, 0, 1);
      });
    for (auto& thread : threads) thread.join();
  }
  CHECK(recorder.rows().size() == 2);
  for (const auto& span : recorder.spans())
    CHECK(recorder.rows()[static_cast<std::size_t>(span.row)] == span.name);
}

TEST_CASE("rows of one name at the same time are two rows, and a thread gets its outer row back") {
  Recorder recorder(10);
  auto outer = recorder.enter("main");
  {
    auto inner = recorder.enter("synchronous");
    recorder.record("inner", "lane", 0, 0, 1);
  }
  recorder.record("outer", "stage", 0, 0, 1);
  std::thread([&] {
    auto other = recorder.enter("main");
    recorder.record("other", "stage", 0, 0, 1);
  }).join();
  CHECK(recorder.rows() == std::vector<std::string>{"main", "synchronous", "main"});
  for (const auto& span : recorder.spans())
    CHECK(span.row == (std::string(span.name) == "inner" ? 1 : std::string(span.name) == "other" ? 2 : 0));
}

TEST_CASE("two recorders in one thread do not mix") {
  Recorder first(10), second(10);
  for (int i = 0; i < 5; ++i) {
    first.record("a", "stage", i, 0, 1);
    second.record("b", "stage", i, 0, 1);
  }
  CHECK(first.spans().size() == 5);
  CHECK(second.spans().size() == 5);
  CHECK(first.rows().size() == 1);
}

TEST_CASE("reading while others write gives whole spans only") {
  Recorder recorder(16);
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (int t = 0; t < 2; ++t)
    writers.emplace_back([&] {
      for (std::int64_t i = 0; !done.load(); ++i) recorder.record("w", "stage", i, 2 * i, 3 * i);
    });
  bool whole = true;
  for (int i = 0; i < 300; ++i) {
    std::int64_t last = -1;
    int row = -1;
    for (const auto& span : recorder.spans()) {
      if (span.row != row) row = span.row, last = -1;
      whole = whole && span.begin_ns == 2 * span.batch && span.end_ns == 3 * span.batch && span.batch > last;
      last = span.batch;
    }
    recorder.dropped();
  }
  done = true;
  for (auto& thread : writers) thread.join();
  CHECK(whole);
}

TEST_CASE("the file parses back as Chrome trace events, whatever the names hold") {
  Recorder recorder(100);
  auto row = recorder.enter("quote \" back\\slash \n tab\t \x01 \xff");
  recorder.record("train", "lane", 3, 1'000'000'000'123, 1'000'000'500'123);
  recorder.record("say \"hi\"\\", "stage", 4, 1'000'000'001'124, 1'000'000'001'125);
  std::ostringstream out;
  dvla::trace::write_chrome(out, {dvla::trace::snapshot(recorder, "a \"process\"")});
  const auto json = nlohmann::json::parse(out.str());
  CHECK(json["dropped"] == 0);
  const auto& events = json["traceEvents"];
  REQUIRE(events.size() == 5);  // process name, thread name and order, two spans
  CHECK(events[0]["args"]["name"] == "a \"process\"");
  CHECK(events[1]["name"] == "thread_name");
  CHECK(events[1]["args"]["name"] == "quote \" back\\slash \n tab\t \x01 \xef\xbf\xbd");
  CHECK(events[3]["ph"] == "X");
  CHECK(events[3]["name"] == "train");
  CHECK(events[3]["cat"] == "lane");
  CHECK(events[3]["ts"].get<double>() == doctest::Approx(0));
  CHECK(events[3]["dur"].get<double>() == doctest::Approx(500));
  CHECK(events[3]["args"]["batch"] == 3);
  CHECK(events[4]["name"] == "say \"hi\"\\");
  CHECK(events[4]["ts"].get<double>() == doctest::Approx(1.001));
  CHECK(events[4]["tid"] == events[1]["tid"]);
}

TEST_CASE("an empty trace is a valid file, and a file that cannot be written is an error") {
  Recorder recorder(4);
  std::ostringstream out;
  dvla::trace::write_chrome(out, {dvla::trace::snapshot(recorder, "dvla")});
  CHECK(nlohmann::json::parse(out.str())["traceEvents"].size() == 1);
  CHECK_THROWS_WITH_AS(
      dvla::trace::write_chrome_file("/nonexistent/trace.json", {}),
      "trace: cannot write '/nonexistent/trace.json'; check that its folder exists and has room",
      dvla::Error);
}

TEST_CASE("Off has the same interface and keeps nothing") {
  static_assert(std::is_empty_v<Off> && std::is_empty_v<Off::scope>);
  Off off;
  auto row = off.enter("training");
  auto span = off.span("train", 1, "lane");
  off.record("x", "stage", 0, 0, 0);
  CHECK(off.spans().empty());
  CHECK(off.dropped() == 0);
}

TEST_CASE("the file is JSON under any locale") {
  Recorder recorder(2);
  for (int i = 0; i < 1100; ++i)
    recorder.record("step", "stage", 1'000'000 + i, 1'000'000 * i, 1'500'000 * i);
  const auto text = [&] {
    std::ostringstream out;
    dvla::trace::write_chrome(out, {dvla::trace::snapshot(recorder, "dvla")});
    return out.str();
  };
  const std::string plain = text();
  const dvla_test::ForeignLocale foreign;
  CHECK(text() == plain);
  CHECK(nlohmann::json::parse(text())["dropped"] == 1098);
}
