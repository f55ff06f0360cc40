// What dvla cannot be compiled with, each refused in a sentence before anything else is read.
#pragma once

#include <cstddef>  // the standard library says here which it is

// Under these a compiler takes no number for NaN: every check for one, by which a failing environment or a
// diverged update is found, would be left out without a word.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ != 0)
#error \
    "dvla: -ffast-math and -ffinite-math-only are refused: NaN could no longer be seen; compile without them"
#endif

// Without it nobody can ask an exception what it is.
#if !defined(__GXX_RTTI) && !defined(__cpp_rtti)
#error "dvla: -fno-rtti is refused: a run tells its errors apart by their types; compile without it"
#endif

#ifdef _LIBCPP_VERSION
#error \
    "dvla: libc++ is refused: LibTorch is built with libstdc++, and libc++ 14 lacks std::pmr and std::jthread; compile without -stdlib=libc++"
#endif
