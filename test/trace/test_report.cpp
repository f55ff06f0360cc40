// dvla-test: tsan
// The report's figures against a timeline worked out by hand, and against the schedules' own spans.
#include <doctest/doctest.h>

#include <set>

#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/trace/recorder.hpp"
#include "dvla/trace/report.hpp"

using doctest::Approx;
using dvla::trace::make_report;
using dvla::trace::report;
using dvla::trace::span_record;

namespace {
constexpr std::int64_t second = 1'000'000'000;
void add(std::vector<span_record>& spans, int lane, std::int64_t batch, double begin, double end) {
  spans.push_back({dvla::trace::lane_span_names[static_cast<std::size_t>(lane)], "lane", batch,
                   static_cast<std::int64_t>(begin * second), static_cast<std::int64_t>(end * second), lane});
}
// K = 1, sampling 2 s, training 4 s, distribution 0.5 s, reception 0.5 s, hand-over to training of batch 0
// takes 1 s:
//   sample     0..2  2..4        8..10
//   train           3..7 7..11        11..15
//   distribute           7..7.5  11..11.5  15..15.5
//   receive              7.5..8  11.5..12  15.5..16
std::vector<span_record> timeline() {
  std::vector<span_record> spans;
  add(spans, 0, 0, 0, 2), add(spans, 0, 1, 2, 4), add(spans, 0, 2, 8, 10);
  add(spans, 1, 0, 3, 7), add(spans, 1, 1, 7, 11), add(spans, 1, 2, 11, 15);
  for (int batch = 0; batch < 3; ++batch) {
    add(spans, 2, batch, 7 + 4 * batch, 7.5 + 4 * batch);
    add(spans, 3, batch, 7.5 + 4 * batch, 8 + 4 * batch);
  }
  return spans;
}

void check_timeline(const report& r) {
  CHECK(r.iterations == 3);
  CHECK(r.wall_s == Approx(16));
  CHECK(r.sampling_s == Approx(6));
  CHECK(r.training_s == Approx(12));
  CHECK(r.sync_s == Approx(3));
  // two lanes at once: 3..4 (sample 1 and train 0), 7..8 (sync and train 1), 8..10 (sample 2), 11..12
  CHECK(r.overlap == Approx(100.0 * 5 / 16));
  CHECK(r.bubble == Approx(100.0 * (1 - 18.0 / 32)));
  CHECK(r.ideal_gain == Approx(21.0 / 12));
  CHECK(r.achieved_gain == Approx(21.0 / 16));
  CHECK(r.step_time_s == Approx(16.0 / 3));
  CHECK(r.rollout_time_s == Approx(2));
  CHECK(r.actor_time_s == Approx(4));
  CHECK(r.sync_time_s == Approx(1));
  // back from receive 2: receive .5, distribute .5, train 2, 1, 0 (12), hand-over 1, sample 0 (2)
  CHECK(r.critical_s[0] == Approx(2));
  CHECK(r.critical_s[1] == Approx(12));
  CHECK(r.critical_s[2] == Approx(0.5));
  CHECK(r.critical_s[3] == Approx(0.5));
  CHECK(r.critical_handover_s == Approx(1));
  CHECK(r.bounded_by == std::array<std::int64_t, 4>{0, 3, 0, 0});
}
}  // namespace

TEST_CASE("every figure of a timeline worked out by hand") { check_timeline(make_report(timeline())); }

TEST_CASE("stage spans, waits and batches that are not complete disturb nothing") {
  auto spans = timeline();
  spans.push_back({"train", "stage", 0, 0, 90 * second, 1});
  spans.push_back({"backward", "stage", 1, 3 * second, 4 * second, 1});
  spans.push_back({"wait", "wait", 1, 0, 90 * second, 2});
  add(spans, 0, 3, 16, 50);  // never trained
  add(spans, 3, -1, -9, -8);
  check_timeline(make_report(spans));
}

