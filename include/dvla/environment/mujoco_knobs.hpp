// What a user tunes in the MuJoCo environments: a plain struct without MuJoCo, so that compositions can be
// named, printed and read from a file without the simulator's headers.
#pragma once

namespace dvla {

struct MujocoKnobs {
  int environments = 128;     ///< rows stepped at once; 1 .. 65536
  int horizon = 16;           ///< control steps in an episode; 1 .. 10000
  int camera_pixels = 0;      ///< side of the square "top" camera's frames; 0 (no camera) or 16 .. 512
  bool dense_reward = false;  ///< shaped reward on every step instead of 1 on the step that solves the task
};

}  // namespace dvla
