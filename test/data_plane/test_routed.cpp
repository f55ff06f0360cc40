// dvla-test: tsan asan
// The data plane between processes, over threads: what is sent is what is trained on, in every shape of job.
#include <doctest/doctest.h>

#include "dvla/testing/data_plane.hpp"
#include "routed_job.hpp"

using dvla::testing::ThreadCluster;
using namespace routed_job;

TEST_CASE("Every shape of job trains on exactly what was sampled, each episode once, for K of 0 to 2") {
  const std::vector<dvla::Roles> shapes{
      {{0, 1, 2}, {3}}, {{0, 1}, {2, 3}}, {{0}, {1, 2}},       {{0, 1, 2}, {0, 1, 2}},
      {{0, 1, 2}, {0}}, {{0}, {0}},       {{0, 1, 2}, {2, 3}},
  };
  for (const dvla::Roles& roles : shapes)
    for (const int staleness : {0, 1, 2}) {
      constexpr std::int64_t batches = 12;
      const Job job{.roles = roles, .staleness = staleness};
      const auto ledgers = job.run(batches);
      const Sum sum = sum_of(ledgers);
      CAPTURE(&roles - shapes.data());
      CAPTURE(staleness);
      CHECK(sum.wrong == "");
      const std::int64_t episodes =
          batches * job.episodes_per_rollout() * static_cast<std::int64_t>(roles.rollouts.size());
      CHECK(sum.sent == episodes);
      CHECK(sum.acknowledged == episodes);
      CHECK(sum.trained == episodes);
      CHECK(sum.dropped == 0);
      CHECK(sum.lost == 0);
      CHECK(sum.committed == sum.trained_ids);
      CHECK(sum.bytes_sent == sum.bytes_received);
    }
}

namespace {

/// One rank's plane and pool, made by a thread of its own: constructors wait for each other.
struct Pair {
  explicit Pair(const Job& job_) : job(job_), ranks(ThreadCluster::make(2)) {
    std::jthread other([&] { rollout = job.plane(*ranks[0], pools[0]); });
    actor = job.plane(*ranks[1], pools[1]);
  }
  Job job;
  std::vector<std::unique_ptr<ThreadCluster>> ranks;
  dvla::EnvironmentPool pools[2] = {dvla::EnvironmentPool(std::size_t{1} << 20),
                                    dvla::EnvironmentPool(std::size_t{1} << 20)};
  std::unique_ptr<Plane> rollout, actor;

