// dvla-test: tsan asan
// Replay: an asynchronous run, written down and repeated in one thread, ends with the same bits. Recordings
// that are damaged, cut off, or of another run are refused in one sentence.
#include <doctest/doctest.h>

#include <condition_variable>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "dvla/control_plane/front_back.hpp"
#include "dvla/core/random.hpp"
#include "dvla/schedule/recording_file.hpp"
#include "dvla/schedule/replay.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/testing/schedule.hpp"

using namespace std::chrono_literals;
using dvla::HandOver;
using dvla::Recording;
using dvla::ReplayRunner;
using dvla::run_options;
using dvla::SwimlaneRunner;
using dvla::SynchronousRunner;
using dvla::Token;
using dvla::testing::WatchedStages;

namespace {

/// A checksum of no weights.
const auto nothing = [] { return dvla::checksum({}); };

constexpr std::int64_t boundaries = 8, batches = 40;

std::uint64_t mixed(std::uint64_t one, std::uint64_t two) { return dvla::mix_seed(one, two); }

struct Weights {
  std::uint64_t value = 0;
  std::int64_t version = 0;
};

/// The weights are one number, a hash of all that was decided, in which order, and by which weights.
class HashStages {
 public:
  HashStages(int staleness, std::uint64_t seed, std::int64_t first = 0)
      : staleness_(staleness),
        first_(first),
        trainer({mixed(seed, 7), first}),
        models_(trainer, trainer),
        buffers_(static_cast<std::size_t>(staleness) + 1),
        seed_(seed) {}

  /// Delays that differ between runs; and weights that arrive in the midst of every third rollout.
  void run_at_random(unsigned randomness) {
    random_ = true;
    for (unsigned lane = 0; lane < 4; ++lane) delays_[lane].seed(randomness + lane);
  }

  void sample(Token& token) {
    dvla::no_boundaries nobody;
    sample(token, nobody);
  }
  template <class Boundaries>
  void sample(Token& token, Boundaries& at) {
    delay(0);
    std::uint64_t& trajectory = buffers_[static_cast<std::size_t>(token.buffer)].trajectory;
    trajectory = mixed(seed_, static_cast<std::uint64_t>(token.batch));
    for (std::int64_t b = 0; b < passes; ++b) {
      at.before(b);
      if (meets(token.batch) && b == 1 + token.batch % (boundaries - 1))
        wait([&] { return installed_ >= token.batch; });
      b == 0 ? models_.swap_within(20s) : models_.try_swap();
      const Weights& now = models_.front();
      if (b == 0) token.version = now.version;
      if (token.batch == fails_at && b == 3) throw std::runtime_error("the simulator fell over");
      at.decides(b, now.version, [&] {
        return dvla::checksum(std::as_bytes(std::span<const std::uint64_t>(&now.value, 1)));
      });
      if (b == 0) tell(begun_, token.batch);
      trajectory = mixed(mixed(trajectory, now.value), static_cast<std::uint64_t>(b));
      delay(0);
    }
    threads.insert(std::this_thread::get_id());
  }
  void train(Token& token) {
    // The sampler runs ahead as far as it may, but for the rollouts that wait for weights.
    if (random_) {
      std::int64_t ahead = token.batch + 1;
      while (ahead < token.batch + staleness_ && !meets(ahead)) ++ahead;
      if (staleness_ > 0) wait([&] { return begun_ >= std::min(ahead, first_ + batches - 1); });
    }
    delay(1);
    Buffer& buffer = buffers_[static_cast<std::size_t>(token.buffer)];
    trainer = {mixed(trainer.value, buffer.trajectory), token.batch + 1};
    buffer.made = trainer;
    after.push_back(trainer.value);
  }
  void distribute(Token&) { delay(2); }
  void receive(Token& token) {
    delay(3);
    models_.fill([&](Weights& back) { back = buffers_[static_cast<std::size_t>(token.buffer)].made; });
    tell(installed_, token.version);
  }

  std::int64_t passes = boundaries, fails_at = -1;
  std::set<std::thread::id> threads;  // of sample

