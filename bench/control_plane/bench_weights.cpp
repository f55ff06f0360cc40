// dvla-bench: smoke=2
// A weight version's way to the samplers in one process, at 2.4 MB (TinyVLA, 0.6 M parameters) and 256 MB of
// trainable bytes, against plain memcpy of the same bytes in the same round: publish, receive (one copy into
// the samplers' model) and swap, sixteen versions at a time, of which one is hashed on both sides; and the
// same without hashes. Usage: bench_control_plane_weights [rounds]
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../interleaved.hpp"
#include "dvla/control_plane/front_back.hpp"
#include "dvla/control_plane/in_process.hpp"

namespace {

using Weights = std::vector<std::byte>;
using Units = std::vector<dvla::WeightUnit>;
constexpr int versions = 16;

double seconds(auto work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Publish, receive, swap; the same two blocks of memory for every plane.
struct Way {
  Way(Weights& trained, Weights& received, std::int64_t verify_every)
      : from{{.values = trained}},
        plane(from, verify_every),
        copies(Units{{.values = received}}, Units{{.values = received}}) {}
  void send() {
    plane.publish(++version);
    copies.fill([&](Units& back) { plane.receive(back, version, std::chrono::seconds(10)); });
    if (!copies.try_swap()) std::abort();
  }
  Units from;
  dvla::InProcessWeightPlane plane;
  dvla::FrontBack<Units> copies;
  std::int64_t version = -1;
};

void compare_at(std::size_t bytes, int rounds) {
  Weights trained(bytes, std::byte{3}), received(bytes, std::byte{1});
  Way proved(trained, received, versions), plain(trained, received, 0);
  const int repeats = bytes < 10'000'000 ? 20 : 1;
  const auto times = [&](auto work) {
    return [=] {
      return seconds([&] {
        for (int i = 0; i < repeats * versions; ++i) work();
      });
    };
  };
  bench::compare(
      std::to_string(bytes) + " bytes, " + std::to_string(repeats * versions) + " versions a round",
      {{"memcpy", times([&] { std::memcpy(received.data(), trained.data(), bytes); })},
       {"publish, receive, swap", times([&] { proved.send(); })},
       {"the same, nothing hashed", times([&] { plain.send(); })}},
      rounds, 1e3 / (repeats * versions), "ms");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 9;
  bench::print_header(argc, argv);
  compare_at(2'400'000, rounds);
  compare_at(256'000'000, rounds);
  Weights one(64), other(64);
  dvla::FrontBack<Units> copies(Units{{.values = one}}, Units{{.values = other}});
  constexpr int swaps = 1'000'000;
  const double swapping = seconds([&] {
    for (int i = 0; i < swaps; ++i) {
      copies.fill([](Units&) {});
      if (!copies.try_swap()) std::abort();
    }
  });
  std::printf("fill with nothing, and swap: %.1f ns\n", 1e9 * swapping / swaps);
  return 0;
}
