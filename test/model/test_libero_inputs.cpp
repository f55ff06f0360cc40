// dvla-test: torch mujoco io
// LIBERO's observation before the published models, and their actions before LIBERO, against what the references' own code makes of
// the same (test/golden/model/libero/make_inputs.py). Knobs are those of docs/libero.md's table.
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dvla/environment/action_statistics.hpp"
#include "dvla/environment/libero/batch.hpp"
#include "dvla/io/safetensors.hpp"
#include "dvla/model/openvla_oft.hpp"
#include "dvla/model/pi05.hpp"
#include "dvla/model/smolvla.hpp"

using namespace dvla;

namespace {

const std::string golden = DVLA_TEST_DIR "/golden/";
const std::string tokenizers = golden + "model/tokenizers/";
constexpr std::int64_t rows = 2, pixels = 256, sampled = 250;
constexpr std::array<std::int64_t, rows> both = {0, 1};

const io::SafetensorsFile& reference() {
  static const io::SafetensorsFile file(golden + "model/libero/inputs.safetensors");
  return file;
}
template <class Element>
std::span<const Element> recorded(const std::string& name) {
  CAPTURE(name);
  REQUIRE(reference().contains(name));
  return reference().span<Element>(name);
}

/// The last of two records as LiberoBatch gives it, each pixel twice in both directions.
struct Seen {
  ObservationSpec spec;
  Observation observation;

  explicit Seen(LiberoFrames frames = LiberoFrames::rotated) {
    spec.proprioception = libero::proprioception;
    spec.instructions = {"pick up the black bowl between the plate and the ramekin and place it on the plate",
                         "pick up the alphabet soup and place it in the basket"};
    for (std::size_t camera = 0; camera < 2; ++camera) {
      spec.cameras.push_back({LiberoBatch::cameras[camera], pixels, pixels});
      bytes_[camera].resize(rows * pixels * pixels * 3);
      observation.frames[camera] = Field<std::uint8_t>({rows, pixels, pixels, 3}, bytes_[camera].data());
    }
    observation.proprioception = Field<float>({rows, libero::proprioception}, state_.data());
    observation.instruction = Field<std::int32_t>({rows}, task_.data());
    const auto position = recorded<double>("eef_pos"), turn = recorded<double>("eef_quat"),
               fingers = recorded<double>("gripper_qpos");
    for (std::size_t row = 0; row < rows; ++row) {
      const double* q = turn.data() + 4 * row;  // x y z w
      const mjtNum quaternion[4] = {q[3], q[0], q[1], q[2]};
      std::array<mjtNum, libero::proprioception> numbers{};
      std::copy_n(position.data() + 3 * row, 3, numbers.begin());
      libero::axis_angle(quaternion, numbers.data() + 3);
      std::copy_n(fingers.data() + 2 * row, 2, numbers.begin() + 6);
      std::ranges::transform(numbers, state_.begin() + static_cast<std::ptrdiff_t>(8 * row),
                             [](mjtNum number) { return static_cast<float>(number); });
      const io::SafetensorsFile record(golden + "environment/libero/" +
                                       (row == 0 ? "spatial_0_walk" : "object_0_basket") + ".safetensors");
      for (std::size_t camera = 0; camera < 2; ++camera) {
        const std::string name = std::string("image.") + LiberoBatch::cameras[camera];
        const auto shape = record.tensor(name).shape;
        REQUIRE(std::vector<std::int64_t>(shape.begin() + 1, shape.end()) ==
                std::vector<std::int64_t>{pixels / 2, pixels / 2, 3});
        const auto half = static_cast<std::size_t>(pixels / 2), size = 2 * half;
        const std::uint8_t* from = record.span<std::uint8_t>(name).last(half * half * 3).data();
        for (std::size_t y = 0; y < size; ++y)
          for (std::size_t x = 0; x < size; ++x) {
            const bool turned = frames == LiberoFrames::rotated;
            const std::size_t there_y = (turned ? size - 1 - y : y) / 2,
                              there_x = (turned ? size - 1 - x : x) / 2;
            std::copy_n(
                from + 3 * (there_y * half + there_x), 3,
                bytes_[camera].begin() + static_cast<std::ptrdiff_t>(3 * ((row * size + y) * size + x)));
          }
      }
    }
  }
  Seen(const Seen&) = delete;
  Seen& operator=(const Seen&) = delete;

