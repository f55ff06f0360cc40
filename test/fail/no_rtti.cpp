// expect: dvla: -fno-rtti is refused: a run tells its errors apart by their types; compile without it
// flags: -fno-rtti
#include <dvla/dvla.hpp>
