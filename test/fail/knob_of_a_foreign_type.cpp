// expect: dvla: a knob must be bool, int, std::int64_t, float, double, std::string or an enum
#include <dvla/dvla.hpp>

struct MyKnobs {
  char letter = 0;
};
BOOST_HANA_ADAPT_STRUCT(MyKnobs, letter);
template <>
inline constexpr auto dvla::knob_docs<MyKnobs> = std::to_array<dvla::KnobDoc>({{"letter", "a letter"}});
void visit(MyKnobs& knobs) {
  dvla::for_each_knob(knobs, [](auto, auto&, const dvla::KnobDoc&) {});
}