  void send(std::int64_t batch) {
    const dvla::Token token{
        .batch = batch, .version = batch, .buffer = static_cast<std::int32_t>(batch % (job.staleness + 1))};
    Trajectory& share = rollout->produce(token);
    for (std::int64_t i = 0; i < job.episodes_per_rollout(); ++i)
      write_episode(share, i, id_of(batch, i), static_cast<std::int32_t>(i / job.shape.group), batch);
    rollout->commit(token);
  }
};
const Job one_to_one{.roles = {{0}, {1}}};

template <class Call>
std::string said_by(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing";
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("The counts of the senders arrive once for each batch, however many parts it has") {
  const Job job{.roles = {{0, 1, 2}, {3, 4}}};
  const auto ledgers = job.run(9);
  std::int64_t sent = 0, heard = 0;
  for (std::size_t rank = 0; rank < 5; ++rank) (rank < 3 ? sent : heard) += ledgers[rank].env_steps;
  CHECK(sent == 3 * 9 * 10 / 2);
  CHECK(heard == sent);
}

TEST_CASE("A slow trainer holds the rollouts back: memory stays what it was, nothing is lost") {
  for (const int staleness : {0, 2}) {
    const Job job{.roles = {{0, 1}, {2}}, .staleness = staleness};
    std::atomic<std::int64_t> started{0}, most_ahead{0};
    const auto ledgers = job.run(
        15, [&](std::int64_t) { ++started; },
        [&](std::int64_t batch) {
          std::this_thread::sleep_for(2ms);
          most_ahead = std::max(most_ahead.load(), started - 2 * (batch + 1));
        });
    const Sum sum = sum_of(ledgers);
    CHECK(sum.wrong == "");
    CHECK(sum.trained == sum.sent);
    // Each rollout: K + 1 buffers of its own, K + 1 at the actor, and the one that it asks a buffer for.
    CHECK(most_ahead <= 2 * (2 * (staleness + 1) + 1));
    const Trajectory share = layout(job.shape, 8), batch = layout(job.shape, 16);
    const std::size_t part = static_cast<std::size_t>(job.bytes_of(job.plan().routes[0])) + 128;
    const auto buffers = static_cast<std::size_t>(staleness + 1);
    CHECK(ledgers[0].pool_high_water <= buffers * record_bytes(share) + part);
    CHECK(ledgers[2].pool_high_water <= buffers * record_bytes(batch) + 2 * part);
  }
}

TEST_CASE("Either side gives batches up, or asks for the wrong one, while others travel") {
  const Job job{.roles = {{0, 1}, {2}}, .staleness = 2};
  constexpr std::int64_t batches = 40, trained = 30;  // the trainer leaves first
  for (int round = 0; round < 4; ++round) {
    const auto ledgers =
        job.run(ThreadCluster::make(3), [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
          const std::jthread asking([&](std::stop_token end) {  // as a heartbeat or a progress line may
            while (!end.stop_requested()) {
              const bool anybody = plane.anybody();
              if (plane.report().sent < 0 || (cluster.rank() < 2 && anybody))
                ledger.wrong.push_back("a report");
              std::this_thread::yield();
            }
          });
          for (std::int64_t batch = 0; batch < batches; ++batch) {
            const dvla::Token token{
                .batch = batch, .version = batch + 100, .buffer = static_cast<std::int32_t>(batch % 3)};
            if (cluster.rank() < 2) {
              std::this_thread::sleep_for(1ms);  // parts come while the trainer is at work
              Trajectory* share = &plane.produce(token);
              if (batch % 3 == 0) {
                plane.drop(token);
                share = &plane.produce(token);
              }
              for (std::int64_t i = 0; i < job.episodes_per_rollout(); ++i) {
                const std::int64_t episode = cluster.rank() * job.episodes_per_rollout() + i;
                write_episode(*share, i, id_of(batch, episode),
                              static_cast<std::int32_t>(episode / job.shape.group), token.version);
              }
              plane.commit(token);
              continue;
            }
            if (batch == trained) break;
            if (batch % 5 == 4) {  // none of it is wanted
              plane.drop(token);
              continue;
            }
            dvla::Token taken = token;
            if (!plane.arrive(taken)) ledger.wrong.push_back("no batch " + std::to_string(batch));
            const Trajectory& trajectory = plane.consume(taken);
            std::this_thread::sleep_for(3ms);  // what came meanwhile is the queue's to know
            if (!contains(said_by([&] { plane.arrival({.batch = batch + 1}); }), "is not being trained on"))
              ledger.wrong.push_back("the next batch was given early");
            for (std::int64_t i = 0; i < trajectory.transition.group.count(); ++i)
              if (const auto what = check_episode(trajectory, i); !what.empty()) ledger.wrong.push_back(what);
            if (batch % 5 == 2)
              plane.drop(taken);
            else
              plane.release(taken);
          }
          plane.goodbye();
        });
    const Sum sum = sum_of(ledgers);
    CHECK(sum.wrong == "");
    const std::int64_t of_a_batch = 2 * job.episodes_per_rollout();
    CHECK(sum.sent == batches * of_a_batch);
    CHECK(sum.trained == trained / 5 * 3 * of_a_batch);
  }
}

TEST_CASE("A rank that is both gives up what it trains on while it samples") {
  const Job job{.roles = {{0, 1}, {0, 1}}, .staleness = 1};
  constexpr std::int64_t batches = 30;
  const auto ledgers =
      job.run(ThreadCluster::make(2), [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
        Ledger sampling;
        std::thread sampler([&] { job.roll_out(plane, cluster.rank(), batches, sampling); });
        for (std::int64_t batch = 0; batch < batches; ++batch) {
          dvla::Token token{.batch = batch, .buffer = static_cast<std::int32_t>(batch % 2)};
          if (!plane.arrive(token)) ledger.wrong.push_back("no batch " + std::to_string(batch));
          plane.consume(token);
          std::this_thread::sleep_for(500us);
          plane.drop(token);
        }
        sampler.join();
        plane.goodbye();
      });
  const Sum sum = sum_of(ledgers);
  CHECK(sum.wrong == "");
  CHECK(sum.trained == 0);
  CHECK(sum.dropped == batches * 2 * job.episodes_per_rollout());
}

TEST_CASE("A slow rollout is waited for: its groups are in every batch") {
  const Job job{.roles = {{0, 1, 2}, {0, 1, 2}}};
  std::atomic<int> calls{0};
  const auto ledgers = job.run(10, [&](std::int64_t) {
    if (++calls % 3 == 0) std::this_thread::sleep_for(3ms);
  });
  const Sum sum = sum_of(ledgers);
  CHECK(sum.wrong == "");
  CHECK(sum.lost == 0);
  CHECK(sum.committed == sum.trained_ids);
}

TEST_CASE("Every rank is both and balanced: the buffer itself changes hands, no payload byte is copied") {
  const Job job{.roles = {{0, 1}, {0, 1}}};
  for (const Ledger& ledger : job.run(10)) {
    CHECK(ledger.report.payload_bytes_copied == 0);
    CHECK(ledger.report.trained == 10 * job.episodes_per_rollout());
  }
}

TEST_CASE("A job of one process needs no channel") {
  dvla::LoneCluster cluster;
  const Job job;
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  const auto plane = job.plane(cluster, pool);
  Ledger ledger;
  std::jthread sampler([&] { job.roll_out(*plane, 0, 20, ledger); });
  Ledger training;
  job.train(*plane, 20, training);
  sampler.join();
  plane->goodbye();
  CHECK(ledger.committed == training.trained);
  CHECK(training.wrong.empty());
  CHECK(plane->report().payload_bytes_copied == 0);
}

TEST_CASE("Rollouts with more than one piece a part, and shares of unequal width") {
  Job job{.roles = {{0, 1, 2}, {3, 4}}, .shape = {.decisions = 7, .pixels = 200, .group = 2}};
  job.groups_per_rollout = 5;
  CHECK(job.bytes_of(job.plan().routes[0]) > static_cast<std::int64_t>(dvla::detail::piece_bytes));
  const auto plan = job.plan();
  std::size_t bytes = 0;
  for (int actor = 0; actor < 2; ++actor)
    bytes = std::max(bytes, record_bytes(layout(job.shape, plan.episodes_to(actor))));
  const std::size_t mib = std::size_t{1} << 20;
  dvla::testing::ThreadCluster::make(1);
  const auto ranks = ThreadCluster::make(5);
  std::vector<Ledger> ledgers(5);
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < 5; ++i)
      threads.emplace_back([&, i] {
        dvla::EnvironmentPool pool(3 * bytes + 16 * mib);
        const auto plane = job.plane(*ranks[i], pool);
        if (i < 3)
          job.roll_out(*plane, static_cast<int>(i), 3, ledgers[i]);
        else
          job.train(*plane, 3, ledgers[i]);
        plane->goodbye();
        ledgers[i].report = plane->report();
      });
  }
  const Sum sum = sum_of(ledgers);
  CHECK(sum.wrong == "");
  CHECK(sum.committed == sum.trained_ids);
  std::int64_t planned = 0;
  for (const dvla::Route& route : plan.routes) planned += job.bytes_of(route);
  CHECK(sum.bytes_sent == 3 * planned);
}

