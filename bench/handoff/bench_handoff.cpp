// dvla-bench: smoke=5,500,--benchmark_min_time=0.001
// What a hand-over costs. First table: one iteration of four lanes with empty stages (threads, mailboxes,
// flow graph, credit, staleness check) against four std::counting_semaphore hand-overs around four threads,
// interleaved. Aim: at most 2. Then the parts alone, by Google Benchmark, each beside its plainest
// equivalent.
#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include "../interleaved.hpp"
#include "dvla/handoff/credit.hpp"
#include "dvla/handoff/wiring.hpp"
#include "dvla/schedule/swimlane.hpp"
#include "dvla/schedule/synchronous.hpp"
#include "dvla/trace/recorder.hpp"

using namespace std::chrono_literals;
using dvla::Token;

namespace {

struct empty_stages {
  void sample(Token&) {}
  void train(Token&) {}
  void distribute(Token&) {}
  void receive(Token&) {}
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Four threads in a ring, `tokens` tokens under way, each hand-over one `post` and one `wait`.
template <class Semaphore, class Wait>
double ring(int rounds, int tokens, Wait wait) {
  std::vector<std::unique_ptr<Semaphore>> turn;
  for (int i = 0; i < 4; ++i) turn.push_back(std::make_unique<Semaphore>(0));
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < rounds; ++round) {
        if (i > 0 || round >= tokens) wait(*turn[i]);
        turn[(i + 1) % 4]->release();
      }
    });
  for (auto& thread : threads) thread.join();
  return seconds_since(start) / rounds;
}

// The same with a token through a mailbox instead of a bare permit.
double mailbox_ring(int rounds, int tokens) {
  std::vector<std::unique_ptr<dvla::mailbox<Token>>> box;
  for (int i = 0; i < 4; ++i) box.push_back(std::make_unique<dvla::mailbox<Token>>(8));
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      Token token;
      for (int round = 0; round < rounds; ++round) {
        if (i > 0 || round >= tokens) token = *box[i]->pop(60s, {});
        box[(i + 1) % 4]->push(token, 60s, {});
      }
    });
  for (auto& thread : threads) thread.join();
  return seconds_since(start) / rounds;
}

template <class Recorder>
double swim(int rounds, int staleness, Recorder& recorder) {
  empty_stages stages;
  dvla::run_options options;
  options.batches = rounds;
  options.staleness = staleness;
  const auto start = std::chrono::steady_clock::now();
  dvla::SwimlaneRunner<3>::run(stages, options, recorder);
  return seconds_since(start) / rounds;
}

void ratios(int rounds, int turns) {
  using standard = std::counting_semaphore<>;
  static dvla::trace::Off off;
  static dvla::trace::Recorder recorder;
  const auto plain = [turns](int tokens) {
    return ring<standard>(turns, tokens, [](standard& permit) { permit.acquire(); });
  };
  const auto timed = [turns](int tokens) {
    return ring<dvla::timed_semaphore>(turns, tokens,
                                       [](dvla::timed_semaphore& permit) { permit.acquire_for(60s); });
  };
  for (const int tokens : {1, 2, 4}) {
    const int k = tokens - 1;
    bench::compare("one iteration, " + std::to_string(tokens) + " under way (K = " + std::to_string(k) + ")",
                   {{"4 std::counting_semaphore hand-overs", [&] { return plain(tokens); }},
                    {"4 timed_semaphore hand-overs", [&] { return timed(tokens); }},
                    {"4 mailbox hand-overs", [&] { return mailbox_ring(turns, tokens); }},
                    {"4 lanes, empty stages, no trace", [&] { return swim(turns, k, off); }},
                    {"4 lanes, empty stages, traced", [&] { return swim(turns, k, recorder); }}},
                   rounds, 1e6, "us");
  }
}

void mailbox_push_pop(benchmark::State& state) {
  dvla::mailbox<Token> box(8);
  for (auto _ : state) {
    box.try_push({});
    benchmark::DoNotOptimize(box.try_pop());
  }
}
BENCHMARK(mailbox_push_pop);

void semaphore_release_acquire_std(benchmark::State& state) {
  std::counting_semaphore<> permit(0);
  for (auto _ : state) {
    permit.release();
    permit.acquire();
  }
}
BENCHMARK(semaphore_release_acquire_std);

void semaphore_release_acquire_timed(benchmark::State& state) {
  dvla::timed_semaphore permit;
  for (auto _ : state) {
    permit.release();
    benchmark::DoNotOptimize(permit.acquire_for(1s));
  }
}
BENCHMARK(semaphore_release_acquire_timed);

void credit_take_and_return(benchmark::State& state) {
  dvla::credit<1> permits(1);
  for (auto _ : state) {
    benchmark::DoNotOptimize(permits.try_acquire());
    permits.try_release();
  }
}
BENCHMARK(credit_take_and_return);

void function_call(benchmark::State& state) {
  std::function<bool(const Token&)> post = [](const Token& token) {
    benchmark::DoNotOptimize(&token);
    return true;
  };
  const Token token;
  for (auto _ : state) benchmark::DoNotOptimize(post(token));
}
BENCHMARK(function_call);

void wiring_hop(benchmark::State& state) {
  dvla::wiring wires;
  auto& from = wires.add([](const Token&) { return true; });
  wires.connect(from, wires.add([](const Token& token) {
    benchmark::DoNotOptimize(&token);
    return true;
  }));
  const Token token;
  for (auto _ : state) wires.send(from, token);
}
BENCHMARK(wiring_hop);

void two_clock_reads(benchmark::State& state) {
  for (auto _ : state) {
    benchmark::DoNotOptimize(dvla::trace::now_ns());
    benchmark::DoNotOptimize(dvla::trace::now_ns());
  }
}
BENCHMARK(two_clock_reads);

void trace_span(benchmark::State& state) {
  dvla::trace::Recorder recorder;
  for (auto _ : state) auto span = recorder.span("x", 0);
}
BENCHMARK(trace_span);

// The whole of an untraced synchronous iteration against the calls written out.
void synchronous_iteration(benchmark::State& state) {
  empty_stages stages;
  dvla::run_options options;
  options.batches = 1000;
  for (auto _ : state) dvla::SynchronousRunner::run(stages, options);
  state.SetItemsProcessed(state.iterations() * 1000);
}
BENCHMARK(synchronous_iteration);

void start_and_join_four_lanes(benchmark::State& state) {
  empty_stages stages;
  dvla::run_options options;
  for (auto _ : state) dvla::SwimlaneRunner<1>::run(stages, options);
}
BENCHMARK(start_and_join_four_lanes)->UseRealTime();

void start_and_join_four_threads(benchmark::State& state) {
  for (auto _ : state) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) threads.emplace_back([] {});
    for (auto& thread : threads) thread.join();
  }
}
BENCHMARK(start_and_join_four_threads)->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  bench::print_header(argc, argv);
  benchmark::Initialize(&argc, argv);
  ratios(argc > 1 ? std::max(5, std::atoi(argv[1])) : 7, argc > 2 ? std::max(1, std::atoi(argv[2])) : 20000);
  benchmark::RunSpecifiedBenchmarks();
}
