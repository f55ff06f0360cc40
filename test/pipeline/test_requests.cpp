// dvla-test: tsan
// What a job's leader has the rollouts do outside of batches, threads standing for processes: evaluations,
// demonstrations, pictures and the self-test, before training and after it, with ranks that die meanwhile; and
// what ranks without an environment know of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <map>
#include <mutex>
#include <set>

#include "test/io/temporary_folder.hpp"
#include "toy_job.hpp"

namespace {
using namespace dvla_test;
using namespace std::chrono_literals;

thread_local int this_rank = 0;

/// What the environments of a job have seen.
struct Notes {
  std::mutex mutex;
  std::map<std::int64_t, int> cases;    ///< how often each began
  std::map<std::uint64_t, int> seeds;   ///< the same
  std::map<int, std::int64_t> by_rank;  ///< episodes that began in each
  std::set<int> built;                  ///< ranks that have an environment
  std::function<void(int)> at_reset;    ///< told of the rank
  std::function<void(int)> at_step;     ///< the same
  std::function<void(int)> at_render;   ///< the same
  int odd_rank = -1;                    ///< its environment has another horizon
  void set(std::function<void(int)>& which, std::function<void(int)> to) {
    const std::scoped_lock lock(mutex);
    which = std::move(to);
  }
  void call(const std::function<void(int)>& which, int rank) {
    std::unique_lock lock(mutex);
    const auto copy = which;
    lock.unlock();
    if (copy) copy(rank);
  }
  void clear() {
    const std::scoped_lock lock(mutex);
    cases.clear();
    seeds.clear();
    by_rank.clear();
  }
} notes;

/// `Static`: it has a spec(knobs).
template <bool Static>
struct Noted {
  using slot = dvla::environment_slot;
  using knobs = dvla::ToyKnobs;
  static constexpr std::string_view name = "Noted";
};
template <bool Static>
struct NotedEnvironment : dvla::ToyEnvironment {
  NotedEnvironment(const dvla::ToyKnobs& knobs, std::pmr::memory_resource& pool)
      : ToyEnvironment(odd(knobs), pool), steps(static_cast<std::size_t>(knobs.environments)) {
    const std::scoped_lock lock(notes.mutex);
    notes.built.insert(this_rank);
  }
  static dvla::EnvironmentSpec spec(const dvla::ToyKnobs& knobs) requires Static {
    return ToyEnvironment::spec(knobs);
  }
  static void spec(const dvla::ToyKnobs&) requires(!Static) = delete;
  static dvla::ToyKnobs odd(dvla::ToyKnobs knobs) {
    if (this_rank == notes.odd_rank) ++knobs.horizon;
    return knobs;
  }
  void reset(dvla::Rows& rows, std::span<const dvla::Start> starts, const dvla::Observation& next) {
    notes.call(notes.at_reset, rank);
    ToyEnvironment::reset(rows, starts, next);
    const std::scoped_lock lock(notes.mutex);
    for (const dvla::Start& start : starts)
      start.case_index >= 0 ? ++notes.cases[start.case_index] : ++notes.seeds[start.seed];
    for (const std::int64_t row : rows.indices()) steps[static_cast<std::size_t>(row)] = 0;
    notes.by_rank[rank] += std::ssize(starts);
  }
  std::int64_t step(dvla::Rows& rows, dvla::Field<float> action, const dvla::Outcome& outcome) {
    notes.call(notes.at_step, rank);
    for (const std::int64_t row : rows.indices()) ++steps[static_cast<std::size_t>(row)];
    return ToyEnvironment::step(rows, action, outcome);
  }
  void render(std::int64_t row, int, int, std::span<std::uint8_t> rgb) {
    notes.call(notes.at_render, rank);
    std::uint8_t pixel = static_cast<std::uint8_t>(50 * row + 10 * steps[static_cast<std::size_t>(row)]);
    for (std::uint8_t& each : rgb) each = pixel++;
  }
  const int rank = this_rank;
  std::vector<int> steps;
};
}  // namespace

template <bool Static, class Around>
struct dvla::machinery<Noted<Static>, Around> {
  using type = NotedEnvironment<Static>;
};