TEST_CASE("Waits that run out name who is missing, in which batch") {
  Job job = one_to_one;
  job.deadline = 100ms;
  Pair pair(job);
  dvla::Token token{.batch = 0};
  CHECK(said_by([&] { pair.actor->arrive(token); }) ==
        "data plane: rank 1 (actor 0) waited 0.1 s for batch 0: missing is rank 0 (rollout 0), groups 0-3");
  for (std::int64_t batch = 0; batch < 4; ++batch) pair.send(batch);
  CHECK(said_by([&] { pair.send(4); }) ==
        "data plane: rank 0 (rollout 0) waited 0.1 s for a buffer for batch 4: batch 2 in it is not yet "
        "acknowledged by rank 1 (actor 0)");
  CHECK(
      contains(said_by([&] { pair.rollout->goodbye(); }),
               "to say goodbye; not acknowledged: batch 2 by rank 1 (actor 0); batch 3 by rank 1 (actor 0)"));
  Ledger ledger;
  dvla::Token next{.batch = 0, .version = 50};
  CHECK(pair.actor->arrive(next));  // and all goes on after that
  CHECK(next.version == 0);
}

TEST_CASE("Calls out of turn are refused in one sentence each, and change nothing") {
  Job job = one_to_one;
  job.deadline = 5s;
  Pair pair(job);
  Plane &rollout = *pair.rollout, &actor = *pair.actor;
  const auto batch = [](std::int64_t n, std::int32_t buffer = 0) {
    return dvla::Token{.batch = n, .version = n, .buffer = buffer};
  };
  CHECK(contains(said_by([&] { actor.produce(batch(0)); }), "produce is a rollout's call"));
  CHECK(contains(said_by([&] { actor.commit(batch(0)); }), "commit is a rollout's call"));
  CHECK(contains(said_by([&] { rollout.consume(batch(0)); }), "consume is an actor's call"));
  CHECK(contains(said_by([&] { rollout.release(batch(0)); }), "release is an actor's call"));
  CHECK(contains(said_by([&] { rollout.produce(batch(0, 7)); }), "buffer 7"));
  CHECK(contains(said_by([&] { rollout.produce(batch(0, -1)); }), "buffer -1"));
  CHECK(contains(said_by([&] { rollout.commit(batch(0)); }), "cannot be handed over as batch 0"));
  rollout.produce(batch(0));
  CHECK(&rollout.produce(batch(0)) == &rollout.produce(batch(0)));
  CHECK(contains(said_by([&] { rollout.produce(batch(1)); }), "it is being filled with batch 0"));
  CHECK(contains(said_by([&] { rollout.commit(batch(1)); }), "it is being filled with batch 0"));
  rollout.drop(batch(0));
  CHECK(contains(said_by([&] { rollout.drop(batch(0)); }), "drop is an actor's call"));
  pair.send(0);
  CHECK(contains(said_by([&] { rollout.produce(batch(0)); }), "batch 1 is the first that it still may"));
  CHECK(contains(said_by([&] { actor.consume(batch(1)); }), "batch 0 is the next one"));
  CHECK(contains(said_by([&] { actor.release(batch(0)); }), "batch 0 cannot be released"));
  CHECK(contains(said_by([&] { actor.arrival(batch(0)); }), "batch 0 is not being trained on"));
  const Trajectory& read = actor.consume(batch(0));
  CHECK(read.id == 0);
  CHECK(&actor.consume(batch(0)) == &read);
  actor.release(batch(0));
  CHECK(contains(said_by([&] { actor.release(batch(0)); }), "batch 0 cannot be released"));
  CHECK(contains(said_by([&] { actor.consume(batch(0)); }), "batch 1 is the next one"));
  CHECK(contains(said_by([&] { actor.consume(batch(-1)); }), "batch 1 is the next one"));
  CHECK(contains(said_by([&] { actor.drop(batch(5)); }), "batch 5 cannot be dropped"));
}