  ModelInputs inputs(std::int64_t chunk) const {
    ModelInputs all;
    all.observation = spec;
    all.action.dimensions = libero::actions;
    all.chunk = chunk;
    return all;
  }
  /// As the rollout worker has it normalised.
  void normalise(const Adapter& adapter) {
    for (const std::int64_t row : both) adapter.proprioception(observation.proprioception.at(row).span());
  }

 private:
  std::array<std::vector<std::uint8_t>, 2> bytes_;
  std::array<float, rows * libero::proprioception> state_{};
  std::array<std::int32_t, rows> task_ = {0, 1};
};

/// How far a camera's pictures, [2, channels, side, side], are from the reference's: of 255 steps, each of `step` of what the network is
/// given; by the pixels that are recorded, and by the mean over all.
struct Distance {
  double largest = 0, mean = 0, of_means = 0;
};
Distance distance(const std::string& name, const std::string& view, const at::Tensor& pictures,
                  const std::vector<double>& step) {
  const std::int64_t channels = pictures.size(1), side = pictures.size(2);
  REQUIRE(pictures.sizes() == at::IntArrayRef{rows, channels, side, side});
  REQUIRE(std::ssize(step) == channels);
  const auto theirs = recorded<float>(name + ".pixel." + view);
  const auto means = recorded<double>(name + ".mean." + view);
  REQUIRE(std::ssize(theirs) == rows * sampled * channels);
  const at::Tensor ours = pictures.to(at::kFloat).flatten(2).contiguous();
  const float* const at = ours.const_data_ptr<float>();
  Distance found;
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      const float* const plane = at + (row * channels + channel) * side * side;
      for (std::int64_t i = 0; i < sampled; ++i) {
        const auto their =
            static_cast<double>(theirs[static_cast<std::size_t>((row * sampled + i) * channels + channel)]);
        const double apart = std::abs(static_cast<double>(plane[(7919 * i + 13) % (side * side)]) - their) /
                             step[static_cast<std::size_t>(channel)];
        found.largest = std::max(found.largest, apart);
        found.mean += apart / static_cast<double>(rows * sampled * channels);
      }
      const double mean = std::accumulate(plane, plane + side * side, 0.0) / static_cast<double>(side * side);
      found.of_means = std::max(found.of_means,
                                std::abs(mean - means[static_cast<std::size_t>(row * channels + channel)]) /
                                    step[static_cast<std::size_t>(channel)]);
    }
  MESSAGE(name << ", picture " << view << ": at most " << found.largest << ", on average " << found.mean
               << " of 255; the whole " << found.of_means);
  return found;
}
void check_picture(const std::string& name, std::int64_t view, const at::Tensor& pictures,
                   const std::vector<double>& step, double limit) {
  const Distance found = distance(name, std::to_string(view), pictures, step);
  CHECK(found.largest <= limit);
  CHECK(found.of_means <= 0.05 * limit);
}
const std::vector<double> bytes_around_0(3, 1 / 127.5);
const std::vector<double> bytes_of_towers = {1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225),
                                             1 / 127.5,         1 / 127.5,         1 / 127.5};

/// The texts' tokens are the reference's, padding apart, which `whole` says is the same too.
void check_tokens(const std::string& name, const at::Tensor& tokens, const at::Tensor& valid, bool whole) {
  const auto theirs = recorded<std::int64_t>(name + ".token");
  const auto their_valid = recorded<std::uint8_t>(name + ".valid");
  const std::int64_t length = std::ssize(theirs) / rows;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::vector<std::int64_t> ours, other;
    for (std::int64_t i = 0; i < tokens.size(1); ++i)
      if (whole || valid[row][i].item<bool>()) ours.push_back(tokens[row][i].item<std::int64_t>());
    for (std::int64_t i = 0; i < length; ++i)
      if (const auto at = static_cast<std::size_t>(row * length + i); whole || their_valid[at] != 0)
        other.push_back(theirs[at]);
    CHECK(ours == other);
    CHECK(ours.size() > 10);
    for (std::int64_t i = 0; whole && i < length; ++i)
      CHECK(valid[row][i].item<bool>() == (their_valid[static_cast<std::size_t>(row * length + i)] != 0));
  }
}