namespace {
template <bool Static, class... More>
using Whole = dvla::Pipeline<dvla::Sampler<Noted<Static>, dvla::testing::LinearModel>,
                             dvla::Schedule<dvla::Swimlane<3>>, More...>;
using Training = dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>, dvla::FSDP>;
using Apart = Whole<true, Training, dvla::Placement<dvla::Separated<>>>;
using ApartAsked = Whole<false, Training, dvla::Placement<dvla::Separated<>>>;
using Mixed = Whole<true, Training, dvla::Placement<dvla::Hybrid>>;
using Replicas =
    Whole<true, dvla::Trainer<dvla::BasicGRPO<dvla::DecoupledClip>>, dvla::Placement<dvla::CoLocated>>;

template <class P>
dvla::Config<P> config_of(int rollouts, int actors) {
  auto config = small_config<P>(3);
  config.schedule.staleness = 1;
  config.run.heartbeat_s = 2;  // nobody is lost for a machine that is busy
  if constexpr (requires { config.placement.rollouts; }) config.placement.rollouts = rollouts;
  if constexpr (requires { config.placement.actors; }) config.placement.actors = actors;
  notes.clear();
  notes.built.clear();
  return config;
}

/// How ranks that do not lead are asked to stop, and whether their train() has returned.
struct Asked {
  std::array<dvla::stop_flag, 4> stop;
  std::array<std::atomic<bool>, 4> ended{};
  void ask(std::size_t rank) { stop[rank].request_stop(SIGTERM); }
  bool has_ended(std::size_t rank) const {
    for (int i = 0; i < 100000 && !ended[rank]; ++i) std::this_thread::sleep_for(1ms);
    return ended[rank];
  }
};

/// A job whose leader calls lead(run, clusters), while all others train. What each rank threw, as text.
template <class P, class Lead>
std::vector<std::string> job(int world, const dvla::Config<P>& config, Lead lead, Asked* asked = nullptr) {
  const auto clusters = dvla::testing::ThreadCluster::make(world);
  std::vector<std::string> errors(static_cast<std::size_t>(world));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      const auto place = static_cast<std::size_t>(rank);
      this_rank = rank;
      try {
        dvla::Run<P> run(config, *clusters[place]);
        if (run.job().leads()) return lead(run, *clusters[place]);
        run.train({}, {}, asked ? &asked->stop[place] : nullptr);
        if (asked) asked->ended[place] = true;
      } catch (const std::exception& error) {
        errors[place] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}
void all_in_peace(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) CHECK_MESSAGE(error.empty(), error);
}

std::vector<dvla::Start> cases(std::int64_t count) {
  std::vector<dvla::Start> starts;
  for (std::int64_t each = 0; each < count; ++each) starts.push_back({.case_index = each});
  return starts;
}
/// Each of the first `count` cases, once.
bool each_once(std::int64_t count) {
  if (std::ssize(notes.cases) != count) return false;
  for (const auto& [which, times] : notes.cases)
    if (which >= count || times != 1) return false;
  return true;
}
std::vector<bool> solved(const std::vector<dvla::EvaluatedEpisode>& episodes) {
  std::vector<bool> all;
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    CHECK(episodes[i].start.case_index == static_cast<std::int64_t>(i));
    CHECK(!episodes[i].failed);
    all.push_back(episodes[i].success);
  }
  return all;
}

/// Evaluations of some sizes give what one process gives, before training, and play each case once.
template <class P>
void check_evaluations(int world, int rollouts, int actors) {
  CAPTURE(world);
  const std::vector<std::int64_t> sizes{1, 5, 64, 150};
  std::vector<std::vector<bool>> alone;
  {
    dvla::Run<Replicas> run(config_of<Replicas>(0, 0));
    for (const std::int64_t count : sizes) alone.push_back(solved(run.evaluate(cases(count))));
  }
  const auto config = config_of<P>(rollouts, actors);
  all_in_peace(job(world, config, [&](dvla::Run<P>& run, auto&) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CAPTURE(sizes[i]);
      notes.clear();
      CHECK(solved(run.evaluate(cases(sizes[i]))) == alone[i]);
      CHECK(each_once(sizes[i]));
      if (sizes[i] >= 64) CHECK(std::ssize(notes.by_rank) == (rollouts > 0 ? rollouts : world));
    }
    CHECK(run.train().batches == 3);
    notes.clear();
    const std::vector<bool> after = solved(run.evaluate(cases(150)));
    CHECK(each_once(150));
    CHECK(after == solved(run.evaluate(cases(150))));
    CHECK(run.self_test().error <= 1e-5);
  }));
  CHECK(std::ssize(notes.built) == (rollouts > 0 ? rollouts : world));
}
}  // namespace