 private:
  struct Buffer {
    std::uint64_t trajectory = 0;
    Weights made;
  };
  bool meets(std::int64_t batch) const {
    return random_ && staleness_ > 0 && batch > first_ && batch % 3 == 0;
  }
  void delay(std::size_t lane) {
    if (random_)
      std::this_thread::sleep_for(
          std::chrono::microseconds(std::uniform_int_distribution<int>(0, 60)(delays_[lane])));
  }
  void tell(std::int64_t& what, std::int64_t value) {
    {
      const std::scoped_lock lock(mutex_);
      what = value;
    }
    moved_.notify_all();
  }
  template <class Condition>
  void wait(Condition condition) {
    std::unique_lock lock(mutex_);
    if (!moved_.wait_for(lock, 20s, condition)) throw dvla::Error("nobody came");
  }

  const int staleness_;
  const std::int64_t first_;

 public:
  Weights trainer;
  std::vector<std::uint64_t> after;  ///< the weights after each batch

 private:
  dvla::FrontBack<Weights> models_;
  std::vector<Buffer> buffers_;
  const std::uint64_t seed_;
  bool random_ = false;
  std::minstd_rand delays_[4];
  std::mutex mutex_;
  std::condition_variable moved_;
  std::int64_t begun_ = -1, installed_ = 0;
};
static_assert(dvla::BoundaryStages<HashStages> && !dvla::BoundaryStages<WatchedStages>);

run_options options_of(int staleness, std::int64_t count = batches, std::int64_t first = 0) {
  run_options how;
  how.staleness = staleness;
  how.batches = count;
  how.first_batch = first;
  how.deadline = 20s;
  return how;
}

struct Recorded {
  Recording recording;
  std::vector<std::uint64_t> after;
  dvla::run_result result;
};
Recorded record(int staleness, std::uint64_t seed, std::int64_t first = 0) {
  Recorded out;
  HashStages stages(staleness, seed, first);
  stages.run_at_random(std::random_device{}());
  run_options how = options_of(staleness, batches, first);
  how.record = &out.recording;
  out.result = SwimlaneRunner<3>::run(stages, how);
  out.recording.final_weights = 1;  // the caller's matter
  out.after = stages.after;
  return out;
}

dvla::run_result replay(HashStages& stages, const Recording& recording, run_options how) {
  how.replay = &recording;
  return ReplayRunner::run(stages, how);
}
dvla::run_result replay(HashStages& stages, const Recording& recording) {
  return replay(stages, recording, options_of(recording.staleness, recording.batches, recording.first_batch));
}

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const dvla::Error& error) {
    return error.what();
  }
  return "(nothing is refused)";
}
bool has(const std::string& text, const std::string& part) {
  CAPTURE(text);
  CAPTURE(part);
  const bool found = text.find(part) != text.npos;
  CHECK(found);
  return found;
}

std::int64_t midway(const Recording& recording) {
  std::int64_t count = 0;
  for (const HandOver& one : recording.hand_overs) count += one.boundary > 0;
  return count;
}

}  // namespace

TEST_CASE("An asynchronous run, replayed in one thread, ends with the same bits") {
  for (int k = 0; k <= 3; ++k) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      CAPTURE(k);
      CAPTURE(seed);
      const Recorded recorded = record(k, seed);
      CHECK(recorded.result.max_staleness == k);
      CHECK(recorded.recording.batches == batches);
      CHECK(recorded.recording.boundaries == boundaries);
      CHECK(recorded.recording.hand_overs.size() <= static_cast<std::size_t>(batches));
      CHECK(midway(recorded.recording) >= (k == 0 ? 0 : batches / 3));

      HashStages stages(k, seed);
      const Recording read = dvla::parse_recording(dvla::to_text(recorded.recording), "memory");
      CHECK(read == recorded.recording);
      Recording again;
      run_options how = options_of(k);
      how.record = &again;
      const auto result = replay(stages, read, how);
      CHECK(stages.after == recorded.after);
      CHECK(stages.threads == std::set{std::this_thread::get_id()});
      CHECK(result.batches == batches);
      CHECK(result.staleness == recorded.result.staleness);
      again.final_weights = recorded.recording.final_weights;
      CHECK(again == recorded.recording);

      HashStages in_turn(0, seed);
      SynchronousRunner::run(in_turn, options_of(0));
      CHECK((in_turn.after == recorded.after) == (k == 0));
    }
  }
}

