// Refuses -ffast-math and -ffinite-math-only, under which a compiler takes no number for NaN: every check for
// one, by which a failing environment or a diverged update is found, would be left out without a word.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ != 0)
#error \
    "dvla: -ffast-math and -ffinite-math-only are refused: NaN could no longer be seen; compile without them"
#endif