TEST_CASE("An evaluation is shared by all rollouts, each episode once, before training and after it") {
  check_evaluations<Apart>(4, 3, 1);
  check_evaluations<Apart>(3, 1, 2);
  check_evaluations<ApartAsked>(3, 2, 1);
  check_evaluations<Mixed>(3, 0, 1);
  check_evaluations<Replicas>(2, 0, 0);
}

TEST_CASE("A rank that only trains learns from a rollout what the environment is, and all refuse another") {
  const auto config = config_of<ApartAsked>(2, 1);
  all_in_peace(job(3, config, [&](dvla::Run<ApartAsked>& run, auto&) {
    CHECK(run.spec().horizon == config.environment.horizon);
    CHECK(run.spec().observation.proprioception == config.environment.proprioception);
    CHECK(run.spec().observation.instructions == std::vector<std::string>{"go left", "go right"});
    CHECK(run.spec().cases == 1000);
    CHECK(run.job().rolls_out() == false);
    run.train();
  }));
  for (const int odd : {1, 2}) {
    config_of<ApartAsked>(2, 1);
    notes.odd_rank = odd;
    for (const std::string& error : job(3, config, [](auto&run, auto&) { run.train(); })) {
      CAPTURE(error);
      CHECK(contains(error, " is not that of the rank which was built first: horizon is "));
      CHECK((contains(error, "horizon is 4 there and 5 here") ||
             contains(error, "horizon is 5 there and 4 here")));
    }
  }
  // Where the knobs say it, an environment that is not as they say is found too.
  const auto stated = config_of<Apart>(2, 1);
  notes.odd_rank = 2;
  for (const std::string& error : job(3, stated, [](auto&run, auto&) { run.train(); }))
    CHECK_MESSAGE(contains(error, " is not that of the rank which was built first: horizon is "), error);
  notes.odd_rank = -1;
}

TEST_CASE("A warm start's demonstrations are the same, each once, whoever plays them") {
  const auto cloned = [](auto config, auto start) {
    config.run.demonstrations = 100;
    config.run.imitation_steps = 10;
    config.run.imitation_target = 1;
    dvla::WarmStartResult result;
    start(config, result);
    std::int64_t demonstrations = 0;
    for (std::int64_t k = 0; k < 100; ++k)
      demonstrations += notes.seeds[dvla::stream_seed(static_cast<std::uint64_t>(config.run.seed),
                                                      dvla::Stream::demonstration, k)];
    CHECK(demonstrations == 100);
    CHECK(result.steps == 10);
    CHECK(result.loss != 0);
    return std::pair(result.rows, result.expert_success);
  };
  const auto alone = cloned(config_of<Replicas>(0, 0), [](auto& config, auto& result) {
    result = dvla::Run<Replicas>(config).warm_start();
  });
  CHECK(alone.first > 100);
  CHECK(alone.second > 0);
  const auto apart = cloned(config_of<Apart>(3, 1), [](auto& config, auto& result) {
    all_in_peace(job(4, config, [&](dvla::Run<Apart>& run, auto&) {
      result = run.warm_start();
      CHECK(std::ssize(notes.by_rank) == 3);
      run.train();
    }));
  });
  const auto mixed = cloned(config_of<Mixed>(0, 2), [](auto& config, auto& result) {
    all_in_peace(job(3, config, [&](dvla::Run<Mixed>& run, auto&) {
      result = run.warm_start();
      run.train();
    }));
  });
  CHECK(apart == alone);
  CHECK(mixed == alone);
}

TEST_CASE("Pictures are drawn by a rollout, and are those of one process") {
  using Picture = std::vector<std::uint8_t>;
  const auto drawn = [](auto& run) {
    std::vector<Picture> pictures;
    run.draw(3, 8, [&](std::int64_t step, std::span<const std::uint8_t> rgb) {
      CHECK(step == std::ssize(pictures));
      CHECK(rgb.size() == 8 * 8 * 3 * 3);
      pictures.emplace_back(rgb.begin(), rgb.end());
    });
    return pictures;
  };
  std::vector<Picture> alone;
  {
    dvla::Run<Replicas> run(config_of<Replicas>(0, 0));
    alone = drawn(run);
  }
  CHECK(alone.size() == 5);
  CHECK(alone[0] != alone[1]);
  const auto config = config_of<Apart>(2, 1);
  all_in_peace(job(3, config, [&](dvla::Run<Apart>& run, auto&) {
    CHECK(drawn(run) == alone);
    // The leader may want no more of them.
    dvla::stop_flag stop;
    const auto first = [&](std::int64_t, std::span<const std::uint8_t>) { stop.request_stop(); };
    CHECK_THROWS_AS(run.draw(3, 8, first, &stop), dvla::Stopped);
    CHECK(drawn(run) == alone);
    run.train();
    CHECK(drawn(run).size() == 5);
    // What goes wrong there is told here.
    notes.set(notes.at_render, [](int) { throw dvla::Error("there is no display"); });
    std::string said;
    try {
      drawn(run);
    } catch (const dvla::Error& error) {
      said = error.what();
    }
    CHECK(said == "rank 1 (rollout 0): there is no display");
    notes.set(notes.at_render, {});
    CHECK(run.evaluate(64) >= 0);  // they are still in order
  }));
}