TEST_CASE("The first batches of a recording can be replayed alone") {
  const Recorded recorded = record(2, 5);
  for (const std::int64_t count : {0, 1, 2, 17, 39}) {
    HashStages stages(2, 5);
    CHECK(replay(stages, recorded.recording, options_of(2, count)).batches == count);
    CHECK(stages.after == std::vector(recorded.after.begin(), recorded.after.begin() + count));
  }
}

TEST_CASE("A stop ends a replay after the batches that have begun") {
  const Recorded recorded = record(2, 5);
  dvla::stop_flag stop;
  struct Stopping : HashStages {
    using HashStages::HashStages;
    dvla::stop_flag* stop = nullptr;
    void train(Token& token) {
      if (token.batch == 9) stop->request_stop();
      HashStages::train(token);
    }
  } stages(2, 5);
  stages.stop = &stop;
  run_options how = options_of(2);
  how.stop = &stop;
  how.replay = &recorded.recording;
  const auto result = ReplayRunner::run(stages, how);
  CHECK(result.stopped);
  CHECK(result.batches >= 10);
  CHECK(result.batches <= 12);
  CHECK(stages.after == std::vector(recorded.after.begin(), recorded.after.begin() + result.batches));
}

TEST_CASE("A run that went on from a checkpoint is replayed from there, and only from there") {
  const Recorded recorded = record(3, 4, 1000);
  HashStages stages(3, 4, 1000);
  replay(stages, recorded.recording);
  CHECK(stages.after == recorded.after);
  HashStages anew(3, 4);
  has(refusal([&] { replay(anew, recorded.recording, options_of(3)); }),
      "run_options.first_batch is 0, but the recording begins with batch 1000");
}

TEST_CASE("A synchronous run can be recorded, and says that nothing arrived in a rollout") {
  Recording recording;
  run_options how = options_of(0, 5);
  how.record = &recording;
  HashStages stages(0, 1);
  SynchronousRunner::run(stages, how);
  REQUIRE(recording.hand_overs.size() == 5);
  for (std::int64_t i = 0; i < 5; ++i) {
    const HandOver& one = recording.hand_overs[static_cast<std::size_t>(i)];
    CHECK((one.version == i && one.batch == i && one.boundary == 0));
  }
  HashStages again(0, 1);
  replay(again, recording);
  CHECK(again.after == stages.after);
}

TEST_CASE("A run that fails leaves what it sampled, and the replay gets as far") {
  HashStages stages(2, 3);
  stages.fails_at = 11;
  Recording recording;
  run_options how = options_of(2);
  how.record = &recording;
  CHECK_THROWS_AS(SwimlaneRunner<3>::run(stages, how), dvla::LaneError);
  CHECK(recording.batches == 11);
  const std::string text = dvla::to_text(recording);
  has(text, "\"final_weights\":null");
  const Recording read = dvla::parse_recording(text, "memory");
  CHECK(!read.final_weights);
  HashStages again(2, 3);
  CHECK(replay(again, read).batches == 11);
  CHECK(std::equal(stages.after.begin(), stages.after.end(), again.after.begin()));
}

TEST_CASE("A recording of another run is refused at the first difference") {
  const Recorded recorded = record(2, 3);
  {
    HashStages other(2, 4);
    has(refusal([&] { replay(other, recorded.recording); }),
        "lane 'sampling' failed at step 0: the replay strays from its recording at chunk boundary 0 of batch "
        "0: the weights of version 0 are other ones");
    CHECK(other.after.empty());
  }
  for (const std::int64_t passes : {boundaries - 1, boundaries + 1}) {
    HashStages other(2, 3);
    other.passes = passes;
    has(refusal([&] { replay(other, recorded.recording); }), "boundaries");
  }
  // One hand-over a boundary later than it was: the weights made of that batch are other ones.
  for (std::size_t moved : {1, 3, 6}) {
    CAPTURE(moved);
    Recording wrong;
    do {
      wrong = recorded.recording;
      REQUIRE(moved < 12);
      ++wrong.hand_overs[moved++].boundary;
    } while (!dvla::detail::flaw_of(wrong).empty());
    HashStages stages(2, 3);
    has(refusal([&] { replay(stages, wrong); }), "are other ones; are pipeline, settings, seed and machine");
  }
}