TEST_CASE("What an actor drops is counted, whether it was being trained on, had arrived, or comes later") {
  Pair pair(one_to_one);
  const std::int64_t episodes = pair.job.episodes_per_rollout();
  pair.send(0);
  pair.actor->consume({.batch = 0});
  pair.actor->drop({.batch = 0});
  pair.send(1);
  while (pair.actor->report().in_flight < episodes) std::this_thread::yield();
  pair.actor->drop({.batch = 1});
  pair.actor->drop({.batch = 2});
  pair.send(2);
  pair.send(3);
  CHECK(pair.actor->consume({.batch = 3}).transition.episode.seed[0] == id_of(3, 0));
  pair.actor->release({.batch = 3});
  std::jthread leaving([&] { pair.rollout->goodbye(); });
  dvla::Token next{.batch = 4};
  CHECK_FALSE(pair.actor->arrive(next));
  CHECK(contains(said_by([&] { pair.actor->consume(next); }), "there is no batch 4"));
  leaving.join();
  const auto sent = pair.rollout->report(), taken = pair.actor->report();
  CHECK(sent.sent == 4 * episodes);
  CHECK(sent.dropped == episodes);  // batch 2, refused
  CHECK(sent.unacknowledged == 0);
  CHECK(taken.dropped == 2 * episodes);
  CHECK(taken.trained == episodes);
  CHECK(taken.refused[static_cast<std::size_t>(dvla::Refusal::outdated)] == 1);
  CHECK(contains(said_by([&] { pair.rollout->produce({.batch = 9}); }), "it has said goodbye"));
}

