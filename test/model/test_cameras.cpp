// Which of the environment's cameras a model sees, and in which of its slots.
#include <doctest/doctest.h>

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/model/vla_inputs.hpp"

using namespace dvla;

namespace {

constexpr auto slots = std::to_array<std::string_view>({"base", "left", "right"});

ObservationSpec seen_by(const std::vector<std::string>& cameras) {
  ObservationSpec spec;
  for (const std::string& camera : cameras) spec.cameras.push_back({camera, 8, 8});
  return spec;
}
std::vector<std::size_t> chosen(const std::string& named,
                                const std::vector<std::string>& cameras = {"top", "wrist", "side"}) {
  return detail::chosen_cameras("Model", seen_by(cameras), named, slots);
}
std::string refusal(const std::string& named,
                    const std::vector<std::string>& cameras = {"top", "wrist", "side"}) {
  try {
    chosen(named, cameras);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}
using Cameras = std::vector<std::size_t>;

}  // namespace

TEST_CASE("cameras fill a model's slots in their order, as they are listed, or where it is said") {
  CHECK(chosen("") == Cameras{0, 1, 2});
  CHECK(chosen("", {"top"}) == Cameras{0});
  CHECK(chosen("wrist") == Cameras{1});
  CHECK(chosen("side,top") == Cameras{2, 0});
  CHECK(chosen("base=side") == Cameras{2});
  CHECK(chosen("right=top,base=wrist") == Cameras{1, 0});  // left has none
  CHECK(chosen("left=wrist,right=top,base=side") == Cameras{2, 1, 0});
  CHECK(detail::chosen_cameras("Model", seen_by({"a", "b", "c", "d"}), "d,a,b,c") == Cameras{3, 0, 1, 2});
}

TEST_CASE(
    "an unknown slot or camera, either twice, too many, or a list of both kinds: a sentence with what there "
    "is") {
  const std::string there =
      ", and the environment's cameras are top, wrist, side; the slots of Model are base, left, right";
  CHECK(refusal("up=top") == "model.cameras names the slot 'up'" + there);
  CHECK(refusal("=top") == "model.cameras names the slot ''" + there);
  CHECK(refusal("base=front") == "model.cameras names 'front'" + there);
  CHECK(refusal("base=") == "model.cameras names ''" + there);
  CHECK(refusal("front") == "model.cameras names 'front'" + there);
  CHECK(refusal("base=top,base=wrist") == "model.cameras fills the slot 'base' twice" + there);
  CHECK(refusal("base=top,left=top") == "model.cameras names 'top' twice" + there);
  CHECK(refusal("top,wrist,top") == "model.cameras names 'top' twice" + there);
  CHECK(refusal("base=top,wrist") == "model.cameras gives 'wrist' no slot, and others one" + there);
  CHECK(refusal("top,left=wrist") == "model.cameras gives 'top' no slot, and others one" + there);
  CHECK(refusal("base=left=top") == "model.cameras names 'left=top'" + there);
  CHECK(
      refusal("d,c,b,a", {"a", "b", "c", "d"}) ==
      "model.cameras names more than 3, and the environment's cameras are a, b, c, d; the slots of Model are "
      "base, left, right");
  CHECK(refusal("", {"a", "b", "c", "d"}) ==
        "Model takes 3 cameras, and 4 are given (a, b, c, d); choose with model.cameras");
  CHECK(refusal("", {}) == "Model: the environment gives no camera, and the model needs one");
  CHECK_THROWS_WITH_AS(detail::chosen_cameras("Model", seen_by({"top"}), "base=top"),
                       "model.cameras names the slot 'base', and the environment's cameras are top",
                       ConfigError);
}