TEST_CASE("Stages that are silent about boundaries, or tell nonsense, are refused") {
  Recording recording;
  run_options how = options_of(0, 3);
  how.record = &recording;
  WatchedStages silent(0, 0, 3);
  CHECK_THROWS_WITH_AS(SynchronousRunner::run(silent, how),
                       "run_options.record is given, but the stages have no sample(token, boundaries)",
                       dvla::Error);
  struct Telling : HashStages {
    using HashStages::HashStages;
    std::function<void(dvla::detail::recording_boundaries&, Token&)> tell;
    using HashStages::sample;
    void sample(Token& token, dvla::detail::recording_boundaries& at) { tell(at, token); }
    void sample(Token& token, dvla::no_boundaries& at) { HashStages::sample(token, at); }
  };
  const auto told = [&](auto tell) {
    Telling stages(0, 1);
    stages.tell = tell;
    return refusal([&] { SynchronousRunner::run(stages, how); });
  };
  using At = dvla::detail::recording_boundaries;
  has(told([](At& at, Token&) { at.decides(1, 0, nothing); }), "boundaries are counted from 0");
  has(told([](At& at, Token& token) { at.decides(0, 2 - token.batch, nothing); }), "versions never fall");
  has(told([](At&, Token&) {}), "passed 0 chunk boundaries; that must be 1 or more");
  has(told([](At& at, Token& token) {
        for (std::int64_t i = 0; i < 3 - token.batch; ++i) at.decides(i, token.batch, nothing);
      }),
      "passed 2 chunk boundaries; that must be 3, as in the first batch");
}

TEST_CASE("Options that do not fit the recording are one sentence") {
  const Recorded recorded = record(1, 1);
  const auto said = [&](auto change, int staleness = 1) {
    HashStages stages(3, 1);
    run_options how = options_of(staleness);
    how.replay = &recorded.recording;
    change(how);
    const std::string text = refusal([&] { ReplayRunner::run(stages, how); });
    CHECK(stages.threads.empty());
    return text;
  };
  CHECK(said([](run_options& how) { how.replay = nullptr; }) ==
        "run_options.replay is null: Replay needs the recording of a run");
  CHECK(said([](run_options&) {}, 2) == "run_options.staleness is 2, but the recording is of a run with 1");
  CHECK(said([](run_options& how) { how.batches = 41; }) ==
        "run_options.batches is 41, but the recording has only 40");
  CHECK(said([](run_options& how) { how.share = dvla::lane_share::rollout; }) ==
        "run_options.share is not all: Replay runs all four lanes in one process");
  Recording flawed = recorded.recording;
  flawed.hand_overs.pop_back(), flawed.hand_overs.pop_back(), flawed.hand_overs.pop_back();
  has(said([&](run_options& how) { how.replay = &flawed; }),
      "run_options.replay cannot be replayed: batch 39 begins with version");
  HashStages stages(1, 1);
  run_options how = options_of(1);
  how.replay = &recorded.recording;
  CHECK_THROWS_WITH_AS(SwimlaneRunner<3>::run(stages, how),
                       "run_options.replay is given, choose none, or the schedule Replay", dvla::ConfigError);
  Recording into;
  how = options_of(1);
  how.record = &into;
  how.share = dvla::lane_share::rollout;
  CHECK_THROWS_WITH_AS(SwimlaneRunner<3>::run(stages, how),
                       "run_options.record is given, choose none where a process does not run all four lanes",
                       dvla::ConfigError);
}

namespace {

/// With a right checksum.
std::string sealed(const Recording& recording) { return dvla::sealed_text(recording); }

}  // namespace

