// expect: dvla: knob_docs must name the members of its knobs struct, all of them, in the same order
#include <dvla/dvla.hpp>

struct MyKnobs {
  int width = 8;
  int depth = 8;
};
BOOST_HANA_ADAPT_STRUCT(MyKnobs, width, depth);
template <>
inline constexpr auto dvla::knob_docs<MyKnobs> = std::to_array<dvla::KnobDoc>({{"depth", "layers", 1, 8},
                                                                               {"width", "features", 1, 8}});
void visit(MyKnobs& knobs) {
  dvla::for_each_knob(knobs, [](auto, auto&, const dvla::KnobDoc&) {});
}
