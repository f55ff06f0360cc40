// expect: dvla: libc++ is refused: LibTorch is built with libstdc++, and libc++ 14 lacks std::pmr
// flags: -D_LIBCPP_VERSION=14000
// The flag stands for clang's -stdlib=libc++, which only one of the compilers has.
#include <dvla/dvla.hpp>