TEST_CASE("An actor that is done first refuses what still comes; both part in peace and the counts add up") {
  for (const int trained : {0, 1, 3}) {
    Pair pair(one_to_one);
    std::jthread rollout([&] {
      for (std::int64_t batch = 0; batch < 6; ++batch) pair.send(batch);
      pair.rollout->goodbye();
    });
    Ledger ledger;
    for (std::int64_t batch = 0; batch < trained; ++batch) {
      pair.actor->consume({.batch = batch});
      pair.actor->release({.batch = batch});
    }
    pair.actor->goodbye();
    rollout.join();
    const auto sent = pair.rollout->report(), taken = pair.actor->report();
    CHECK(sent.sent == taken.trained + taken.dropped + sent.dropped);
    CHECK(taken.trained == trained * pair.job.episodes_per_rollout());
    CHECK(sent.unacknowledged == 0);
    CHECK(taken.in_flight == 0);
  }
}

TEST_CASE("A rollout lane that throws loses its rank only") {
  const Job job{.roles = {{0, 1}, {2}}};
  const auto ledgers =
      job.run(ThreadCluster::make(3), [&](Plane& plane, ThreadCluster& cluster, Ledger& ledger) {
        if (cluster.rank() == 2) return job.train(plane, 10, ledger), plane.goodbye();
        job.roll_out(plane, cluster.rank(), 10, ledger, [&](std::int64_t batch) {
          if (cluster.rank() == 1 && batch == 4) throw dvla::Error("the simulator broke");
        });
        plane.goodbye();
      });
  CHECK(ledgers[1].failure == "the simulator broke");
  CHECK(ledgers[2].failure == "");
  CHECK(ledgers[2].trained.size() >= 10 * 8);
  CHECK(ledgers[2].trained.size() <= 14 * 8);
}

