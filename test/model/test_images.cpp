// dvla-test: torch io
// Frames as the references show them to their models, against what their own functions make of them
// (test/golden/model/images/make_images.py).
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/io/safetensors.hpp"
#include "dvla/model/layers/images.hpp"
#include "dvla/model/layers/lanczos_crop.hpp"

using namespace dvla;

namespace {

constexpr std::int64_t side = 224;

/// As make_images.py has it; [1, height, width, 3].
at::Tensor frame(const std::string& kind, std::int64_t height, std::int64_t width) {
  at::Tensor all = at::empty({1, height, width, 3}, at::kByte);
  std::uint8_t* to = all.mutable_data_ptr<std::uint8_t>();
  const auto h = static_cast<std::uint64_t>(height), w = static_cast<std::uint64_t>(width);
  for (std::uint64_t y = 0; y < h; ++y)
    for (std::uint64_t x = 0; x < w; ++x)
      for (std::uint64_t c = 0; c < 3; ++c) {
        std::uint64_t value = (x / 5 + y / 7 + c) % 2 * 255;
        if (kind == "gradient")
          value = c == 0 ? x * 255 / (w - 1) : c == 1 ? y * 255 / (h - 1) : (x + y) * 255 / (w + h - 2);
        if (kind == "noise")
          value = ((x * 73856093 ^ y * 19349663 ^ c * 83492791) * 2654435761 & 0xffffffff) >> 24;
        *to++ = static_cast<std::uint8_t>(value);
      }
  return all;
}

/// The largest and the mean distance from what is recorded, in bytes' steps.
std::pair<double, double> distance(const at::Tensor& ours, std::span<const std::uint16_t> recorded) {
  REQUIRE(ours.sizes() == at::IntArrayRef{1, 3, side, side});
  const at::Tensor pixels = ours[0].permute({1, 2, 0}).reshape({side * side, 3}).contiguous();
  double largest = 0, sum = 0;
  for (std::size_t i = 0; i < recorded.size(); ++i) {
    const std::size_t at = (7919 * (i / 3) + 13) % static_cast<std::size_t>(side * side);
    const double apart = std::abs(static_cast<double>(pixels.const_data_ptr<float>()[3 * at + i % 3]) * 255 -
                                  static_cast<double>(recorded[i]) / 65535 * 255);
    largest = std::max(largest, apart);
    sum += apart;
  }
  return {largest, sum / static_cast<double>(recorded.size())};
}

struct Way {
  const char* name;
  double limit;  ///< in bytes' steps
  std::function<at::Tensor(const at::Tensor&)> make;
};

}  // namespace

TEST_CASE(
    "frames of any size are within 1/255 of what each reference makes of them, the authors' OpenVLA-OFT "
    "2/255") {
  at::set_num_threads(1);
  const c10::InferenceMode no_graph;
  using namespace dvla::layers;
  const auto padded = [](Padding padding, Resizing resizing) {
    return
        [=](const at::Tensor& frames) { return (resized_with_pad(frames, side, padding, resizing) + 1) / 2; };
  };
  const std::vector<Way> ways{
      {"lerobot", 1, padded(Padding::around, Resizing::lerobot)},
      {"smolvla", 1, padded(Padding::before, Resizing::lerobot)},
      {"openpi", 1, padded(Padding::around, Resizing::openpi)},
      {"rlinf", 1, [](const at::Tensor& frames) { return resized_bicubic(frames, side); }},
      {"authors", 2, [](const at::Tensor& frames) { return lanczos_crop(frames, side); }},
  };
  const io::SafetensorsFile recorded(DVLA_TEST_DIR "/golden/model/images/pictures.safetensors");
  for (const Way& way : ways) {
    double largest = 0, mean = 0;
    int pictures = 0;
    for (const char* kind : {"gradient", "noise", "edges"})
      for (const auto& [height, width] : {std::pair{48, 64}, {64, 48}, {128, 128}, {224, 224}, {480, 640}}) {
        const std::string name =
            std::string(way.name) + "." + kind + "." + std::to_string(height) + "x" + std::to_string(width);
        CAPTURE(name);
        const auto [most, average] =
            distance(way.make(frame(kind, height, width)), recorded.span<std::uint16_t>(name));
        CHECK(most <= way.limit + 0.01);  // the record has steps of 1/257
        largest = std::max(largest, most);
        mean += average;
        ++pictures;
      }
    MESSAGE(std::string(way.name) << ": at most " << largest << "/255, " << mean / pictures
                                  << "/255 on average");
  }
}

TEST_CASE("several frames are made smaller as each alone, and the frames that were given stay as they are") {
  const c10::InferenceMode no_graph;
  const at::Tensor one = frame("edges", 48, 64), two = frame("noise", 48, 64);
  const at::Tensor both = at::cat({one, two}), kept = both.clone();
  const at::Tensor made = layers::lanczos_crop(both, 56);
  CHECK(at::equal(both, kept));
  CHECK((made.slice(0, 0, 1) - layers::lanczos_crop(one, 56)).abs().max().item<double>() < 1e-6);
  CHECK((made.slice(0, 1, 2) - layers::lanczos_crop(two, 56)).abs().max().item<double>() < 1e-6);
}

TEST_CASE("a picture goes through JPEG with little loss, and what is none is refused") {
  std::vector<std::uint8_t> grey(3 * 20 * 10, 100);
  io::through_jpeg(grey, 20, 10);
  for (const std::uint8_t value : grey) CHECK(std::abs(value - 100) <= 1);
  CHECK_THROWS_WITH_AS(io::through_jpeg(grey, 20, 11),
                       "through_jpeg: 600 bytes are no picture of 20 x 11 pixels", Error);
  CHECK_THROWS_WITH_AS(io::through_jpeg(grey, 0, 0), "through_jpeg: 600 bytes are no picture of 0 x 0 pixels",
                       Error);
  std::vector<std::uint8_t> wide(std::size_t{3} * 70000);
  CHECK_THROWS_WITH_AS(io::through_jpeg(wide, 70000, 1), doctest::Contains("through_jpeg: libjpeg says: "),
                       Error);
}
