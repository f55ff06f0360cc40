// expect: dvla: -ffast-math and -ffinite-math-only are refused
// flags: -ffast-math
#include <dvla/dvla.hpp>