/// The first 8 of the reference's numbers; the others are 0.
void check_state(const std::string& name, const Seen& seen) {
  const auto theirs = recorded<double>(name + ".state");
  const auto width = theirs.size() / rows;
  double largest = 0;
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t i = 0; i < width; ++i) {
      const double ours =
          i < 8 ? static_cast<double>(seen.observation.proprioception.at(both[row]).span()[i]) : 0;
      largest = std::max(largest, std::abs(ours - theirs[row * width + i]));
    }
  MESSAGE(name << ": state within " << largest);
  CHECK(largest <= 2e-6);
}

/// LIBERO clips what it is given to [-1, 1], and the adapter does.
void check_actions(const std::string& name, const Adapter& adapter) {
  const auto model = recorded<float>(name + ".model");
  const auto theirs = recorded<double>(name + ".action");
  const std::size_t count = theirs.size() / 7, width = model.size() / count;
  REQUIRE(count == 6);
  double beyond = 0, largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::array<float, 7> ours{};
    adapter.to_environment(model.subspan(i * width, 7), ours);
    for (std::size_t a = 0; a < 7; ++a) {
      const double their = theirs[7 * i + a];
      beyond = std::max(beyond, std::abs(their));
      largest = std::max(largest, std::abs(static_cast<double>(ours[a]) - std::clamp(their, -1.0, 1.0)));
    }
  }
  MESSAGE(name << ": actions within " << largest << ", the reference's up to " << beyond);
  CHECK(beyond >= 1);
  CHECK(largest <= 5e-7);
}

AdapterKnobs statistics(const std::string& folder) {
  AdapterKnobs knobs;
  knobs.action_statistics = golden + "model/libero/" + folder;
  return knobs;
}
Adapter adapter_of(const AdapterKnobs& knobs, const Seen& seen) {
  return make_adapter(knobs, seen.spec, seen.inputs(1).action);
}
/// Of published extents, without a weight.
template <class Family>
dvla::detail::FlowVlaBody<Family> body_of(FlowVlaKnobs knobs, const std::string& tokenizer,
                                          const Seen& seen) {
  knobs.random = RandomWeights::full;
  knobs.tokenizer = tokenizers + tokenizer;
  return {knobs, seen.inputs(knobs.chunk), {}};
}
constexpr const char* pi05_cameras = "base_0_rgb=agentview,left_wrist_0_rgb=robot0_eye_in_hand";

/// State, pictures (a number's largest difference, of 255), tokens (all, or those that count) and actions, against a reference's; what the
/// model is given.
template <class Family>
auto check_inputs(const char* reference, FlowVlaKnobs knobs, const char* tokenizer, double largest,
                  bool whole) {
  at::set_num_threads(1);
  const c10::InferenceMode no_graph;
  Seen seen;
  const Adapter adapter = adapter_of(statistics(reference), seen);
  const auto body = body_of<Family>(std::move(knobs), tokenizer, seen);
  seen.normalise(adapter);
  check_state(reference, seen);
  const auto made = body.inputs(seen.observation, both);
  REQUIRE(made.images.size() == 2);
  for (const std::int64_t view : {0, 1})
    check_picture(reference, view, made.images[static_cast<std::size_t>(view)], bytes_around_0, largest);
  check_tokens(reference, made.tokens, made.token_mask, whole);
  check_actions(reference, adapter);
  return made;
}

}  // namespace

TEST_CASE("pi0.5 is given what openpi's pi05_libero gives it, and LIBERO what openpi gives that") {
  FlowVlaKnobs knobs;
  knobs.cameras = pi05_cameras;
  knobs.pictures = Pictures::openpi;
  knobs.discrete_state_input = false;
  check_inputs<dvla::detail::Pi05Family>("openpi", knobs, "paligemma.model", 1.01, /*whole=*/true);
}

TEST_CASE("pi0.5 is given what lerobot gives it, with the state in its prompt") {
  FlowVlaKnobs knobs;
  knobs.cameras = pi05_cameras;
  check_inputs<dvla::detail::Pi05Family>("lerobot_pi05", knobs, "paligemma.model", 0.01, /*whole=*/true);
}