TEST_CASE("A stop ends the leader's wait for an evaluation, and training then ends all in peace") {
  const auto config = config_of<Apart>(2, 1);
  dvla::stop_flag stop;
  all_in_peace(job(3, config, [&](dvla::Run<Apart>& run, auto&) {
    notes.set(notes.at_reset, [&](int) { stop.request_stop(); });
    CHECK_THROWS_AS(run.evaluate(1000, dvla::Decoding::mode, &stop), dvla::Stopped);
    notes.set(notes.at_reset, {});
    const dvla::RunReport report = run.train({}, {}, &stop);
    CHECK(report.stopped);
    CHECK(report.batches == 0);
  }));
}

TEST_CASE("A stop of the leader alone ends what the rollouts do for it at their next decision") {
  auto config = config_of<Apart>(2, 1);
  config.environment.horizon = 400;
  config.memory.environment_pool_mib = 64;
  config.model.chunk = 1;
  for (const bool trains : {false, true}) {
    CAPTURE(trains);
    config.run.iterations = trains ? 1 : 0;
    dvla::stop_flag stop;
    std::atomic<int> steps{0};
    const auto slow = [&](int) {
      ++steps;
      stop.request_stop();
      std::this_thread::sleep_for(10ms);
    };
    all_in_peace(job(3, config, [&](dvla::Run<Apart>& run, auto&) {
      if (trains) CHECK(run.train().batches == 1);
      notes.set(notes.at_step, slow);
      CHECK_THROWS_AS(run.evaluate(64, dvla::Decoding::mode, &stop), dvla::Stopped);
      if (!trains) CHECK(run.train({}, {}, &stop).batches == 0);
    }));  // when the leader's run has let the rollouts go
    notes.set(notes.at_step, {});
    CHECK(steps > 0);
    CHECK(steps < 400);  // of 400 on each of two rollouts
  }
}

TEST_CASE(
    "A rollout that dies or stops in an evaluation after training is named, and others play its episodes") {
  for (const bool stops : {false, true}) {
    CAPTURE(stops);
    const auto config = config_of<Apart>(3, 1);
    std::vector<std::string> told;
    std::mutex mutex;
    const auto says = [&](const std::string& words) {
      const std::scoped_lock lock(mutex);
      return std::any_of(told.begin(), told.end(),
                         [&](const std::string& each) { return contains(each, words); });
    };
    const auto errors = job(4, config, [&](dvla::Run<Apart>& run, dvla::testing::ThreadCluster& cluster) {
      run.on_notice([&](const std::string& what) {
        const std::scoped_lock lock(mutex);
        told.push_back(what);
      });
      run.train();
      std::atomic<bool> done{false};
      notes.set(notes.at_reset, [&](int rank) {
        if (rank != 2 || done) return;
        done = true;
        stops ? cluster.freeze(2) : cluster.kill(2);
        while (stops && !says("rank 2 (rollout 1) is gone: "))  // what it would answer, it answers too late
          std::this_thread::sleep_for(1ms);
      });
      const auto episodes = run.evaluate(cases(150));
      CHECK(episodes.size() == 150);
      solved(episodes);
      notes.set(notes.at_reset, {});
      CHECK(run.evaluate(64) >= 0);
      if (stops) cluster.thaw(2);
    });
    for (const int rank : {0, 1, 3}) CHECK_MESSAGE(errors[static_cast<std::size_t>(rank)].empty(), rank);
    CHECK(!errors[2].empty());
    CHECK(says("rank 2 (rollout 1) is asked for no more: "));
  }
}

