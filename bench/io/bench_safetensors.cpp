// dvla-bench:
// safetensors of 64 MiB: atomic write (write, fsync, rename, fsync of the folder) and mapped read with every
// byte summed, each against plain fwrite/fread of the same bytes into the same folder. fwrite alone does not
// wait for the disk, so there is also fwrite with fsync. The folder is $DVLA_BENCH_FOLDER, else the system's
// temporary folder.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <numeric>

#include "dvla/io/safetensors.hpp"

namespace {

constexpr std::size_t bytes = std::size_t{64} << 20;
constexpr std::size_t count = bytes / sizeof(float);

struct File {
  std::filesystem::path path;
  explicit File(const char* name) {
    const char* folder = std::getenv("DVLA_BENCH_FOLDER");
    path = (folder != nullptr ? std::filesystem::path(folder) : std::filesystem::temp_directory_path()) /
           (name + std::to_string(::getpid()));
  }
  ~File() { ::unlink(path.c_str()); }
};

const std::vector<float>& data() {
  static const std::vector<float> values = [] {
    std::vector<float> out(count);
    std::iota(out.begin(), out.end(), 0.0F);
    return out;
  }();
  return values;
}
void write_one(const std::filesystem::path& path) {
  const dvla::io::TensorToWrite tensor =
      dvla::io::tensor_to_write<float>("w", {static_cast<std::int64_t>(count)}, data());
  dvla::io::write_safetensors(path, std::span(&tensor, 1));
}
using Stream = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
Stream open_stream(const std::filesystem::path& path, const char* mode) {
  Stream stream(std::fopen(path.c_str(), mode), &std::fclose);
  if (!stream) dvla::io::detail::throw_errno("open", path);
  return stream;
}
void plain_write(const std::filesystem::path& path, bool sync) {
  const Stream stream = open_stream(path, "wb");
  if (std::fwrite(data().data(), 1, bytes, stream.get()) != bytes || std::fflush(stream.get()) != 0 ||
      (sync && ::fsync(::fileno(stream.get())) != 0))
    dvla::io::detail::throw_errno("write", path);
}
void finish(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(bytes));
}

void write_safetensors_durable(benchmark::State& state) {
  const File file("bench-safetensors-");
  for (auto _ : state) write_one(file.path);
  finish(state);
}
void write_plain_fsync(benchmark::State& state) {
  const File file("bench-plain-fsync-");
  for (auto _ : state) plain_write(file.path, true);
  finish(state);
}
void write_plain(benchmark::State& state) {
  const File file("bench-plain-");
  for (auto _ : state) plain_write(file.path, false);
  finish(state);
}
void read_safetensors_mapped(benchmark::State& state) {
  const File file("bench-safetensors-");
  write_one(file.path);
  for (auto _ : state) {
    const dvla::io::SafetensorsFile tensors(file.path);
    const auto values = tensors.span<float>("w");
    benchmark::DoNotOptimize(std::accumulate(values.begin(), values.end(), 0.0F));
  }
  finish(state);
}
void read_plain(benchmark::State& state) {
  const File file("bench-plain-");
  plain_write(file.path, true);
  for (auto _ : state) {
    const auto values = std::make_unique_for_overwrite<float[]>(count);
    const Stream stream = open_stream(file.path, "rb");
    if (std::fread(values.get(), 1, bytes, stream.get()) != bytes)
      dvla::io::detail::throw_errno("read", file.path);
    benchmark::DoNotOptimize(std::accumulate(values.get(), values.get() + count, 0.0F));
  }
  finish(state);
}
/// Opening and checking alone: what a scan for the latest checkpoint pays per file.
void open_safetensors(benchmark::State& state) {
  const File file("bench-safetensors-");
  write_one(file.path);
  for (auto _ : state)
    benchmark::DoNotOptimize(dvla::io::SafetensorsFile(file.path).tensor("w").bytes.data());
}

BENCHMARK(write_safetensors_durable)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(write_plain_fsync)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(write_plain)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(read_safetensors_mapped)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(read_plain)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(open_safetensors)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