TEST_CASE("A recording that is cut off or damaged anywhere is refused in one sentence") {
  const std::string text = dvla::to_text(record(2, 9).recording);
  REQUIRE(dvla::parse_recording(text, "r").batches == batches);
  const auto refused = [&](const std::string& wrong) {
    try {
      (void)dvla::parse_recording(wrong, "r");
    } catch (const dvla::FormatError& error) {
      const std::string said = error.what();
      return said.find("'r' is no recording of hand-overs that can be replayed: ") == 0 &&
             said.find('\n') == said.npos && said.size() < 200;
    }
    return false;
  };
  for (std::size_t length = 0; length < text.size(); ++length)
    if (!refused(text.substr(0, length))) FAIL_CHECK("cut off after " << length);
  for (std::size_t at = 0; at < text.size(); ++at) {
    for (const int bit : {0, 2, 4, 7}) {
      std::string wrong = text;
      wrong[at] = static_cast<char>(wrong[at] ^ (1 << bit));
      if (!refused(wrong)) FAIL_CHECK("bit " << bit << " of byte " << at);
    }
    std::string less = text;
    less.erase(at, 1);
    if (!refused(less)) FAIL_CHECK("without byte " << at);
  }
  CHECK(refused(text + "\n"));
  CHECK(refused(text + text));
  CHECK(refused(std::string(text).insert(text.find(',') + 1, "\n")));
}

TEST_CASE("A recording that no run can have made is refused, and says why") {
  using Lines = std::vector<HandOver>;
  const auto of = [](Lines lines, int staleness = 1, std::int64_t passes = 4, std::int64_t first = 0,
                     std::int64_t count = 3) {
    return Recording{staleness, passes, first, count, std::move(lines), 1};
  };
  const auto read = [](const std::string& text) {
    return refusal([&] { (void)dvla::parse_recording(text, "r"); });
  };
  const auto said = [&](const auto&... parts) { return read(sealed(of(parts...))); };
  CHECK(said(Lines{{0, 0, 0, 0xa}, {1, 1, 2, 0xb}, {2, 2, 3, 0xc}}) == "(nothing is refused)");
  CHECK(said(Lines{{0, 0, 0, 0xa}, {1, 2, 0, 0xb}}) == "(nothing is refused)");
  CHECK(said(Lines{}, 1, 0, 0, 0) == "(nothing is refused)");
  has(said(Lines{}), "it does not begin with the weights of its first batch");
  has(said(Lines{{0, 0, 1, 0xa}, {1, 1, 2, 0xb}}), "it does not begin with the weights of its first batch");
  has(said(Lines{{1, 0, 0, 0xa}}), "it does not begin with the weights of its first batch");
  has(said(Lines{{0, 0, 0, 0xa}}), "batch 2 begins with version 0, more than its staleness of 1 allows");
  has(said(Lines{{0, 0, 0, 0xa}, {1, 2, 1, 0xb}}), "batch 2 begins with version 0");
  has(said(Lines{{0, 0, 0, 0xa}, {1, 1, 4, 0xb}}), "its hand-over of version 1 lies in no rollout");
  has(said(Lines{{0, 0, 0, 0xa}, {1, 1, -1, 0xb}}), "its hand-over of version 1 lies in no rollout");
  has(said(Lines{{0, 0, 0, 0xa}, {1, 1, 0, 0xb}, {2, 3, 0, 0xc}}),
      "its hand-over of version 2 lies in no rollout");
  has(said(Lines{{0, 0, 0, 0xa}, {2, 1, 0, 0xb}}),
      "its hand-over of version 2 comes before those weights were made");
  has(said(Lines{{0, 0, 0, 0xa}, {1, 1, 0, 0xb}, {1, 2, 0, 0xb}}),
      "its hand-over of version 1 is not of newer weights");
  has(said(Lines{{0, 0, 0, 0xa}, {1, 2, 0, 0xb}, {2, 2, 0, 0xb}}),
      "its hand-over of version 2 is not later than the one before");
  has(said(Lines{{0, 0, 0, 0xa}}, 1, 4, 0, 0), "hand-overs, but no batch");
  has(said(Lines{}, -1, 4, 0, 1), "staleness is not 0 to 1024");
  has(said(Lines{}, 1, 4, -1, 1), "no sound range of batches");
  has(said(Lines{}, 1, 4, 0, std::numeric_limits<std::int64_t>::max()), "no sound range of batches");
  has(said(Lines{{0, 0, 0, 0xa}}, 1, 0, 0, 1), "no chunk boundaries");
  const std::string whole = sealed(of({{0, 0, 0, 10}, {1, 1, 2, 11}, {2, 2, 3, 12}}));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    REQUIRE(text.find(from) != text.npos);
    return read(text.replace(text.find(from), from.size(), to));
  };
  has(with("\"batches\":3", "\"batches\":92233720368547758070"),
      "its field 'batches' is 9.223372036854776e+19; it must be a whole number in [");
  has(with("\"boundary\":2,", ""), "its field 'hand_overs[1].boundary' is missing");
  has(with("\"boundary\":2,", "\"boundary\":2,\"bound\":2,"),
      "its field 'hand_overs[1]' has \"bound\", which is not known");
  has(with("\"boundary\":2", "\"boundary\": 2"), "it was damaged or edited: its checksum is of another text");
  has(with("\"boundary\":2", "\"boundary\":1"), "it was damaged or edited: its checksum is of another text");
  has(refusal([] { (void)dvla::parse_recording("{\"pipeline\": {}}\n", "config.json"); }),
      "'config.json' is no recording of hand-overs that can be replayed: it has \"pipeline\", which is not "
      "known");
  has(refusal([] { (void)dvla::read_recording("/nowhere/hand_overs.json"); }),
      "schedule.recording is '/nowhere/hand_overs.json', which cannot be read");
  has(refusal([] { (void)dvla::read_recording("/"); }), "which cannot be read");
  has(refusal([] { (void)dvla::read_recording(""); }), "schedule.recording is empty");
}