TEST_CASE(
    "A rollout that is asked to stop after training leaves at once, at work or not, and others do its "
    "share") {
  const auto config = config_of<Apart>(3, 1);
  for (const bool at_work : {true, false}) {
    CAPTURE(at_work);
    Asked asked;
    all_in_peace(job(
        4, config,
        [&](dvla::Run<Apart>& run, auto&) {
          run.train();
          notes.set(notes.at_reset, [&](int rank) {
            if (at_work && rank == 2) asked.ask(2);
          });
          if (!at_work) asked.ask(2);
          CHECK((at_work || asked.has_ended(2)));
          const auto episodes = run.evaluate(cases(150));
          notes.set(notes.at_reset, {});
          CHECK(episodes.size() == 150);
          solved(episodes);
          CHECK(asked.has_ended(2));
        },
        &asked));
  }
}

TEST_CASE("A rollout that draws for the leader ends at the next picture when it is asked to stop") {
  const auto config = config_of<Apart>(2, 1);
  Asked asked;
  all_in_peace(job(
      3, config,
      [&](dvla::Run<Apart>& run, auto&) {
        run.train();
        std::atomic<int> drawn{0};
        notes.set(notes.at_render, [&](int rank) {
          if (++drawn == 2) asked.ask(static_cast<std::size_t>(rank));
        });
        int pictures = 0;
        std::string said;
        try {
          run.draw(1, 4, [&](std::int64_t, std::span<const std::uint8_t>) { ++pictures; });
        } catch (const dvla::PeerError& error) {
          said = error.what();
        }
        notes.set(notes.at_render, {});
        CHECK(said == "rank 1 (rollout 0) was asked to stop");
        CHECK(drawn == 2);
        CHECK(pictures <= 2);
        CHECK(asked.has_ended(1));
        CHECK(run.evaluate(cases(64)).size() == 64);
      },
      &asked));
}

TEST_CASE(
    "An actor that is asked to stop after training ends what the leader does by itself, at its next step") {
  const auto config = config_of<Mixed>(0, 2);
  for (const bool draws : {true, false}) {
    CAPTURE(draws);
    Asked asked;
    std::vector<std::string> told;
    std::mutex mutex;
    all_in_peace(job(
        3, config,
        [&](dvla::Run<Mixed>& run, auto&) {
          run.on_notice([&](const std::string& what) {
            const std::scoped_lock lock(mutex);
            told.push_back(what);
          });
          run.train();
          std::atomic<int> calls{0};
          const auto ask = [&](int rank) {
            if (rank != 0 || ++calls != 2) return;
            asked.ask(1);
            CHECK(asked.has_ended(1));
            std::this_thread::sleep_for(300ms);  // until the leader is told
          };
          notes.set(draws ? notes.at_render : notes.at_reset, ask);
          int pictures = 0;
          const auto film = [&] {
            run.draw(1, 4, [&](std::int64_t, std::span<const std::uint8_t>) { ++pictures; });
          };
          const auto play = [&] { run.evaluate(cases(1000)); };
          const std::string sentence = "another rank was asked to stop";
          if (draws)
            CHECK_THROWS_WITH_AS(film(), sentence.c_str(), dvla::JobEnded);
          else
            CHECK_THROWS_WITH_AS(play(), sentence.c_str(), dvla::JobEnded);
          notes.set(draws ? notes.at_render : notes.at_reset, {});
          CHECK(calls == 2);
          CHECK(pictures <= 2);
        },
        &asked));
    CHECK(std::ranges::count(told, "rank 1 (actor 1 and rollout 1) is gone: it has left") == 1);
  }
}

TEST_CASE("Where no rollout is left after training, an evaluation says so") {
  const auto config = config_of<Apart>(1, 1);
  std::string said;
  const auto errors = job(2, config, [&](dvla::Run<Apart>& run, dvla::testing::ThreadCluster& cluster) {
    run.train();
    cluster.kill(1);
    try {
      run.evaluate(64);
    } catch (const dvla::PeerError& error) {
      said = error.what();
    }
  });
  CHECK(errors[0].empty());
  CHECK(said == "no rollout is left to do what the leader asks for");
}

TEST_CASE("A rollout that dies in an evaluation before training ends the run on every rank, by name") {
  const auto config = config_of<Apart>(3, 1);
  const auto errors = job(4, config, [&](dvla::Run<Apart>& run, dvla::testing::ThreadCluster& cluster) {
    std::atomic<bool> done{false};
    notes.set(notes.at_reset, [&](int rank) {
      if (rank == 3 && !done.exchange(true)) cluster.kill(3);
    });
    run.evaluate(cases(150));
  });
  notes.set(notes.at_reset, {});
  for (const int rank : {0, 1, 2}) {
    const std::string& error = errors[static_cast<std::size_t>(rank)];
    CHECK_MESSAGE(contains(error, "lost rank 3 (rollout 2) before training began: "), error);
  }
}
