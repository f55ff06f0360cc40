// dvla-bench: torch smoke=64,2,2,3
// What a parameter costs in resident memory: one process, planes in it, TinyVLA of one width and several
// numbers of blocks, micro-batches of one row. Every point is a process of its own, that trains two batches
// and says the most memory that was resident; the plan's activations are taken off, and a line is fitted
// against the number of parameters. Aims, within 3 %: float32 24 bytes a parameter under Swimlane and 16
// under Synchronous, bfloat16 with masters 22, LoRA on bfloat16 2 + 22 f, where f is the adapters' share.
//   bench_memory_slope [width = 512] [points = 4] [step = 8 blocks] [lora rank = 16] [kind]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dvla/algorithm/grpo.hpp>
#include <dvla/control_plane/in_process.hpp>
#include <dvla/core/passive_waits.hpp>
#include <dvla/core/process_limits.hpp>
#include <dvla/data_plane/in_process.hpp>
#include <dvla/dvla.hpp>
#include <dvla/environment/toy.hpp>
#include <dvla/io/child_process.hpp>
#include <dvla/memory/dual_pool.hpp>
#include <dvla/model/lora.hpp>
#include <dvla/model/tiny_vla.hpp>
#include <dvla/pipeline/run.hpp>
#include <dvla/schedule/swimlane.hpp>
#include <dvla/schedule/synchronous.hpp>
#include <dvla/sharding/unsharded.hpp>
#include <dvla/trace/off.hpp>
#include <string>
#include <vector>

#include "../interleaved.hpp"

namespace {

using Model = dvla::TinyVLA<dvla::TokenHead>;
template <class OneModel, class Schedule>
using With = dvla::Pipeline<dvla::Sampler<dvla::Toy, OneModel>,
                            dvla::Trainer<dvla::BasicGRPO<dvla::Uncorrected>>, dvla::Schedule<Schedule>>;

/// Of one process, in bytes but for the counts.
struct Point {
  double parameters = 0, trainable = 0, resident = 0, planned = 0, activations = 0;
};

template <class P>
int measure(int width, int blocks, dvla::Dtype dtype, int rank) {
  dvla::Config<P> config;
  config.run.iterations = 2;
  config.run.demonstrations = 0;
  config.environment.environments = 2;
  config.algorithm.group = 2;
  config.algorithm.micro_batch = 1;
  config.algorithm.global_batch = 2;
  config.algorithm.epochs = 1;
  config.model.width = width;
  config.model.blocks = blocks;
  config.model.dtype = dtype;
  if constexpr (requires { config.model.lora_rank; }) config.model.lora_rank = rank;
  config.schedule.sampling_threads = config.schedule.training_threads = 1;
  config.schedule.deadline_s = 600;
  dvla::Run<P, dvla::trace::Off> run(config);
  run.train();
  Point point;
  for (const dvla::Parameter& each : run.model().parameters())
    if (each.alias_of.empty()) (each.trainable ? point.trainable : point.parameters) += double(each.count());
  point.parameters += point.trainable;
  for (const dvla::MemoryItem& item : run.memory_plan().items())
    (item.kind.starts_with("activations") ? point.activations : point.planned) += double(item.bytes);
  std::printf("%.0f %.0f %.0f %.0f %.0f\n", point.parameters, point.trainable,
              double(dvla::peak_resident_bytes()), point.planned, point.activations);
  return 0;
}

int measure(const std::string& kind, int width, int blocks, int rank) {
  if (kind == "synchronous")
    return measure<With<Model, dvla::Synchronous>>(width, blocks, dvla::Dtype::f32, rank);
  if (kind == "lora")
    return measure<With<dvla::LoRA<Model>, dvla::Swimlane<1>>>(width, blocks, dvla::Dtype::bf16, rank);
  return measure<With<Model, dvla::Swimlane<1>>>(width, blocks,
                                                 kind == "bf16" ? dvla::Dtype::bf16 : dvla::Dtype::f32, rank);
}

/// Least squares: y's growth by x.
template <class X, class Y>
double slope(const std::vector<Point>& points, X x, Y y) {
  const auto n = static_cast<double>(points.size());
  double sum_x = 0, sum_y = 0, above = 0, below = 0;
  for (const Point& point : points) {
    sum_x += x(point);
    sum_y += y(point);
  }
  for (const Point& point : points) {
    above += (x(point) - sum_x / n) * (y(point) - sum_y / n);
    below += (x(point) - sum_x / n) * (x(point) - sum_x / n);
  }
  return above / below;
}

void fit(const char* program, const std::string& kind, int width, int points, int step, int rank) {
  std::vector<Point> all;
  for (int i = 1; i <= points; ++i) {
    const dvla::io::ChildResult done = dvla::io::run_child(
        {program, "--point", kind, std::to_string(width), std::to_string(i * step), std::to_string(rank)}, {},
        std::chrono::minutes(10));
    Point point;
    if (done.exit_code != 0 ||
        std::sscanf(done.out.c_str(), "%lf %lf %lf %lf %lf", &point.parameters, &point.trainable,
                    &point.resident, &point.planned, &point.activations) != 5) {
      std::fprintf(stderr, "%s, %d blocks failed: %s%s\n", kind.c_str(), i * step, done.out.c_str(),
                   done.err.c_str());
      std::exit(1);
    }
    all.push_back(point);
    std::printf(
        "  %-12s %3d blocks %8.2f M parameters, %6.2f M train: %8.1f MiB resident, %6.1f activations, "
        "%8.1f planned beside\n",
        kind.c_str(), i * step, point.parameters / 1e6, point.trainable / 1e6, point.resident / (1 << 20),
        point.activations / (1 << 20), point.planned / (1 << 20));
    std::fflush(stdout);
  }
  // Adapters stand beside the base's parameters: f is their number by the base's.
  const auto base = [&](const Point& p) {
    return kind == "lora" ? p.parameters - p.trainable : p.parameters;
  };
  const double f = slope(all, base, [](const Point& p) { return p.trainable; });
  const double aim = kind == "synchronous" ? 16 : kind == "bf16" ? 22 : kind == "lora" ? 2 + 22 * f : 24;
  const double found = slope(all, base, [](const Point& p) { return p.resident - p.activations; });
  const double planned = slope(all, base, [](const Point& p) { return p.planned; });
  std::printf("%-12s %.3f bytes a parameter, aim %.3f: %.3f of it; the plan says %.3f\n", kind.c_str(), found,
              aim, found / aim, planned);
}

int argument(int argc, char** argv, int index, int otherwise) {
  return argc > index ? std::atoi(argv[index]) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  dvla::wait_passively(argv);
  if (argc == 6 && std::strcmp(argv[1], "--point") == 0)
    return measure(argv[2], std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]));
  const int width = argument(argc, argv, 1, 512), points = argument(argc, argv, 2, 4);
  const int step = argument(argc, argv, 3, 8), rank = argument(argc, argv, 4, 16);
  bench::print_header(argc, argv);
  for (const char* kind : {"swimlane", "synchronous", "bf16", "lora"})
    if (argc < 6 || std::strcmp(argv[5], kind) == 0) fit("/proc/self/exe", kind, width, points, step, rank);
  return 0;
}