TEST_CASE("a sampler that waits for weights has the reception before it on the critical path") {
  std::vector<span_record> spans;  // K = 0: everything in turn; sampling dominates
  for (int batch = 0; batch < 4; ++batch) {
    const double start = 10 * batch;
    add(spans, 0, batch, start, start + 6), add(spans, 1, batch, start + 6, start + 8);
    add(spans, 2, batch, start + 8, start + 9), add(spans, 3, batch, start + 9, start + 10);
  }
  const report r = make_report(spans);
  CHECK(r.overlap == Approx(0));
  CHECK(r.achieved_gain == Approx(1));
  CHECK(r.critical_s[0] == Approx(24));
  CHECK(r.critical_s[1] == Approx(8));
  CHECK(r.critical_s[2] == Approx(4));
  CHECK(r.critical_s[3] == Approx(4));
  CHECK(r.critical_handover_s == Approx(0));
  CHECK(r.bounded_by == std::array<std::int64_t, 4>{4, 0, 0, 0});
}

TEST_CASE("nothing recorded gives zeros, and the text says what was lost") {
  const report r = make_report({}, 12);
  CHECK(r.iterations == 0);
  CHECK(r.overlap == 0);
  CHECK(to_text(r).find("lost 12 spans") != std::string::npos);
}

namespace {
struct quick {
  void sample(dvla::Token&) { pause(); }
  void train(dvla::Token& token) {
    auto span = recorder.span("forward", token.batch);
    pause();
  }
  void distribute(dvla::Token&) {}
  void receive(dvla::Token&) {}
  void observe(const dvla::Token&) {}
  static void pause() { dvla::timed_semaphore().acquire_for(std::chrono::milliseconds(1)); }
  dvla::trace::Recorder& recorder;
};
}  // namespace

TEST_CASE("the schedules record one lane span per stage and batch, waits, and one row per lane") {
  dvla::run_options how;
  how.batches = 20;
  dvla::trace::Recorder lanes(1000), turns(1000);
  quick swimming{lanes}, in_turn{turns};
  dvla::SynchronousRunner::run(in_turn, how, turns);
  how.staleness = 1;
  dvla::SwimlaneRunner<1>::run(swimming, how, lanes);
  dvla::SwimlaneRunner<1>::run(swimming, how, lanes);  // rows are continued
  const auto rows = lanes.rows();
  CHECK(std::set<std::string>(rows.begin(), rows.end()) ==
        std::set<std::string>{"sampling", "training", "distribution", "reception", "observer"});
  CHECK(rows.size() == 5);
  CHECK(turns.rows() == std::vector<std::string>{"synchronous"});
  std::multiset<std::string> categories;
  for (const auto& span : lanes.spans()) categories.insert(span.category);
  CHECK(categories.count("lane") == 2 * 4 * 20);
  CHECK(categories.count("stage") == 2 * 20);
  CHECK(categories.count("observer") == 2 * 20);
  CHECK(categories.count("wait") > 0);

  const report r = make_report(turns.spans(), turns.dropped());
  CHECK(r.iterations == 20);
  CHECK(r.overlap == Approx(0));
  CHECK(r.achieved_gain <= 1.0);
  double path = r.critical_handover_s;
  for (double part : r.critical_s) path += part;
  CHECK(path == Approx(r.wall_s));
}

TEST_CASE("the critical path of a swimlane is as long as its wall time") {
  dvla::trace::Recorder recorder(1000);
  quick stages{recorder};
  for (int k = 0; k <= 3; ++k) {
    recorder.clear();
    dvla::run_options how;
    how.batches = 30;
    how.staleness = k;
    dvla::SwimlaneRunner<3>::run(stages, how, recorder);
    const report r = make_report(recorder.spans());
    CHECK(r.iterations == 30);
    double path = r.critical_handover_s;
    for (double part : r.critical_s) path += part;
    CHECK(path == Approx(r.wall_s));
    std::int64_t bounded = 0;
    for (auto count : r.bounded_by) bounded += count;
    CHECK(bounded == 30);
    if (k == 0) CHECK(r.overlap == Approx(0));
  }
}