TEST_CASE("SmolVLA is given what lerobot gives it") {
  FlowVlaKnobs knobs;
  knobs.cameras = "camera1=agentview,camera2=robot0_eye_in_hand";
  const auto made = check_inputs<dvla::detail::SmolVlaFamily>("lerobot_smolvla", knobs, "tokenizer.json",
                                                              0.01, /*whole=*/false);
  const auto theirs = recorded<double>("lerobot_smolvla.state");
  REQUIRE(made.state.numel() == std::ssize(theirs));
  for (std::size_t i = 0; i < theirs.size(); ++i)
    CHECK(static_cast<double>(made.state.const_data_ptr<float>()[i]) ==
          doctest::Approx(theirs[i]).epsilon(2e-6));
}

TEST_CASE("OpenVLA-OFT is given what its authors' evaluation gives it, of one camera or two") {
  at::set_num_threads(1);
  const c10::InferenceMode no_graph;
  Seen seen;
  AdapterKnobs units = statistics("oft");
  units.action_key = "libero_spatial_no_noops";
  units.action_order = "0,1,2,3,4,5,-6";
  units.action_gripper = Gripper::binary;
  const Adapter adapter = adapter_of(units, seen);
  OpenVlaOftKnobs knobs;
  knobs.random = RandomWeights::full;
  knobs.tokenizer = tokenizers + "llama.model";
  knobs.pictures = OpenVlaPictures::authors;
  seen.normalise(adapter);
  check_state("oft", seen);
  for (const std::int64_t views : {1, 2}) {
    knobs.cameras = views == 1 ? "agentview" : "agentview,robot0_eye_in_hand";
    const dvla::detail::OpenVlaOftBody body(knobs, seen.inputs(knobs.chunk), {});
    const auto made = body.inputs(seen.observation, both);
    REQUIRE(made.pixels.size(1) == 6 * views);
    for (std::int64_t view = 0; view < views; ++view)
      check_picture("oft", view, made.pixels.slice(1, 6 * view, 6 * view + 6), bytes_of_towers, 1.01);
    check_tokens("oft", made.tokens, made.token_mask, /*whole=*/false);
  }
  check_actions("oft", adapter);
}

TEST_CASE("OpenVLA-OFT is given what RLinf gives it, whose padding stands behind the begin") {
  at::set_num_threads(1);
  const c10::InferenceMode no_graph;
  const Seen seen;
  OpenVlaOftKnobs knobs;
  knobs.random = RandomWeights::full;
  knobs.tokenizer = tokenizers + "llama.model";
  knobs.pictures = OpenVlaPictures::rlinf;
  knobs.cameras = "agentview";
  const dvla::detail::OpenVlaOftBody body(knobs, seen.inputs(knobs.chunk), {});
  const auto made = body.inputs(seen.observation, both);
  check_picture("rlinf", 0, made.pixels, bytes_of_towers, 0.01);
  check_tokens("rlinf", made.tokens, made.token_mask, /*whole=*/false);
  const auto valid = recorded<std::uint8_t>("rlinf.valid");
  REQUIRE(made.token_mask.numel() == std::ssize(valid));
  for (std::size_t i = 0; i < valid.size(); ++i)
    CHECK(made.token_mask.const_data_ptr<bool>()[i] == (valid[i] != 0));
}

TEST_CASE("frames that are not turned, and a camera in the other's place, are far from the references") {
  at::set_num_threads(1);
  const c10::InferenceMode no_graph;
  FlowVlaKnobs knobs;
  knobs.pictures = Pictures::openpi;
  for (const bool turned : {false, true}) {
    const Seen seen(turned ? LiberoFrames::rotated : LiberoFrames::libero);
    knobs.cameras = turned ? "base_0_rgb=robot0_eye_in_hand,left_wrist_0_rgb=agentview" : pi05_cameras;
    const auto made =
        body_of<dvla::detail::Pi05Family>(knobs, "paligemma.model", seen).inputs(seen.observation, both);
    CHECK(distance("openpi", "0", made.images[0], bytes_around_0).mean > 10);
  }
}
