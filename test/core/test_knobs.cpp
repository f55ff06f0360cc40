// dvla-test: asan
// Knob structs: reflected once, documented once, visited in order.
#include <doctest/doctest.h>

#include <vector>

#include "dvla/core/knobs.hpp"
#include "dvla/core/machinery.hpp"
#include "dvla/core/type_name.hpp"

enum class Colour { red, green };
struct AllKinds {
  bool on = true;
  int count = 3;
  std::int64_t seed = 1;
  float level = 0.5F;
  double rate = 1e-3;
  std::string title = "x";
  Colour colour = Colour::green;
};
BOOST_HANA_ADAPT_STRUCT(AllKinds, on, count, seed, level, rate, title, colour);
template <>
inline constexpr auto dvla::enum_names<Colour> = std::to_array<std::string_view>({"red", "green"});
template <>
inline constexpr auto dvla::knob_docs<AllKinds> = std::to_array<dvla::KnobDoc>({{"on", "a"},
                                                                                {"count", "b", 0, 9,
                                                                                 "apples"},
                                                                                {"seed", "c"},
                                                                                {"level", "d"},
                                                                                {"rate", "e"},
                                                                                {"title", "f"},
                                                                                {"colour", "g"}});
struct Undocumented {
  int count = 3;
};
BOOST_HANA_ADAPT_STRUCT(Undocumented, count);
struct NotReflected {
  int count = 3;
};

namespace nested {
template <class Type>
struct Box {};
}  // namespace nested

TEST_CASE("every knob is visited once, in the order of declaration, with its documentation") {
  AllKinds knobs;
  std::vector<std::string> names;
  dvla::for_each_knob(knobs, [&](std::string_view name, auto&, const dvla::KnobDoc& doc) {
    CHECK(name == doc.name);
    names.emplace_back(name);
  });
  CHECK(names == std::vector<std::string>{"on", "count", "seed", "level", "rate", "title", "colour"});
}

TEST_CASE("a visitor may change knobs, and may look at constant ones") {
  AllKinds knobs;
  dvla::for_each_knob(knobs, [](std::string_view, auto& value, const dvla::KnobDoc&) {
    if constexpr (std::is_same_v<decltype(value), int&>) value = 7;
  });
  CHECK(knobs.count == 7);
  const AllKinds constant = knobs;
  int found = 0;
  dvla::for_each_knob(constant, [&](std::string_view, const auto& value, const dvla::KnobDoc&) {
    if constexpr (std::is_same_v<decltype(value), const int&>) found = value;
  });
  CHECK(found == 7);
}

TEST_CASE("documentation is compared with the members when compiled") {
  CHECK(dvla::detail::documented<AllKinds>());
  CHECK_FALSE(dvla::detail::documented<Undocumented>());
  CHECK(dvla::ReflectedKnobs<Undocumented>);
  CHECK_FALSE(dvla::ReflectedKnobs<NotReflected>);
}

TEST_CASE("no knobs is a knobs struct") {
  dvla::NoKnobs none;
  int visited = 0;
  dvla::for_each_knob(none, [&](std::string_view, auto&, const dvla::KnobDoc&) { ++visited; });
  CHECK(visited == 0);
}

TEST_CASE("type names are spelt without dvla:: and without a space before >") {
  CHECK(dvla::type_name<int> == "int");
  CHECK(dvla::type_name<dvla::NoKnobs> == "NoKnobs");
  CHECK(dvla::type_name<nested::Box<nested::Box<dvla::NoKnobs>>> == "nested::Box<nested::Box<NoKnobs>>");
  static constexpr dvla::Spelling joined{"LoRA<", dvla::type_name<dvla::NoKnobs>, ">"};
  CHECK(std::string_view(joined) == "LoRA<NoKnobs>");
}

struct OwnPolicy {
  using slot = dvla::memory_slot;
  using knobs = dvla::NoKnobs;
  static constexpr std::string_view name = "OwnPolicy";
};
struct Described : OwnPolicy {
  template <bool Never>
  struct missing {
    static_assert(Never, "not included");
  };
};
struct Work {};
template <class Pipeline>
struct dvla::machinery<Described, Pipeline> {
  using type = Work;
};

TEST_CASE("a policy is its own machinery unless its header says otherwise") {
  CHECK(std::is_same_v<dvla::machinery_t<OwnPolicy, void>, OwnPolicy>);
  CHECK(dvla::Descriptor<Described>);
  CHECK_FALSE(dvla::Descriptor<OwnPolicy>);
  CHECK(std::is_same_v<dvla::machinery_t<Described, void>, Work>);
}
