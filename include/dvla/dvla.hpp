// All that is needed to name, check and describe a pipeline: every shipped policy's descriptor, Pipeline and
// Config. No torch, no simulator, no oneTBB. To run one, include the machinery of its policies as well; what
// is missing says so in one sentence.
#pragma once

#include "dvla/pipeline/composition.hpp"
#include "dvla/pipeline/config.hpp"
#include "dvla/version.hpp"
