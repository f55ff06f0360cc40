// expect: Extents hold at most 6 sizes, and more were given
#include <dvla/core/field.hpp>

constexpr dvla::Extents seven{1, 2, 3, 4, 5, 6, 7};
