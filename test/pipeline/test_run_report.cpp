// The figures of a job's ranks: through a text and back, from the traces, and put together by the leader.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "dvla/pipeline/run_report.hpp"
#include "dvla/testing/thread_cluster.hpp"

namespace {

using namespace dvla;
using namespace std::chrono_literals;

constexpr std::int64_t second = 1'000'000'000;

RankReport parse(const std::string& text) {
  return parse_json<RankReport>(text, "report of another rank, whose program differs");
}

/// Two batches of a rank: sampling takes 2 s and 4 s, and so on.
RankReport report_of(std::int64_t rank) {
  RankReport report{};
  report.rank = rank;
  report.env_steps = 10 * (rank + 1);
  report.chunk_steps = rank + 1;
  report.unreported = 5;
  report.gradient_bytes_sent = std::int64_t{1} << 40;
  report.trace.name = "rank " + std::to_string(rank);
  report.trace.rows = {"lanes"};
  for (const trace::span_record& span : std::vector<trace::span_record>{
           {"sample", "lane", 0, 0, 2 * second, 0},
           {"sample", "lane", 1, 2 * second, 6 * second, 0},
           {"sample", "stage", 1, 0, 100 * second, 0},  // a part of one, or another's
           {"train", "lane", 0, 0, second, 0},
           {"arrive", "wait", 0, 0, 100 * second, 0},
           {"distribute", "lane", 0, 0, second / 2, 0},
           {"receive", "lane", 0, 0, second / 4, 0}})
    report.trace.add(span);
  time_lanes(report);
  return report;
}

}  // namespace

TEST_CASE("times of the lanes are means over a rank's batches") {
  const RankReport report = report_of(0);
  CHECK(report.rollout_time_s == doctest::Approx(3));
  CHECK(report.actor_time_s == doctest::Approx(1));
  CHECK(report.sync_time_s == doctest::Approx(0.75));
  RankReport nothing{};
  nothing.actor_time_s = 7;
  time_lanes(nothing);
  CHECK(nothing.rollout_time_s == 0);
  CHECK(nothing.actor_time_s == 0);
}

TEST_CASE("a report comes back from its text as it was; what is none is refused") {
  const RankReport report = report_of(2);
  const std::string text = dvla::json_text(report);
  const RankReport back = parse(text);
  CHECK(dvla::json_text(back) == text);
  CHECK(back.rank == 2);
  CHECK(back.env_steps == 30);
  CHECK(back.unreported == 5);
  CHECK(back.rollout_time_s == report.rollout_time_s);
  CHECK(back.gradient_bytes_sent == std::int64_t{1} << 40);
  CHECK(back.trace.name == "rank 2");
  const std::vector<trace::span_record> spans = report.trace.spans(), back_spans = back.trace.spans();
  REQUIRE(back_spans.size() == spans.size());
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const trace::span_record &one = back_spans[i], &other = spans[i];
    CHECK(std::string(one.name) == other.name);
    CHECK(std::string(one.category) == other.category);
    CHECK(one.batch == other.batch);
    CHECK(one.begin_ns == other.begin_ns);
    CHECK(one.end_ns == other.end_ns);
    CHECK(one.row == other.row);
  }
  for (std::size_t length = 0; length < text.size(); ++length)
    CHECK_THROWS_AS(parse(text.substr(0, length)), FormatError);
  const auto with = [&](const std::string& from, const std::string& to) {
    REQUIRE(text.find(from) != text.npos);
    std::string wrong = text;
    wrong.replace(text.find(from), from.size(), to);
    try {
      (void)parse(wrong).trace.spans();
    } catch (const FormatError& error) {
      return std::string(error.what());
    }
    return std::string("(nothing is refused)");
  };
  const std::string head = "report of another rank, whose program differs: it";
  CHECK(with("\"env_steps\":30,", "") == head + "s field 'env_steps' is missing");
  CHECK(with("\"env_steps\"", "\"env\"") == head + " has \"env\", which is not known");
  CHECK(with("\"sent\":0", "\"sent\":[]")
            .find(head + "s field 'sent' is an array; it must be a whole number") == 0);
  CHECK(with("\"rows\":[\"lanes\"]", "\"rows\":[]") == "trace of another process: a span has no such row");
  CHECK(with("[0,1,0,0,", "[9,1,0,0,") == "trace of another process: a span has no such name");
  CHECK(with("[0,1,0,0,", "[0,1,0,-1,") == "trace of another process: a span lies outside of time");
  CHECK(with("[0,1,0,0,", "[0,1,0,")
            .find("its field 'trace.packed[0]' is an array; it must be an array of 6") != std::string::npos);
}

TEST_CASE("the leader gathers what the ranks hand in, and names who is silent") {
  const Roles roles{{1, 2, 3, 4}, {0}};
  const auto clusters = testing::ThreadCluster::make(5);
  std::vector<std::unique_ptr<Job>> jobs;
  for (const auto& cluster : clusters) jobs.push_back(std::make_unique<Job>(*cluster, roles, 100ms));
  hand_in(report_of(1), *jobs[1]);
  hand_in(report_of(3), *jobs[3]);  // and is lost then
  RunReport report;
  gather(report, report_of(0), *jobs[0], [](int rank) { return rank == 3 || rank == 4; });
  REQUIRE(report.ranks.size() == 3);
  CHECK(report.ranks[0].rank == 0);
  CHECK(report.ranks[1].rank == 1);
  CHECK(report.ranks[2].rank == 3);
  CHECK(report.silent == std::vector<int>{2, 4});  // 2 says nothing in time, 4 is lost
  sum_up(report);
  CHECK(report.env_steps == 10 + 20 + 40);
  CHECK(report.chunk_steps == 1 + 2 + 4);
  CHECK(report.timing.rollout_time_s == doctest::Approx(3));
}

TEST_CASE("of a rollout that left and came again the newest life's report counts") {
  const Roles roles{{1}, {0}};
  const auto clusters = testing::ThreadCluster::make(2);
  Job leader(*clusters[0], roles, 5s), first(*clusters[1], roles, 5s);
  leader.begin_together(nullptr);
  hand_in(report_of(7), first);
  const auto gathered = [&] {
    RunReport report;
    gather(report, report_of(0), leader, [](int) { return false; });
    REQUIRE(report.ranks.size() == 2);
    return report.ranks[1].rank;
  };
  CHECK(gathered() == 7);
  Job second(*clusters[1], roles, 5s);
  REQUIRE(second.incarnation() == 1);
  clusters[1]->put(Job::request_key(1, 1), "");
  CHECK(gathered() == 7);  // nobody has let it in
  clusters[0]->put(Job::permit_key(1, 1), "");
  second.announce();
  hand_in(report_of(8), second);
  CHECK(gathered() == 8);
}