namespace {

/// The suite's stages with chunk boundaries; the rollout itself is at the first.
struct Pausing {
  WatchedStages& stages;
  void sample(Token& token) { stages.sample(token); }
  template <class Boundaries>
  void sample(Token& token, Boundaries& at) {
    for (std::int64_t b = 0; b < 4; ++b) {
      at.before(b);
      at.decides(b, stages.installed, nothing);
      if (b == 0) stages.sample(token);
    }
  }
  void train(Token& token) { stages.train(token); }
  void distribute(Token& token) { stages.distribute(token); }
  void receive(Token& token) { stages.receive(token); }
  void observe(const Token& token) { stages.observe(token); }
  void enter(dvla::lane_kind kind) noexcept { stages.enter(kind); }
};

/// Replays a run as stale as it may be, with weights that arrive in the midst of each rollout.
struct ReplayOfSome {
  template <class Stages, class Recorder>
  static dvla::run_result run(Stages& stages, const run_options& options, Recorder& recorder) {
    Recording some{.staleness = std::clamp(options.staleness, 0, 3),
                   .boundaries = 4,
                   .first_batch = std::max<std::int64_t>(options.first_batch, 0),
                   .batches = std::max<std::int64_t>(options.batches, 0)};
    const std::uint64_t weights = dvla::checksum({});
    for (std::int64_t i = 0; i < some.batches; ++i) {
      const std::int64_t batch = some.first_batch + i;
      if (i == 0 || some.staleness == 0) some.hand_overs.push_back({batch, batch, 0, weights});
      if (i >= some.staleness && some.staleness > 0)
        some.hand_overs.push_back({batch - some.staleness + 1, batch, 1 + i % 3, weights});
    }
    run_options how = options;
    how.replay = &some;
    Pausing pausing{stages};
    return ReplayRunner::run(pausing, how, recorder);
  }
};

}  // namespace

TEST_CASE("ReplayRunner keeps what a schedule promises") {
  for (const std::string& violation : dvla::testing::check_schedule<ReplayOfSome>(3)) FAIL_CHECK(violation);
}