TEST_CASE("cancel and the destructor end every wait at once, in every phase") {
  const auto start = std::chrono::steady_clock::now();
  { const Pair nothing_sent(one_to_one); }
  {
    Pair half_full(one_to_one);
    for (std::int64_t batch = 0; batch < 4; ++batch) half_full.send(batch);  // two here, two on their way
  }
  {
    Pair waiting(one_to_one);
    for (std::int64_t batch = 0; batch < 4; ++batch) waiting.send(batch);
    std::jthread producer([&] {
      CHECK(contains(said_by([&] { waiting.send(4); }), "was closed"));
      CHECK(contains(said_by([&] { waiting.send(5); }), "was closed"));
    });
    std::this_thread::sleep_for(2ms);
    waiting.rollout->cancel();
  }
  {
    Pair waiting(one_to_one);
    std::jthread consumer(
        [&] { CHECK(contains(said_by([&] { waiting.actor->consume({.batch = 0}); }), "was closed")); });
    std::this_thread::sleep_for(2ms);
    waiting.actor->cancel();
  }
  {
    Pair waiting(one_to_one);
    std::jthread other([&] {
      CHECK(contains(said_by([&] {
                       waiting.send(0), waiting.send(1), waiting.send(2), waiting.send(3), waiting.send(4);
                     }),
                     "rank 1 closed it"));
    });
    std::this_thread::sleep_for(2ms);
    waiting.actor.reset();
  }
  CHECK(std::chrono::steady_clock::now() - start < 15s);  // no wait ran to its deadline of 20 s
}

TEST_CASE("Layouts, plans and jobs that do not fit are refused before anything is made") {
  dvla::LoneCluster cluster;
  dvla::EnvironmentPool pool(std::size_t{1} << 20);
  const Job job;
  const auto refused = [&](auto change) {
    dvla::RoutedLayouts<TokensDecision> layouts{layout({}, 8), layout({}, 8)};
    dvla::RoutingPlan plan = job.plan();
    dvla::Roles roles;
    dvla::RoutedOptions options;
    change(layouts, plan, roles, options);
    CHECK_THROWS_AS(Plane(layouts, plan, cluster, roles, options, pool), dvla::ConfigError);
    CHECK(pool.report().live == 0);
  };
  refused([](auto& layouts, auto&, auto&, auto&) { layouts.actor.reset(); });
  refused([](auto& layouts, auto&, auto&, auto&) { layouts.rollout = layout({}, 6); });
  refused([](auto& layouts, auto&, auto&, auto&) {
    layouts.rollout->decision.bins = dvla::Field<std::int32_t>({8, 3});
  });
  refused([](auto&, auto& plan, auto&, auto&) { plan.routes[0].actor = 1; });
  refused([](auto&, auto& plan, auto&, auto&) { plan.routes.clear(); });
  refused([](auto&, auto&, auto& roles, auto&) { roles.rollouts = {0, 1}; });
  refused([](auto&, auto&, auto&, auto& options) { options.buffers = 0; });
  refused([](auto&, auto&, auto&, auto& options) { options.first_batch = -1; });
  dvla::EnvironmentPool small(4096);
  CHECK_THROWS_AS(job.plane(cluster, small), dvla::Error);
  CHECK(small.report().live == 0);
}

TEST_CASE("A resumed job starts at its batch") {
  const Job job{.roles = {{0, 1}, {2}}};
  const auto ranks = ThreadCluster::make(3);
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < 3; ++i)
    threads.emplace_back([&, i] {
      dvla::EnvironmentPool pool(std::size_t{1} << 20);
      const auto plane = job.plane(*ranks[i], pool, 0, 1000);
      CHECK(plane->first_batch() == 1000);
      Ledger ledger;
      if (i < 2) {
        job.roll_out(*plane, static_cast<int>(i), 1003, ledger);
      } else {
        for (std::int64_t batch = 1000; batch < 1003; ++batch) {
          CHECK(plane->consume({.batch = batch}).transition.episode.seed[8] == id_of(batch, 8));
          plane->release({.batch = batch});
        }
      }
      plane->goodbye();
    });
}

TEST_CASE("The plane between processes conforms") {
  Job job = one_to_one;
  job.deadline = 300ms;
  std::vector<std::unique_ptr<Pair>> pairs;
  const auto make = [&] {
    pairs.push_back(std::make_unique<Pair>(job));
    return std::pair{pairs.back()->rollout.get(), pairs.back()->actor.get()};
  };
  for (const auto& violation : dvla::testing::check_split_data_plane(make)) FAIL_CHECK(violation);
}
